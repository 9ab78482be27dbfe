"""Gold sets: questions and the documents that answer them, read strictly, and found among what is loaded.

Three layouts are read:

    CSV         columns question and document, a row for each document that answers; grade may be a third
    JSON lines  {"question": "...", "sources": ["..."]} a line; those without sources are left out
    BEIR        queries.jsonl and qrels.tsv (or qrels/test.tsv), each also as .gz, in a ZIP or as files; a
                corpus.jsonl beside them tells the titles of its documents

What cannot be meant is refused with its line. A document is named by its id, its path in a synchronised
folder or address, its name, or its title.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from core.db import Database
from core.errors import DocumentError, QuestionError, StorageError
from core.files import read_jsonl, write_jsonl
from core.settings import Settings
from rag.archives import members
from rag.documents import DocumentStore
from rag.sources import paths

MOST = 5_000  # questions
LARGEST = 256 << 20  # bytes of an unpacked file
GOLD = "gold.txt"  # the gold set that was used last
_ZIP = b"PK\x03\x04"
_QUERIES, _CORPUS = "queries.jsonl", "corpus.jsonl"
_QRELS = ("qrels.tsv", "test.tsv", "dev.tsv", "train.tsv")  # the first that is there


@dataclass(frozen=True)
class Wanted:
    """A document that answers: what it is called, how well it answers, and the line that says so."""

    name: str
    grade: int = 1
    line: int = field(default=0, compare=False)
    title: str = ""


@dataclass(frozen=True)
class Gold:
    """A question and the documents that answer it."""

    question: str
    documents: tuple[Wanted, ...]


class _Set:
    """A gold set as it is read: the documents of each question, each once with its best grade."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, Wanted]] = {}

    def add(self, question: str, wanted: Wanted) -> None:
        documents = self._found.setdefault(question, {})
        known = documents.get(wanted.name)
        if known is None or known.grade < wanted.grade:
            documents[wanted.name] = wanted

    def gold(self) -> list[Gold]:
        """Those with a document (raises QuestionError when there are none, or too many)."""
        found = [Gold(question, tuple(wanted.values())) for question, wanted in self._found.items()]
        if not found:
            raise QuestionError("The gold set holds no question with a document.", "Fill in both columns.")
        if len(found) > MOST:
            raise QuestionError(f"The gold set holds {len(found):,} questions.", f"Keep it to {MOST:,}.")
        return found


def read_gold(data: bytes) -> list[Gold]:
    """The questions of a CSV, of JSON lines, or of a ZIP in BEIR's layout.

    Raises QuestionError naming what is missing, or the line that cannot be meant.
    """
    if data.startswith(_ZIP):
        try:
            return read_beir({member.name: member.data for member in members(data)})
        except DocumentError as error:
            raise QuestionError(f"The ZIP cannot be read: {error.message}", "Pack it anew.") from None
    text = _text(data, "the gold set")
    found = _Set()
    for question, wanted in _json_pairs(text) if text.lstrip().startswith("{") else _csv_pairs(text):
        found.add(question, wanted)
    return found.gold()


def read_files(files: Mapping[str, bytes]) -> list[Gold]:
    """One file as `read_gold`, several as a folder in BEIR's layout; raises as `read_gold`."""
    return read_gold(next(iter(files.values()))) if len(files) == 1 else read_beir(files)


def read_beir(files: Mapping[str, bytes]) -> list[Gold]:
    """The questions of a folder in BEIR's layout, by path or name; raises QuestionError as `read_gold`."""
    by_name = {PurePosixPath(path).name.removesuffix(".gz"): (path, files[path]) for path in files}
    qrels = next((name for name in _QRELS if name in by_name), None)
    if _QUERIES not in by_name or qrels is None:
        raise QuestionError(
            f"The gold set lacks {_QUERIES if _QUERIES not in by_name else _QRELS[0]}.",
            "Give a folder or ZIP in BEIR's layout: queries.jsonl and qrels.tsv.",
        )
    queries = {key: str(row["text"]).strip() for key, row in _rows(*by_name[_QUERIES], "text")}
    corpus = _rows(*by_name[_CORPUS]) if _CORPUS in by_name else ()
    titles = {key: str(row.get("title") or "").strip() for key, row in corpus}
    found = _Set()
    for line, query, document, grade in _judgements(*by_name[qrels]):
        if query not in queries:
            raise _bad(line, f"names the query {query[:60]!r}, which {_QUERIES} lacks", of=qrels)
        if grade > 0 and queries[query]:
            found.add(queries[query], Wanted(document, grade, line, titles.get(document, "")))
    return found.gold()


def _csv_pairs(text: str) -> Iterator[tuple[str, Wanted]]:
    rows = csv.DictReader(io.StringIO(text), strict=True)
    last = 0  # line of the row before; a row may hold several
    try:
        if not {"question", "document"} <= set(rows.fieldnames or ()):
            raise QuestionError(
                "The gold set lacks the columns question and document.", "Name them in its first line."
            )
        for row in rows:
            if None in row:
                raise _bad(rows.line_num, "has more cells than columns", "Put a text with commas in quotes.")
            question, document = ((row[name] or "").strip() for name in ("question", "document"))
            if question and document:
                yield (
                    question,
                    Wanted(document, _grade(row.get("grade") or "1", rows.line_num), rows.line_num),
                )
            elif question or document:
                lacks = "question" if document else "document"
                raise _bad(rows.line_num, f"has no {lacks}", "Fill it in, or remove the line.")
            last = rows.line_num
    except csv.Error as error:
        raise _bad(max(last, 1) + 1, f"is no line of a CSV ({error})") from None


