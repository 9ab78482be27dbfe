"""What a model is judged on: questions with their prompt frozen, so that both models read the same.

Golden cases are written by people (`data/eval/golden.jsonl`); held-out cases are corrections and liked
answers that a dataset keeps out of training. Freezing stores the messages and passages; after that neither
a new document nor a new index changes what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from core.errors import StorageError
from core.files import read_json, read_jsonl, sha256_of, write_json, write_jsonl
from core.types import Message, Passage, to_passages

CASES, CARD = "cases.jsonl", "card.json"


class Prompted(Protocol):
    """A built prompt: `rag.prompt.Prompt`."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages to send."""

    @property
    def passages(self) -> tuple[Passage, ...]:
        """The passages in them, with numbered units."""


@dataclass(frozen=True)
class Case:
    """One question with its frozen prompt and what a right reply holds.

    `facts` are alternatives of which one must appear; for a held-out case the one alternative is the
    reference text and `completion` the reply wanted, with its citations. `sources` are the document ids that
    may be cited, `evidence` the unit that holds the fact.
    """

    id: str
    question: str
    answerable: bool
    facts: tuple[str, ...]
    sources: tuple[str, ...]
    evidence: str
    completion: str
    origin: Literal["golden", "heldout"]
    kind: str
    messages: tuple[Message, ...]
    passages: tuple[Passage, ...]


def read_golden(path: Path) -> list[dict[str, Any]]:
    """The golden questions: {"id", "question", "answerable", "fact", "sources", "evidence", "kind"}.

    Raises StorageError naming the file and the row that lacks something.
    """
    rows = read_jsonl(path)
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        missing = [key for key in ("id", "question", "answerable") if key not in row]
        if row.get("answerable"):
            missing += [key for key in ("fact", "sources") if not row.get(key)]
        if missing:
            raise StorageError(f"Row {number} of {path} lacks {', '.join(missing)}.", "Mend that row.")
        if row["id"] in seen:
            raise StorageError(f"Row {number} of {path} repeats the id {row['id']}.", "Give it another one.")
        seen.add(row["id"])
    return rows


def freeze_cases(
    golden: Iterable[Mapping[str, Any]],
    heldout: Iterable[Mapping[str, Any]],
    ask: Callable[[str], Prompted],
    names: Mapping[str, str],
    folder: Path,
) -> list[Case]:
    """Build every golden prompt once and write `cases.jsonl`, then `card.json`; later calls read them.

    `heldout` are rows of `Dataset.heldout()`; `ask` retrieves and builds the prompt of a question; `names`
    maps document ids to file names. Raises StorageError when the folder cannot be written or was changed.
    """
    if not (folder / CARD).exists():
        cases = [_golden(row, ask(row["question"]), names) for row in golden]
        cases += [_held_out(row) for row in heldout]
        write_jsonl(folder / CASES, [asdict(case) for case in cases])
        counts = {origin: sum(case.origin == origin for case in cases) for origin in ("golden", "heldout")}
        write_json(folder / CARD, {"sha256": sha256_of(folder / CASES), **counts})
    return load_cases(folder)


def load_cases(folder: Path) -> list[Case]:
    """Read frozen cases (raises StorageError when they are missing or were changed)."""
    path = folder / CASES
    if not path.exists() or sha256_of(path) != read_json(folder / CARD)["sha256"]:
        raise StorageError(
            f"{path} is not what was frozen.", f"Remove {folder} and run the evaluation again."
        )
    return [_case(row) for row in read_jsonl(path)]


def origins(cases: Sequence[Case]) -> list[str]:
    """The questions in the cases, for example to keep them out of training."""
    return [case.question for case in cases]


def _golden(row: Mapping[str, Any], prompt: Prompted, names: Mapping[str, str]) -> Case:
    wanted = set(row.get("sources", ()))
    return Case(
        id=str(row["id"]),
        question=row["question"],
        answerable=bool(row["answerable"]),
        facts=tuple(row.get("fact", ())),
        sources=tuple(sorted(document for document, name in names.items() if name in wanted)),
        evidence=row.get("evidence", ""),
        completion="",
        origin="golden",
        kind=row.get("kind", ""),
        messages=prompt.messages,
        passages=prompt.passages,
    )


def _held_out(row: Mapping[str, Any]) -> Case:
    return Case(
        id=str(row["id"]),
        question=row["question"],
        answerable=bool(row["answerable"]),
        facts=(row["reference"],),
        sources=(),
        evidence="",
        completion=row["completion"],
        origin="heldout",
        kind=row["provenance"]["kind"],
        messages=tuple(row["messages"]),
        passages=to_passages(row["passages"]),
    )


def _case(row: dict[str, Any]) -> Case:
    lists = {name: tuple(row[name]) for name in ("facts", "sources", "messages")}
    return Case(**(row | lists | {"passages": to_passages(row["passages"])}))
