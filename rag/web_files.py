"""What an answer from the web is as a file: its bytes, and a name with the ending that its type calls for."""

from __future__ import annotations

import re
from pathlib import PurePath

from core.errors import DocumentError
from rag.filetypes import KINDS
from rag.urls import Url
from rag.web import Answer

PAGE = ("text/html", "application/xhtml+xml")
_OFFICE = "application/vnd.openxmlformats-officedocument"
_OPEN = "application/vnd.oasis.opendocument"
_ENDINGS = {
    **dict.fromkeys(PAGE, ".html"),
    "application/pdf": ".pdf",
    "text/plain": ".txt",
    "text/markdown": ".md",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/rtf": ".rtf",
    "text/rtf": ".rtf",
    "application/epub+zip": ".epub",
    f"{_OFFICE}.wordprocessingml.document": ".docx",
    f"{_OFFICE}.presentationml.presentation": ".pptx",
    f"{_OFFICE}.spreadsheetml.sheet": ".xlsx",
    f"{_OPEN}.text": ".odt",
    f"{_OPEN}.spreadsheet": ".ods",
    f"{_OPEN}.presentation": ".odp",
}
_UNSAID = ("", "application/octet-stream", "binary/octet-stream")
MEDIA = frozenset({*_ENDINGS, *_UNSAID})
"""The types whose bodies are read at all."""

_NO_PAGES = re.compile(
    r"\.(?:jpe?g|png|gif|svg|webp|avif|ico|bmp|tiff?|css|m?js|map|woff2?|ttf|eot|mp[34]|webm|ogg|wav|avi|mov"
    r"|zip|gz|tgz|bz2|xz|7z|rar|exe|dmg|iso|deb|rpm|apk|xml|rss|atom|ics)",
    re.IGNORECASE,
)
_TEXTS = (".html", ".txt", ".md", ".csv", ".tsv")
# no codec that could be made to do harm: `idna`, `punycode` and `utf-7` are text encodings to Python too
_CHARSET = re.compile(
    r"iso-8859-\d+|windows-\d+|cp\d+|koi8-[ru]|shift[_-]jis|euc-(?:jp|kr)|gb18030|gbk|gb2312|big5|utf-16(?:[bl]e)?",
    re.IGNORECASE,
)
_META = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?([\w-]{1,40})", re.IGNORECASE)


def may_be_page(url: Url) -> bool:
    """Whether the address could lead to a document, by its ending."""
    return not _NO_PAGES.fullmatch(PurePath(url.filename).suffix)


def is_html(answer: Answer) -> bool:
    """Whether the answer is a page with links."""
    if answer.media in _UNSAID:
        return bool(re.match(rb"\s*<(?:!doctype html|html)\b", answer.data[:500], re.IGNORECASE))
    return answer.media in PAGE


def as_utf8(answer: Answer) -> bytes:
    """The answer's bytes; a text in the encoding that header or page name is turned into UTF-8."""
    meta = _META.search(answer.data[:2048]) if is_html(answer) else None
    charset = answer.charset or (meta.group(1).decode("ascii") if meta else "")
    if (is_html(answer) or _ending(answer) in _TEXTS) and _CHARSET.fullmatch(charset):
        try:
            return answer.data.decode(charset).encode()
        except (UnicodeError, LookupError):
            pass  # the name was wrong: let the loaders find out
    return answer.data


def file_name(answer: Answer, title: str = "") -> str:
    """A display name with an ending: a page's title, a file's own name.

    Raises DocumentError for a type that no loader reads.
    """
    ending = _ending(answer)
    own = PurePath(answer.url.filename)
    if ending not in KINDS or KINDS[ending] == "zip":
        shown = answer.media or "unknown"
        raise DocumentError(f"Content of the type {shown[:60]} is not read.", "Add the file by hand.")
    if own.suffix.lower() == ending and ending != ".html":
        return own.name
    # a slash would end the name: what stands before it would be taken for a folder
    stem = re.sub(r"\s*[/\\]\s*", " - ", title) or own.stem or answer.url.host
    return stem + ending


def _ending(answer: Answer) -> str:
    if is_html(answer):
        return ".html"
    return _ENDINGS.get(answer.media) or PurePath(answer.url.filename).suffix.lower()
