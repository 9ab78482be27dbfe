"""Votes teach the search: `understudy embedder train` fine-tunes MiniLM, and only a better one serves.

    votes → triples → train (a process of its own) → embed beside → judge → switch

Training starts from MiniLM as it is packaged, with all votes there are, so nothing drifts from run to run.
`FOLDS` more embedders are trained for the judge alone, each without a share of the questions: so every
question measures, and none measures an embedder that learnt from it. The judge is `evaluation.search_exam`.
While all this runs, the index in service serves.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.db import Database, new_id
from core.endpoint import record
from core.errors import NotFoundError, TrainingError, run_main
from core.files import owner_lock, read_json, write_json
from core.jobs import Job
from core.settings import Settings, load_settings, quiet_environment
from evaluation.exam import citer
from evaluation.search_exam import (
    Embedders,
    Fold,
    Identity,
    Question,
    Verdict,
    forget,
    headed,
    packaged,
    quick_half,
    reindex,
    try_out,
    written,
)
from feedback.dataset import HELD_OUT_SHARE, is_held_out
from feedback.folds import FOLDS, deal, groups, outlook
from feedback.questions import question_key
from feedback.triples import FEWEST, Lesson, lessons
from finetune.embedder_train import CARD, WEIGHTS
from finetune.orders import under_worker
from finetune.telling import Heartbeat, Terminal
from finetune.training import run_training

NEGATIVES = 3  # of one right passage
VERDICT = "verdict.json"
JUDGES = "judges"  # folder of those that are trained for the judge alone
JUDGING = "judge "  # how their names begin

Tell = Callable[[float, str], None]
"""Says how far it is (0 to 1) and what is done; raises Cancelled when it should stop."""


def retrain(settings: Settings, database: Database, tell: Tell, steps: int | None = None) -> dict[str, Any]:
    """Train on today's votes and judge; returns {"embedder", "passed", "reason", ...}.

    Raises TrainingError when there is too little to learn from, ConflictError when another training is at
    work, and Cancelled.
    """
    if not settings.vote_embedder:
        raise TrainingError("Training the embedder is switched off.", "Set vote_embedder to true.")
    with owner_lock(settings.data_dir / "retrain.lock", "Retraining"):
        known = taught(settings, database)
        if len(known) < FEWEST:
            raise TrainingError(
                f"Votes name the right passages of {len(known)} questions; {FEWEST} are needed.",
                "Vote on more answers, or approve corrections.",
            )
        _sweep(settings, database)
        folder = settings.data_dir / "embedders" / f"{datetime.now(UTC):%Y%m%d}-{new_id()[:6]}"
        folder.mkdir(parents=True)
        try:
            folds = train_candidate(
                settings, database, known, folder, lambda done, what: tell(0.7 * done, what), steps
            )
            verdict = try_out(
                settings, database, Embedders(settings, database).get(folder.name), folds,
                lambda done, what: tell(0.7 + 0.3 * done, what),
            )  # fmt: skip
        except BaseException:
            _sweep(settings, database)
            raise
        return _settle(folder, verdict)


def train_candidate(
    settings: Settings,
    database: Database,
    known: Sequence[Lesson],
    folder: Path,
    tell: Tell,
    steps: int | None = None,
) -> list[Fold]:
    """Train into `folder`, and below it the judge's embedders, in a process of their own.

    With `steps`, only so many steps each. Returns the judge's embedders with the questions that neither they
    nor the embedder in service learnt from.
    """
    belongs = groups(known)
    fold_of = deal(belongs, FOLDS, settings.seed)
    base = packaged()
    stages = []
    for fold in range(FOLDS + 1):  # the last is the candidate and learns from all
        lessons = [one for one, its in zip(known, fold_of, strict=True) if its != fold]
        name = f"judge's embedder {fold + 1}" if fold < FOLDS else "the embedder"
        stages.append({
            "stage": f"{fold + 1}-{name}", "into": f"{JUDGES}/{fold}" if fold < FOLDS else ".",
            "base": str(base.folder), "base_sha256": base.sha256, "dimensions": base.dimensions,
            "seed": settings.seed, "triples": to_triples(lessons, settings.seed), "steps": steps,
            "learnt": [_mark(one.question) for one in lessons], "half": quick_half(),
        })  # fmt: skip
    write_json(folder / "plan.json", {"stages": stages})
    run_training(folder / "plan.json", folder, settings, tell, module="finetune.embedder_train")
    seen = learnt(Embedders(settings, database), settings.seed)
    asked = list(zip(questions_of(known, belongs), fold_of, strict=True))
    return [
        Fold(
            _judging(folder / JUDGES / str(fold)),
            tuple(question for question, its in asked if its == fold and not seen(question.text)),
        )
        for fold in range(FOLDS)
    ]


def questions_of(known: Sequence[Lesson], belongs: Sequence[int]) -> tuple[Question, ...]:
    """Lessons, with their groups, as the judge asks them."""
    return tuple(
        Question(one.question, tuple((p.document_id, p.start) for p in one.right), group=group)
        for one, group in zip(known, belongs, strict=True)
    )


def _judging(folder: Path) -> Identity:
    """One of the judge's embedders, which is never in service."""
    card = read_json(folder / CARD)
    return Identity(f"{JUDGING}{folder.name}", card["sha256"], card["dimensions"], folder)


