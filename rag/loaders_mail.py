"""Mail into an outline: subject as title, who wrote when to whom, the text. Attachments are only named."""

from __future__ import annotations

import io
import re
from email.message import EmailMessage
from typing import Any

from core.errors import DocumentError, first_line
from rag.filetypes import decode, decoded
from rag.loaders_html import read_html
from rag.outline import Outline

_HEADERS = ("From", "To", "Cc", "Date")


def read_eml(data: bytes, outline: Outline) -> None:
    """A mail as RFC 5322 has it; the plain text is preferred to the HTML version."""
    from email import message_from_bytes, policy

    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:100]:
        data = decode(data).encode()
    message = message_from_bytes(data.lstrip(), policy=policy.default)
    if not any(message.get(name) for name in ("From", "To", "Subject", "Date", "Message-ID", "Received")):
        raise DocumentError("The file is no mail: it has no header.", "Give it its right ending.")
    assert isinstance(message, EmailMessage)
    outline.heading(1, _header(message, "Subject"))
    for name in _HEADERS:
        if value := _header(message, name):
            outline.line(f"{name}: {value}")
    body = _body(message)
    if body is not None:
        content = _content(body, outline)
        if body.get_content_subtype() == "html":
            read_html(content.encode(), outline)
        else:
            read_plain(content, outline)
    for part in message.walk():
        if part.get_filename():
            outline.line(f"Attachment: {_shown(str(part.get_filename()))}")


def _header(message: EmailMessage, name: str) -> str:
    try:
        return str(message.get(name, ""))
    except (ValueError, IndexError, AttributeError, TypeError, LookupError):  # the policy parses what it gets
        raw = dict(message.raw_items()).get(name, "")
        return str(raw)


def _body(message: EmailMessage) -> EmailMessage | None:
    try:
        found = message.get_body(("plain", "html"))
    except (AttributeError, KeyError, ValueError):
        found = None
    if found is None:
        found = next((part for part in message.walk() if part.get_content_maintype() == "text"), None)
    return found if isinstance(found, EmailMessage) else None


def _content(part: EmailMessage, outline: Outline) -> str:
    try:
        return str(part.get_content())
    except (LookupError, ValueError, KeyError, AssertionError):  # an unknown charset or transfer encoding
        payload: Any = part.get_payload(decode=True)
        text, repaired = decoded(payload if isinstance(payload, bytes) else b"")
        outline.count("repaired", max(1, repaired))
        return text


def read_plain(text: str, outline: Outline) -> None:
    """Plain text of a mail: paragraphs, quoted lines without their marks."""
    for block in re.split(r"\n[ \t>]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = [re.sub(r"^[> ]+", "", line) for line in block.split("\n")]
        if any(re.match(r"\s*[-*•]\s", line) for line in lines):
            for line in lines:
                outline.line(line)
        else:
            outline.paragraph(" ".join(lines))


def read_msg(data: bytes, outline: Outline) -> None:
    """An Outlook message by python-oxmsg. Raises DocumentError for protected ones and other OLE files."""
    from oxmsg import Message

    try:
        message = Message.load(io.BytesIO(data))
        subject, sender, sent = message.subject, message.sender, message.sent_date
        to = ", ".join(f"{one.name} <{one.email_address}>" for one in message.recipients if one.email_address)
        plain, html = message.body, message.html_body
        kind = str(message.message_class or "")
        names = [one.file_name for one in message.attachments]
    except (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise DocumentError(f"The MSG file is broken: {first_line(error)}.", "Save it again.") from error
    sealed = any(str(name).lower().endswith((".rpmsg", ".pgp-encrypted", ".p7m")) for name in names)
    if kind.startswith(("IPM.Note.SMIME", "IPM.Note.rpmsg")) or (sealed and not (plain or html)):
        raise DocumentError("The message is encrypted.", "Save a copy that is not protected.")
    if not (plain or html):
        raise DocumentError("No text was found in this message.", "Save it again as .eml.")
    outline.heading(1, subject or "")
    for name, value in (("From", sender), ("To", to), ("Date", sent)):
        if value:
            outline.line(f"{name}: {value}")
    if plain:
        read_plain(plain, outline)
    elif html:
        read_html(html.encode() if isinstance(html, str) else html, outline)
    for attached in names:
        if attached:
            outline.line(f"Attachment: {_shown(attached)}")


def _shown(name: str) -> str:
    """The last part of an attachment's name: display text, never a path."""
    return re.split(r"[/\\]", name)[-1]
