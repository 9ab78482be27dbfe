"""`understudy demo`: the whole loop with scripted users, on the sample documents, in a few minutes.

Round 1: users ask, vote and correct honestly, a reviewer approves, the gate should let the adapter pass.
Round 2: users correct wrongly on purpose and a careless reviewer approves it all; the gate should refuse.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.resources import Resources
from app.serve import environment, parts, with_model, with_ports
from app.supervisor import Supervisor
from core.errors import ConflictError, EngineUnavailable, TrainingError
from core.files import read_json, read_jsonl, write_json
from core.runs import Run, Runs
from core.settings import PROJECT, Settings, load_settings
from core.types import Answer
from evaluation.metrics import fact_match

ROUNDS = PROJECT / "data" / "samples" / "demo"
MARKER = "demo.json"  # only a folder that holds it is ever emptied
REVIEWERS = {1: "Ines, who reads", 2: "Max, who does not"}
BEGAN = time.monotonic()


@dataclass(frozen=True)
class Asked:
    """A scripted question, what came back, and whether it was right."""

    row: dict[str, Any]
    answer: Answer
    right: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 when round 1 is promoted and round 2 refused, else 1 (and says which was not)."""
    parser = argparse.ArgumentParser(prog="understudy demo", description=__doc__.split("\n")[0])
    parser.add_argument("--grpo", action="store_true", help="add a GRPO stage to round 1 (takes longer)")
    parser.add_argument("--data-dir", type=Path, help="where its state goes (default: data/demo)")
    parser.add_argument(
        "--keep", action="store_true", help="leave it running at the end, to look at the pages"
    )
    options = parser.parse_args(argv)
    plain = load_settings()
    folder = (options.data_dir or plain.data_dir / "demo").expanduser().resolve()
    start_afresh(folder, plain.data_dir / "models")
    settings = with_model(replace(plain, data_dir=folder, port=0, engine_port=0, password=""))
    with installation(with_ports(settings)) as (supervisor, resources):
        say("1. Reading the sample documents")
        count = read_samples(resources)
        say(f"   {count} documents are searchable; the engine runs as process {supervisor.pid('engine')}")
        first, asked = play(resources, supervisor, 1, ["sft", "dpo"] + ["grpo"] * options.grpo)
        show_lesson(resources, asked)
        second, _ = play(resources, supervisor, 2, ["sft", "dpo"])
        code = conclude(resources, first, second)
        if options.keep:
            say(f"The pages are at http://127.0.0.1:{resources.settings.port} until you press Ctrl-C.")
            wait_for_interrupt()
    return code


def say(text: str) -> None:
    """A line with the seconds since the start."""
    print(f"{time.monotonic() - BEGAN:5.0f} s  {text}", flush=True)


def start_afresh(folder: Path, models: Path) -> None:
    """Empty an earlier demo's folder, and lend it the downloaded models.

    Raises ConflictError when the folder is something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise ConflictError(f"{folder} holds something that no demo made.", "Choose another --data-dir.")
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / MARKER, {"made_by": "understudy demo"})
    if models.is_dir():
        (folder / "models").symlink_to(models)


@contextmanager
def installation(settings: Settings) -> Iterator[tuple[Supervisor, Resources]]:
    """Web, engine and worker as `understudy serve` runs them, without its printing.

    Raises EngineUnavailable with the engine's last words when the engine does not come up.
    """
    supervisor = Supervisor(parts(settings), environment(settings), settings.data_dir, lambda _: None)
    stopping = threading.Event()

    def supervise() -> None:
        # one thread from start to stop: the children's parent-death signal follows it
        supervisor.start()
        while not stopping.wait(0.2):
            supervisor.tick()
        supervisor.stop()

    thread = threading.Thread(target=supervise, name="supervisor")
    thread.start()
    resources = Resources(settings)
    try:
        while not supervisor.ready("engine"):
            if reason := supervisor.gave_up("engine"):
                raise EngineUnavailable(reason, "Run `understudy doctor`.")
            time.sleep(0.1)
        yield supervisor, resources
    finally:
        stopping.set()
        thread.join()
        resources.database.close()


def read_samples(resources: Resources) -> int:
    """Make the samples and an old price notice searchable; returns how many documents there are.

    Only votes can tell which of two prices counts: the old notice answers every question in plainer words.
    """
    from rag.ingest import open_ingestor

    ingestor = open_ingestor(resources.settings)
    ingestor.add_samples()
    # the worker may be looking whether anything is left to read
    ingestor.ingest([ROUNDS / "price-notice-2023.md"], lambda _: None, wait=True)
    resources.assistant.warm()
    return len(resources.documents.list())


def play(
    resources: Resources, supervisor: Supervisor, number: int, methods: list[str]
) -> tuple[Run, list[Asked]]:
    """One round: ask, vote, review, retrain, judge."""
    rows = read_jsonl(ROUNDS / f"round{number}.jsonl")
    users = len({row["user"] for row in rows})
    manner = "honestly" if number == 1 else "wrongly, on purpose"
    say(f"{number * 3 - 1}. Round {number}: {users} users ask {len(rows)} questions and correct {manner}")
    asked = [ask_and_vote(resources, row) for row in progress(rows)]
    right = sum(each.right for each in asked)
    say(f"   {right} of {len(asked)} answers were right with the right source")
    approved = resources.review.approve_all(REVIEWERS[number])
    say(f"   {REVIEWERS[number]}, approves {approved} corrections")
    engine = supervisor.pid("engine")
    say(f"{number * 3}. Retraining: {', '.join(methods)}")
    run = retrain(resources, methods)
    gate = read_json(run_folder(resources, run) / "gate" / "card.json")
    print("\n" + "\n".join(f"         {line}" for line in str(gate["table"]).splitlines()) + "\n", flush=True)
    say(f"   The gate: {'PASSED' if gate['passed'] else 'REFUSED'}. {gate['reason']}")
    stage = resources.client.sync_adapters().get("adapter") or "the bare base model"
    same = "the same process, not restarted" if supervisor.pid("engine") == engine else "restarted"
    say(f"   On stage: {stage} (engine {supervisor.pid('engine')}, {same})")
    return run, asked


def ask_and_vote(resources: Resources, row: dict[str, Any]) -> Asked:
    """Ask as the row's user; a right answer gets a thumb up, another one a thumb down and a correction."""
    store, user = resources.feedback, str(row["user"])
    answer = resources.assistant.ask(row["question"])
    exchange = store.record(store.start_conversation(user, row["question"]), user, row["question"], answer)
    right = is_right(resources, row, answer)
    if right and not row.get("bad"):
        store.vote(exchange, user, 1)
    else:
        store.vote(exchange, user, -1, reason_of(row, answer))
        store.correct(exchange, user, row["correction"])
    return Asked(row, answer, right)


