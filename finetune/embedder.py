"""Votes teach the search: `understudy embedder train` fine-tunes MiniLM, and only a better one serves.

    votes → triples → train (a process of its own) → embed beside → judge → switch

Training starts from MiniLM as it is packaged, with all votes there are, so nothing drifts from run to run.
The judge is `evaluation.search_exam`. While all this runs, the index in service serves.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.db import Database, new_id
from core.endpoint import record
from core.errors import NotFoundError, TrainingError, run_main
from core.files import owner_lock, write_json
from core.jobs import Job
from core.settings import Settings, load_settings, quiet_environment
from evaluation.exam import citer, golden
from evaluation.search_exam import Embedders, Verdict, headed, packaged, reindex, try_out
from feedback.triples import FEWEST, Lesson, lessons
from finetune.embedder_train import WEIGHTS
from finetune.orders import under_worker
from finetune.telling import Heartbeat, Terminal
from finetune.training import run_training

NEGATIVES = 3  # of one right passage
VERDICT = "verdict.json"

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
        train, held = taught(settings, database)
        if len(train) < FEWEST:
            raise TrainingError(
                f"Votes name the right passages of {len(train)} questions; {FEWEST} are needed.",
                "Vote on more answers, or approve corrections.",
            )
        _sweep(settings, database)
        folder = settings.data_dir / "embedders" / f"{datetime.now(UTC):%Y%m%d}-{new_id()[:6]}"
        folder.mkdir(parents=True)
        try:
            train_candidate(settings, train, folder, lambda done, what: tell(0.5 * done, what), steps)
            verdict = try_out(
                settings, database, Embedders(settings, database).get(folder.name), places(held),
                lambda done, what: tell(0.5 + 0.5 * done, what),
            )  # fmt: skip
        except BaseException:
            _sweep(settings, database)
            raise
        return _settle(folder, verdict)


def train_candidate(
    settings: Settings, train: Sequence[Lesson], folder: Path, tell: Tell, steps: int | None = None
) -> None:
    """Train in a process of its own; with `steps`, so many steps only."""
    base = packaged()
    plan = {
        "base": str(base.folder), "base_sha256": base.sha256, "dimensions": base.dimensions,
        "seed": settings.seed, "triples": to_triples(train, settings.seed), "steps": steps,
    }  # fmt: skip
    write_json(folder / "plan.json", {"stages": [plan]})
    run_training(folder / "plan.json", folder, settings, tell, module="finetune.embedder_train")


def places(held: Sequence[Lesson]) -> list[tuple[str, list[tuple[str, int]]]]:
    """Held-out questions with the places of their right passages, as the judge asks them."""
    return [(one.question, [(p.document_id, p.start) for p in one.right]) for one in held]


def taught(settings: Settings, database: Database) -> tuple[list[Lesson], list[Lesson]]:
    """Lessons to train on and those held out, without the golden questions."""
    questions = [row["question"] for row in golden(settings, database)]
    return lessons(database, citer(record(settings)[0]), exclude=questions, seed=settings.seed)


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
    embedders = Embedders(settings, database)
    kept = {embedders.serving_id(), embedders.before()}
    for path in embedders.folder.glob("*"):
        if path.is_dir() and path.name not in kept and not (path / VERDICT).exists():
            shutil.rmtree(path, ignore_errors=True)


def _settle(folder: Path, verdict: Verdict) -> dict[str, Any]:
    """Keep the verdict beside the embedder; the weights of a refused one, 90 MB, go."""
    result = {"embedder": folder.name, **verdict.to_json()}
    write_json(folder / VERDICT, result)
    shutil.rmtree(folder / "work", ignore_errors=True)
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
    train, held = taught(settings, database)
    lines = [
        embedders.mismatch() or f"{embedders.in_service().id} is in service.",
        f"Votes name the right passages of {len(train)} questions to learn from (at least {FEWEST} are"
        f" needed); {len(held)} more are kept for the judge.",
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