def learnt(embedders: Embedders, seed: int) -> Callable[[str], bool]:
    """Says of a question whether the embedder in service learnt from it: such a question cannot judge.

    Those trained before their cards noted it learnt from all but the held-out share.
    """
    serving = embedders.serving_id()
    card = next((card for card in embedders.cards() if card["id"] == serving), None)
    if card is None:
        return lambda question: False
    if "learnt" not in card:
        return lambda question: not is_held_out(question_key(question), HELD_OUT_SHARE, seed)
    marks = frozenset(card["learnt"])
    return lambda question: _mark(question) in marks


def _mark(question: str) -> str:
    """What the card keeps of a question: enough to know it again, not to read it."""
    return hashlib.sha256(question_key(question).encode()).hexdigest()[:16]


def taught(settings: Settings, database: Database) -> list[Lesson]:
    """Lessons to train on: without the golden questions and the gold set, which judge."""
    questions = [question.text for question in written(settings, database)]
    return lessons(database, citer(record(settings)[0]), exclude=questions)


def to_triples(train: Sequence[Lesson], seed: int) -> list[tuple[str, str, str]]:
    """(question, right passage, wrong passage) as the embedder reads them.

    A question without a wrong passage of its own gets the right one of another question.
    """
    chance = random.Random(seed)  # noqa: S311
    everything = [headed(passage) for lesson in train for passage in lesson.right]
    triples = []
    for lesson in train:
        rights = [headed(passage) for passage in lesson.right]
        wrongs = [headed(passage) for passage in lesson.wrong[:NEGATIVES]]
        others = [text for text in everything if text not in rights]
        if not wrongs and others:
            wrongs = [chance.choice(others)]
        triples += [(lesson.question, right, wrong) for right in rights for wrong in wrongs if wrong != right]
    return triples


def _sweep(settings: Settings, database: Database) -> None:
    """Remove what unfinished trainings left, but never an embedder that serves or served."""
    forget(database, JUDGING)
    embedders = Embedders(settings, database)
    kept = {embedders.serving_id(), embedders.before()}
    for path in embedders.folder.glob("*"):
        if path.is_dir() and path.name not in kept and not (path / VERDICT).exists():
            shutil.rmtree(path, ignore_errors=True)


def _settle(folder: Path, verdict: Verdict) -> dict[str, Any]:
    """Keep the verdict beside the embedder; the weights of a refused one, 90 MB, go."""
    result = {"embedder": folder.name, **verdict.to_json()}
    write_json(folder / VERDICT, result)
    for left in (folder / "work", folder / JUDGES):
        shutil.rmtree(left, ignore_errors=True)
    if not verdict.passed:
        (folder / WEIGHTS).unlink(missing_ok=True)
    return result


def sentence(result: dict[str, Any]) -> str:
    """How a training came out."""
    end = "It serves now." if result["passed"] else "The old one serves on."
    return f"{result['reason']} {end}"


def roll_back(settings: Settings, database: Database, tell: Tell) -> str:
    """Put the embedder before into service again; returns a sentence (raises NotFoundError)."""
    embedders = Embedders(settings, database)
    before = embedders.before()
    if not before and not embedders.mismatch():
        raise NotFoundError("No other embedder was in service before.", "There is nothing to go back to.")
    return reindex(settings, database, before or packaged().id, "rollback", tell)


def _run_job(settings: Settings, database: Database, job_id: str, token: int) -> int:
    def work(job: Job, heartbeat: Heartbeat) -> tuple[str, dict[str, Any]]:
        result = retrain(settings, database, heartbeat, job.payload.get("steps"))
        return sentence(result), result

    return under_worker(database, job_id, token, work)


def status(settings: Settings, database: Database) -> str:
    """Which embedder serves, what a training would learn from, and what earlier ones came to."""
    embedders = Embedders(settings, database)
    lines = [
        embedders.mismatch() or f"{embedders.in_service().id} is in service.",
        outlook(len(taught(settings, database))),
    ]
    return "\n".join([*lines, *(f"{card['id']}: {card['triples']} triples" for card in embedders.cards())])


def main(argv: Sequence[str] | None = None) -> int:
    """`understudy embedder`: exits 0 when a training came to a verdict, whichever it was."""
    parser = argparse.ArgumentParser(
        prog="understudy embedder",
        description="Fine-tune the search's embedder on votes and put it into service if the whole search"
        " finds more with it; go back to the one before; or embed everything anew with the one on disk.",
    )
    parser.add_argument(
        "action", nargs="?", choices=["status", "train", "rollback", "reindex"], default="status"
    )
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--token", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    quiet_environment()
    settings = load_settings()
    database = Database(settings.database)
    if options.job:
        return _run_job(settings, database, options.job, options.token)
    tell = Terminal()
    if options.action == "train":
        print(sentence(retrain(settings, database, tell)))
    elif options.action == "rollback":
        print(roll_back(settings, database, tell))
    elif options.action == "reindex":
        serving = Embedders(settings, database).in_service().id
        print(reindex(settings, database, serving, "command", tell))
    else:
        print(status(settings, database))
    return 0


if __name__ == "__main__":
    run_main(main)