def is_right(resources: Resources, row: dict[str, Any], answer: Answer) -> bool:
    """Whether the answer holds the fact and cites a document that does, or refuses where it should."""
    if not row["answerable"]:
        return answer.mode == "refusal"
    found = (resources.documents.find(citation.document_id) for citation in answer.citations)
    names = {document.name for document in found if document is not None}
    return fact_match(answer.text, tuple(row["fact"]), row["evidence"]) and bool(names & set(row["sources"]))


def reason_of(row: dict[str, Any], answer: Answer) -> str:
    """Which chip the user presses."""
    if not row["answerable"]:
        return "should have refused"
    return "should have answered" if answer.mode == "refusal" else "wrong fact"


def retrain(resources: Resources, methods: list[str]) -> Run:
    """Submit the job to the worker and follow it (raises TrainingError when it came to no verdict)."""
    job = resources.jobs.submit("retrain", {"methods": methods, "four_bit": False})
    said = ""
    while job.open:
        time.sleep(0.5)
        job = resources.jobs.get(job.id)
        step = job.message.split(",")[0].split(":")[0]
        if job.open and step and step != said:
            said = step
            say(f"   {job.progress:4.0%}  {step}")
    if job.status != "done":
        raise TrainingError(f"The run failed: {job.message}", f"See {resources.settings.data_dir / 'logs'}.")
    return Runs(resources.database).get(job.result["run"])


def show_lesson(resources: Resources, asked: Sequence[Asked]) -> None:
    """Ask again what was answered wrongly, and show one that is right now."""
    wrong = [each for each in asked if not each.right]
    for each in wrong[:20]:
        again = resources.assistant.ask(each.row["question"])
        if is_right(resources, each.row, again):
            say(f"4. Asked again: {each.row['question']}")
            say(f"   before: {one_line(each.answer.text)}   ({each.answer.adapter or 'no adapter'})")
            say(f"   now:    {one_line(again.text)}   ({again.adapter or 'no adapter'})")
            return
    say(f"4. Asked again: none of {len(wrong[:20])} questions that were answered wrongly is right now")


def conclude(resources: Resources, first: Run, second: Run) -> int:
    """Say where everything lies and whether the demo showed what it should."""
    data = resources.settings.data_dir
    say("7. What there is now")
    for run in (first, second):
        print(f"         {run.status:<9} {run_folder(resources, run)}/report.md")
        print(f"         {'data set':<9} {data / 'datasets' / str(run.dataset_version)}")
        print(f"         {'adapter':<9} {resources.registry.folder / str(run.adapter_id)}")
    ok = first.status == "promoted" and second.status == "refused"
    if first.status != "promoted":
        say(f"NOT AS MEANT: round 1 was {first.status}, it should have been promoted.")
    if second.status != "refused":
        say(f"NOT AS MEANT: round 2 was {second.status}, it should have been refused.")
    say(f"Done in {time.monotonic() - BEGAN:.0f} s: {'as meant' if ok else 'not as meant'}.")
    return 0 if ok else 1


def run_folder(resources: Resources, run: Run) -> Path:
    """`data/runs/<id>`."""
    return resources.settings.data_dir / "runs" / run.id


def progress(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows, with a counter on a terminal."""
    for number, row in enumerate(rows, 1):
        if sys.stdout.isatty():
            print(f"\r         question {number} of {len(rows)} ", end="", flush=True)
        yield row
    if sys.stdout.isatty():
        print("\r" + " " * 40 + "\r", end="")


def one_line(text: str, length: int = 150) -> str:
    """The text on one line, cut."""
    line = json.dumps(" ".join(text.split()), ensure_ascii=False)
    return line if len(line) <= length else line[: length - 1] + "…"


def wait_for_interrupt() -> None:
    """Sleep until Ctrl-C."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
