"""Frozen datasets: what a training run saw, byte for byte, and where every row came from.

A version is the first 16 hex digits of its content hash, so equal feedback gives an equal version and a
version never changes. `card.json` is written last: a folder without it is unfinished and is written again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.db import Database, now_ms
from core.errors import NotFoundError, StorageError, TrainingError
from core.files import inside, read_json, read_jsonl, sha256_of, write_bytes, write_json
from feedback.pairs import Cite, Drop, Example, best, examples
from feedback.questions import Excluded
from feedback.store import FeedbackStore

CARD = "card.json"
SFT, PREFERENCE, HELDOUT = "sft.jsonl", "preference.jsonl", "heldout.jsonl"
FEWEST = 8  # answers to imitate; fewer would only be learnt by heart
# of the questions; a quarter, so that a team's first hundred votes give the gate two dozen cases of their own
HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class Dataset:
    """One frozen version. `folder` holds the three JSONL files that `card` describes."""

    version: str
    folder: Path
    card: dict[str, Any]

    def sft(self) -> list[dict[str, Any]]:
        """Rows to imitate: {"messages": [...], "grounded", "provenance"}."""
        return read_jsonl(self.folder / SFT)

    def preference(self) -> list[dict[str, Any]]:
        """Pairs: {"prompt": [...], "chosen": [...], "rejected": [...], "grounded", "provenance"}."""
        return read_jsonl(self.folder / PREFERENCE)

    def heldout(self) -> list[dict[str, Any]]:
        """Rows never trained on, for cases: question, reference, completion, messages, passages."""
        return read_jsonl(self.folder / HELDOUT)


def freeze(
    database: Database,
    folder: Path,
    *,
    cite: Cite,
    exclude: Iterable[str] = (),
    heldout_share: float = HELD_OUT_SHARE,
    seed: int = 7,
    minimum: int = FEWEST,
    ungrounded: bool = False,
) -> Dataset:
    """Freeze today's feedback below `folder` (`data/datasets`) and note it in the database.

    Questions close to one of `exclude` (the evaluation's) are dropped. A question is held out by a hash of
    itself and `seed`, so it stays held out in every later version. Raises TrainingError when fewer than
    `minimum` rows are left to train on, and StorageError when the disk is full.
    """
    parts = split(
        database, cite, exclude=exclude, heldout_share=heldout_share, seed=seed, ungrounded=ungrounded
    )
    drops = parts.drops
    rows = {
        SFT: [example.sft() for example in parts.imitate],
        PREFERENCE: [example.preference() for example in parts.prefer],
        HELDOUT: [example.case() for example in parts.heldout],
    }
    if len(rows[SFT]) < minimum:
        raise _too_few(len(rows[SFT]), minimum, len(rows[HELDOUT]), drops, FeedbackStore(database))
    contents = {name: _jsonl(values) for name, values in rows.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    version = hashlib.sha256("".join(hashes[name] for name in sorted(hashes)).encode()).hexdigest()[:16]
    target = folder / version
    if not (target / CARD).exists():
        for name, content in contents.items():
            write_bytes(target / name, content)
        options = {"seed": seed, "heldout_share": heldout_share, "ungrounded": ungrounded}
        card = {
            "version": version,
            "files": hashes,
            "created_at": now_ms(),
            **options,
            **_described(rows, drops),
        }
        write_json(target / CARD, card)
    dataset = load(folder, version)
    FeedbackStore(database).save_dataset(version, dataset.card)
    return dataset


@dataclass(frozen=True)
class Split:
    """Today's feedback as a dataset takes it: answers to imitate, pairs, questions kept for the exam."""

    imitate: list[Example]
    prefer: list[Example]
    heldout: list[Example]
    drops: list[Drop]


def split(
    database: Database,
    cite: Cite,
    *,
    exclude: Iterable[str] = (),
    heldout_share: float = HELD_OUT_SHARE,
    seed: int = 7,
    ungrounded: bool = False,
) -> Split:
    """What `freeze` would freeze now; writes nothing."""
    found, drops = examples(database, cite)
    kept = _kept(found, exclude, ungrounded, drops)
    held = [example for example in kept if is_held_out(example.key, heldout_share, seed)]
    train = [example for example in kept if not is_held_out(example.key, heldout_share, seed)]
    return Split(best(train), _distinct(train), _one_each(held), drops)


def load(folder: Path, version: str) -> Dataset:
    """Open a frozen version and check its files.

    Raises NotFoundError when it is missing or unfinished, StorageError when a file was changed.
    """
    path = inside(folder, version)
    if not (path / CARD).exists():
        raise NotFoundError(
            f"No dataset has the version {version}.", "Freeze one by starting a retraining run."
        )
    card = read_json(path / CARD)
    for name in (SFT, PREFERENCE, HELDOUT):
        file = path / name
        if not file.exists() or sha256_of(file) != card["files"][name]:
            raise StorageError(
                f"{file} does not have the bytes it was frozen with.", f"Remove {path} and freeze it again."
            )
    return Dataset(version, path, card)


def is_held_out(key: str, share: float, seed: int) -> bool:
    """Whether the question with this key belongs to the held-out share; the same in every version."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _kept(found: list[Example], exclude: Iterable[str], ungrounded: bool, drops: list[Drop]) -> list[Example]:
    excluded = Excluded(exclude)
    kept = []
    for example in found:
        reason = excluded.reason(example.exchange.question, example.reference)
        if not reason and not (example.grounded or ungrounded):
            reason = "no passage that was shown holds it"
        if reason:
            drops.append(Drop(example.exchange.id, reason))
        else:
            kept.append(example)
    return kept


def _distinct(train: list[Example]) -> list[Example]:
    """Preference pairs without repeats of the same question, chosen and rejected text."""
    pairs = {(e.key, e.completion, e.rejected): e for e in train if e.pair}
    return list(pairs.values())


def _one_each(held: list[Example]) -> list[Example]:
    """One case per question, the newest."""
    return list({example.key: example for example in best(held)}.values())


def _jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows).encode(
        "utf-8", "replace"
    )


def _described(rows: Mapping[str, list[dict[str, Any]]], drops: list[Drop]) -> dict[str, Any]:
    """The card's figures: how many rows, from what and whom, and what was left out and why."""
    sft = rows[SFT]
    users = Counter(user for row in sft for user in row["provenance"]["users"])
    return {
        "counts": {"sft": len(sft), "preference": len(rows[PREFERENCE]), "heldout": len(rows[HELDOUT])},
        "kinds": Counter(row["provenance"]["kind"] for row in sft),
        "users": {user: round(count / len(sft), 4) for user, count in sorted(users.items())},
        "models": Counter(
            f"{row['provenance']['model']}@{row['provenance']['adapter'] or 'base'}" for row in sft
        ),
        "documents": Counter(document for row in sft for document in row["provenance"]["documents"]),
        "dropped": [{"exchange": drop.exchange_id, "reason": drop.reason} for drop in drops],
        "dropped_reasons": Counter(drop.reason for drop in drops),
    }


def _too_few(have: int, needed: int, held: int, drops: list[Drop], store: FeedbackStore) -> TrainingError:
    waiting = store.counts()["pending"]
    reasons = "; ".join(f"{count} × {reason}" for reason, count in Counter(d.reason for d in drops).items())
    return TrainingError(
        f"There are {have} rows to train on and {needed} are needed"
        f" ({held} held out for evaluation, {len(drops)} dropped{': ' + reasons if reasons else ''}).",
        f"Approve the corrections that wait for review ({waiting}), or collect more votes." if waiting
        else "Vote on more answers or correct them, and have the corrections approved.",
    )  # fmt: skip
