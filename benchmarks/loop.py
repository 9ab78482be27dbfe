"""Whether corrections teach: one new domain, its held-out questions and the rest, before and after SFT.

The papers of an organisation that the built-in model never saw are loaded beside the samples. Its users ask,
every answer is corrected and approved, a quarter of the questions is kept for the exam, and the product's own
run (`finetune.retrain`) trains an adapter and asks both models. The general loss is that on the golden set.
Both are judged twice: by what the model wrote, and by what users see of it (`rag.shown`), as the gate does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from benchmarks.table import Row, at_least, main
from core.catalog import CatalogModel, resolve
from core.db import Database
from core.files import read_jsonl
from core.settings import Settings, load_settings, quiet_environment
from evaluation.cases import Case, load_cases
from evaluation.metrics import score
from evaluation.run import Result, asked_of_both, load_results, mean
from feedback.review import Review
from feedback.store import FeedbackStore
from finetune.base_papers import Domain, domains
from finetune.orders import run_here
from finetune.retrain import Retraining
from finetune.telling import Terminal
from rag.answer import Assistant
from rag.ingest import open_ingestor
from rag.model import engine_client
from rag.prompt import REFUSAL
from rag.retrieve import Retriever

USER = "reader"
GAIN, LOSS = 0.05, 0.02  # goals: of the domain's held-out facts, of the golden score
QUICK = 60  # questions


def measure(options: argparse.Namespace) -> list[Row]:
    """Teach in a scratch folder and compare."""
    quiet_environment()
    homes = [home for home in domains() if options.domain.casefold() in home.name.casefold()]
    if not homes:
        raise SystemExit(f"No domain is called {options.domain}. See data/eval/papers.txt.")
    home = homes[0]
    with tempfile.TemporaryDirectory() as scratch:
        plain = load_settings(model="builtin", methods="sft")
        settings = replace(plain, data_dir=Path(scratch), engine_port=0, four_bit=False)
        model, gguf = resolve(settings)
        database = Database(settings.database)
        taught = teach(settings, database, model, home, QUICK if options.quick else None)

        terminal = Terminal()

        def tell(done: float, what: str) -> None:
            with redirect_stdout(sys.stderr):  # the table is all that goes to the other
                terminal(done, what)

        run = run_here(
            settings,
            database,
            lambda run, tell: Retraining(settings, database, run, model, gguf, tell).go(),
            {"methods": settings.method_list, "four_bit": False},
            tell,
        )
        folder = settings.data_dir / "runs" / run.id
        known = {
            row["messages"][-1]["content"].partition("] ")[2]
            for row in read_jsonl(settings.data_dir / "datasets" / str(run.dataset_version) / "sft.jsonl")
        }
        cases = load_cases(folder / "exam")
        new = [case.completion.partition("] ")[2] not in known for case in cases]
        before, after = load_results(folder / "before"), load_results(folder / "after")
        database.close()
    first, last = ([as_written(*pair) for pair in zip(cases, part, strict=True)] for part in (before, after))
    return [
        Row(f"{home.name}: questions corrected", taught, "questions"),
        Row("questions held out", sum(case.origin == "heldout" for case in cases), "questions"),
        *figures("written", first, last, new),
        *figures("shown", before, after, new),
    ]


def as_written(case: Case, result: Result) -> Result:
    """The result judged by the model's own words."""
    return replace(result, reply=result.raw, scores=score(case, result.raw)) if result.asked else result


def teach(
    settings: Settings, database: Database, model: CatalogModel, home: Domain, limit: int | None
) -> int:
    """Load samples and papers, ask, correct every answer and approve; returns how many were corrected."""
    ingestor = open_ingestor(settings)
    if limit is None:
        ingestor.add_samples()
    ingestor.ingest(home.write(settings.data_dir / "papers"), lambda line: None)
    retriever = Retriever(settings, database, ingestor.index, ingestor.embedder)
    store, review = FeedbackStore(database), Review(database)
    with engine_client(settings) as client:
        assistant = Assistant(settings, retriever, client, model)
        for asked in home.asked[:limit]:
            answer = assistant.ask(asked.question)
            conversation = store.start_conversation(USER, asked.question)
            exchange = store.record(conversation, USER, asked.question, answer)
            store.correct(exchange, USER, asked.line or REFUSAL)
    return review.approve_all("benchmark")


def figures(judged: str, before: Sequence[Result], after: Sequence[Result], new: Sequence[bool]) -> list[Row]:
    """The domain's held-out questions, those of them whose answer was never a training answer, the rest."""
    pairs = list(zip(before, after, new, strict=True))

    def share(origin: str, measure: str, only_new: bool = False) -> tuple[float, float]:
        kept = [(a, b) for a, b, fresh in pairs if a.origin == origin and (fresh or not only_new)]
        old, now = asked_of_both([a for a, _ in kept], [b for _, b in kept])
        return mean(now, measure), mean(old, measure)

    now, old = share("heldout", "fact")
    fresh, stale = share("heldout", "fact", only_new=True)
    rows = [
        at_least(f"{judged}: gain of the domain's facts held out", now - old, GAIN, "of questions"),
        Row(f"{judged}: those facts, after beside before", now, "of questions", old),
        Row(f"{judged}: where the line was never a training answer", fresh, "of questions", stale),
    ]
    if any(result.origin == "golden" for result in before):
        general, plain = share("golden", "score")
        rows += [
            Row(f"{judged}: golden score, after beside before", general, "mean", plain),
            Row(f"{judged}: general loss", plain - general, "of the score", None, f"< {LOSS}",
                plain - general < LOSS),
        ]  # fmt: skip
    return rows


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--domain",
        default="Larch Bay",
        help="part of an organisation's name in data/eval/papers.txt [%(default)s]",
    )


if __name__ == "__main__":
    sys.exit(main("loop", (__doc__ or "").splitlines()[0], measure, _arguments))