def _json_pairs(text: str) -> Iterator[tuple[str, Wanted]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            question, sources = str(row["question"]).strip(), [str(name) for name in row.get("sources", ())]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise _bad(number, "is not an object with question and sources") from None
        for name in sources:
            yield question, Wanted(name, 1, number)


def _rows(path: str, data: bytes, *needed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, by their `_id`, which stands once."""
    seen: set[str] = set()
    name = PurePosixPath(path).name
    for number, line in enumerate(_lines(data, path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key = str(row["_id"])
            lacks = [one for one in needed if one not in row]
        except (ValueError, KeyError, TypeError):
            lacks = ["_id"]
        if lacks:
            raise _bad(number, f"is not a JSON object with {', '.join(['_id', *needed])}", of=name)
        if key in seen:
            raise _bad(number, f"repeats the id {key[:60]!r}", of=name)
        seen.add(key)
        yield key, row


def _judgements(path: str, data: bytes) -> Iterator[tuple[int, str, str, int]]:
    """(line, query, document, grade) of a file of judgements; its header may be missing."""
    name = PurePosixPath(path).name
    for number, line in enumerate(_lines(data, path), 1):
        fields = line.split("\t")
        if not line.strip() or (number == 1 and len(fields) == 3 and not _is_number(fields[2])):
            continue
        if len(fields) != 3:
            raise _bad(number, "is not query-id, corpus-id and score with tabs between", of=name)
        yield number, fields[0].strip(), fields[1].strip(), _grade(fields[2], number, name)


def _lines(data: bytes, what: str) -> list[str]:
    """By line feeds alone: splitlines would also split at U+2028 in a text."""
    return [line.rstrip("\r") for line in _text(data, what).split("\n")]


def _is_number(text: str) -> bool:
    return text.strip().lstrip("+-").isdigit()


def _grade(text: str, line: int, of: str = "the gold set") -> int:
    if not _is_number(text):
        raise _bad(line, f"has the grade {text.strip()[:20]!r}, which is no whole number", of=of)
    return int(text)


def _text(data: bytes, what: str) -> str:
    """The text of a file, unpacked where it is gzipped."""
    if data.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(LARGEST + 1)
        except (OSError, EOFError, zlib.error):
            raise QuestionError(f"{what} is not a whole gzip file.", "Pack it anew.") from None
        if len(data) > LARGEST:
            raise QuestionError(f"{what} is larger than {LARGEST >> 20} MB unpacked.", "Leave texts out.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise QuestionError(f"{what[:1].upper()}{what[1:]} is not UTF-8 text.", "Save it in UTF-8.") from None


def _bad(
    line: int, what: str, next_step: str = "Mend or remove it.", of: str = "the gold set"
) -> QuestionError:
    return QuestionError(f"Line {line} of {of} {what}.", next_step)


Named = Iterable[tuple[str, Iterable[str]]]
"""Ids of documents, each with names of one kind."""


class Names:
    """The documents that are there, by everything that they may be called."""

    def __init__(self, *kinds: Named) -> None:
        """`kinds` of names, the surest first: a title that is another document's name means that one."""
        self._ids: dict[str, tuple[str, ...]] = {}
        for kind in kinds:
            found: dict[str, list[str]] = {}
            for document, names in kind:
                for name in names:
                    found.setdefault(name.casefold(), []).append(document)
            for name, documents in found.items():
                self._ids.setdefault(name, tuple(dict.fromkeys(documents)))

    def find(self, wanted: Wanted) -> tuple[str, ...]:
        """Ids of the documents that are meant: several where they share a name; none when it is not there."""
        names = (name.strip().casefold() for name in (wanted.name, wanted.title))
        return next((self._ids[name] for name in names if name in self._ids), ())


def names_of(settings: Settings, database: Database) -> Names:
    """What the documents that can be searched are called: id, path or address, name, title."""
    ready = [one for one in DocumentStore(database, settings).list() if one.status == "ready"]
    known = paths(database)
    return Names(
        [(one.id, [one.id]) for one in ready],
        [(one.id, known.get(one.id, [])) for one in ready],
        [(one.id, [one.name]) for one in ready],
        [(one.id, [one.title]) for one in ready],
    )


def keep_gold(folder: Path, gold: Iterable[Gold]) -> None:
    """Keep a gold set: the embedder's judge asks its questions, too."""
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / GOLD, [asdict(one) for one in gold])


def kept_gold(folder: Path) -> list[Gold]:
    """The gold set that was kept last; empty when there is none. Those of earlier versions are read, too."""
    path = folder / GOLD
    if not path.exists():
        return []
    try:
        rows = read_jsonl(path)
        return [Gold(row["question"], tuple(Wanted(**one) for one in row["documents"])) for row in rows]
    except (StorageError, ValueError, KeyError, TypeError):
        return read_gold(path.read_bytes())
