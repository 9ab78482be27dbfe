"""How well a model reads: golden questions and public sets, beside quoting and two baselines, in one run.

All read the same frozen prompts. Quoting alone is the product without a model: the unit that fits best, or
a refusal when none fits. With `--sets` the held-out parts of XQuAD, CLAPNQ and PubMedQA are read too, beside
the sentence that MiniLM finds most similar and the first sentence of the top passage.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks import question_sets
from benchmarks.question_sets import SetCase
from benchmarks.table import Row, at_least, main
from core.catalog import CatalogModel, resolve
from core.settings import PROJECT, Settings, load_settings, quiet_environment
from evaluation.cases import Case, freeze_cases, read_golden
from evaluation.metrics import LONGEST, fact_match, token_f1
from evaluation.run import Result, Show, as_shown, evaluate, quote_replies
from rag.citations import Likelihood, Similarity
from rag.citations import resolve as resolve_reply
from rag.crossencoder import CrossEncoder
from rag.embed import Embedder
from rag.model import ModelClient, engine_client
from rag.shown import Showing
from rag.words import words

GOLDEN = PROJECT / "data" / "eval" / "golden.jsonl"
QUICK_CASES = 24
# Goals of the reader trained without a GPU.
GOLDEN_GOAL, XQUAD_GOAL, CITED_GOAL, REFUSED_GOAL, WRONGLY_REFUSED = 0.7, 0.6, 0.8, 0.5, 0.25


@dataclass(frozen=True)
class Finder:
    """What knows which line answers, where there is no index."""

    similarity: Similarity | None
    answers: Likelihood | None


def showing(settings: Settings, model: CatalogModel) -> Show:
    """What the product shows of a reply of the bare model."""
    finder = Finder(embedder().similarity, answers())
    product = Showing(model, settings.support_threshold, finder, lambda adapter, question: False)
    return Show(
        "shown", lambda case, reply, adapter: product.show(case.question, reply, case.passages, adapter).said
    )


def measure(options: argparse.Namespace) -> list[Row]:
    """Load the samples into a scratch folder, freeze the prompts, ask, and compare."""
    quiet_environment()
    limit = QUICK_CASES if options.quick else None
    with tempfile.TemporaryDirectory() as scratch:
        settings = replace(load_settings(model=options.model), data_dir=Path(scratch), engine_port=0)
        model, _ = resolve(settings)
        show = showing(settings, model)
        golden = golden_cases(settings, model, limit)
        with engine_client(settings) as client:
            rows = golden_rows(model.name, golden, client, show)
            for name in question_sets.SETS if options.sets else ():
                cases = question_sets.load(name, options.sets, model, embedder(), limit, answers())
                replies = evaluate(client, [case.case for case in cases], "base")
                read = [pair for pair in zip(cases, replies, strict=True) if pair[1].asked]
                if read:
                    asked, said = [case for case, _ in read], [reply for _, reply in read]
                    rows += READ[name](asked, said, show)
            return [*rows, memory_row()]


def golden_cases(settings: Settings, model: CatalogModel, limit: int | None) -> list[Case]:
    """The golden questions with the prompts that the product builds from the sample documents."""
    from rag.ingest import open_ingestor
    from rag.prompt import Prompt, build
    from rag.retrieve import Retriever

    ingestor = open_ingestor(settings)
    ingestor.add_samples()
    retriever = Retriever(settings, ingestor.passages.database, ingestor.index, ingestor.embedder)
    names = {document.id: document.name for document in ingestor.documents.list()}

    def ask(question: str) -> Prompt:
        return build(question, retriever.read_for(question, model), model)

    rows = read_golden(GOLDEN)
    step = 1 if limit is None else max(1, len(rows) // limit)
    return freeze_cases(rows[::step], (), ask, names, settings.data_dir / "cases")


@cache
def embedder() -> Embedder:
    """One for the whole run: it takes seconds to load."""
    return Embedder()


@cache
def answers() -> Likelihood | None:
    """The cross-encoder as the product has it."""
    return CrossEncoder().opinion(load_settings())


def quoted_alone(cases: Sequence[Case]) -> list[Result]:
    """The product without a model."""
    return quote_replies(cases, embedder().similarity, answers())


def golden_rows(name: str, cases: Sequence[Case], client: ModelClient, show: Show) -> list[Row]:
    """Figures on the golden questions, beside quoting alone."""
    replies = evaluate(client, cases, "base")  # every prompt was built to fit
    quoted = quoted_alone(cases)
    right, beside = mean(replies, cases, "citation", True), mean(quoted, cases, "citation", True)
    seconds = sum(r.ms for r in replies) / 1000
    shown = shown_of(cases, replies, show)

    def row(label: str, measure: str, answerable: bool) -> Row:
        unit = "of answerable" if answerable else "of unanswerable"
        values = [mean(r, cases, measure, answerable) for r in (replies, quoted)]
        return Row(f"golden: {label}", values[0], unit, values[1])

    return [
        at_least(f"{name}, golden: fact and citation right", right, GOLDEN_GOAL, "of answerable", beside),
        at_least(
            "golden, as shown: the same",
            mean(shown, cases, "citation", True),
            GOLDEN_GOAL,
            "of answerable",
            beside,
        ),
        row("fact right", "fact", True),
        row("evidence in the prompt (retrieval's limit)", "reachable", True),
        row("wrongly refused", "refused", True),
        row("rightly refused", "refused", False),
        whole_row("golden", shown, quoted),
        Row(
            "tokens written",
            sum(r.completion_tokens for r in replies) / seconds,
            "per second, reading included",
        ),
        Row("tokens read", sum(r.prompt_tokens for r in replies) / seconds, "per second, writing included"),
    ]


def mean(results: Sequence[Result], cases: Sequence[Case], measure: str, answerable: bool) -> float:
    """Mean of a measure over the answerable cases, or over the others."""
    pairs = zip(results, cases, strict=True)
    chosen = [float(r.scores[measure]) for r, case in pairs if case.answerable == answerable]
    return sum(chosen) / max(1, len(chosen))


def whole_row(name: str, shown: Sequence[Result], quoted: Sequence[Result]) -> Row:
    """The product as a whole, which quotes where it does not believe the model: never worse than quoting."""
    value, beside = (sum(r.score for r in part) / len(shown) for part in (shown, quoted))
    return Row(f"{name}: score of what is shown", value, "mean", beside, ">= reference", value >= beside)


def shown_of(cases: Sequence[Case], replies: Sequence[Result], show: Show) -> list[Result]:
    """The replies as users would see them, judged anew."""
    return [as_shown(case, reply, show) for case, reply in zip(cases, replies, strict=True)]


def xquad_rows(cases: Sequence[SetCase], replies: Sequence[Result], show: Show) -> list[Row]:
    """Facts found in held-out articles, the gold paragraph among five."""
    plain = [case.case for case in cases]
    right = mean(replies, plain, "fact", True)
    similar, first = (
        sum(_holds(case, text) for case, text in zip(plain, texts, strict=True)) / len(plain)
        for texts in ([case.similar for case in cases], [case.first for case in cases])
    )
    cited = mean(replies, plain, "citation", True) / right if right else 0.0
    ratio = right / similar if similar else 0.0
    return [
        Row("xquad: fact match, beside the most similar sentence", right, "of questions", similar,
            f"ratio >= {XQUAD_GOAL}", ratio >= XQUAD_GOAL),
        Row("xquad: fact match, beside the first sentence of the top passage", right, "of questions", first),
        at_least("xquad: citation right when the fact is", cited, CITED_GOAL, "of facts"),
        Row("xquad: wrongly refused", mean(replies, plain, "refused", True), "of questions"),
        Row("xquad: evidence in the prompt", mean(replies, plain, "reachable", True), "of questions"),
        whole_row("xquad", shown_of(plain, replies, show), quoted_alone(plain)),
    ]  # fmt: skip


def clapnq_rows(cases: Sequence[SetCase], replies: Sequence[Result], show: Show) -> list[Row]:
    """Search questions on one passage, half of them without an answer."""
    plain = [case.case for case in cases]
    quoted, shown = quoted_alone(plain), shown_of(plain, replies, show)
    refused = [case for case, reply in zip(plain, replies, strict=True) if reply.scores["refused"]]
    precision = sum(not case.answerable for case in refused) / max(1, len(refused))
    answered = [(c, r) for c, r in zip(cases, replies, strict=True) if c.gold and not r.scores["refused"]]
    found = sum(_cites(case, reply) for case, reply in answered) / max(1, len(answered))
    return [
        *_refusal_rows("clapnq", plain, replies, quoted),
        *_refusal_rows("clapnq, as shown", plain, shown, quoted),
        whole_row("clapnq", shown, quoted),
        Row("clapnq: refusals that are right (precision)", precision, "of refusals"),
        Row("clapnq: cites a sentence that the annotators chose", found, "of answerable answered",
            sum(case.similar in case.gold for case, _ in answered) / max(1, len(answered))),
    ]  # fmt: skip


def _refusal_rows(
    name: str, cases: Sequence[Case], replies: Sequence[Result], quoted: Sequence[Result]
) -> list[Row]:
    wrongly, rightly = (mean(replies, cases, "refused", answerable) for answerable in (True, False))
    beside = [mean(quoted, cases, "refused", answerable) for answerable in (True, False)]
    return [
        at_least(f"{name}: unanswerable refused (recall)", rightly, REFUSED_GOAL, "of unanswerable",
                 beside[1]),
        Row(f"{name}: answerable wrongly refused", wrongly, "of answerable", beside[0],
            f"<= {WRONGLY_REFUSED}", wrongly <= WRONGLY_REFUSED),
    ]  # fmt: skip


def pubmedqa_rows(cases: Sequence[SetCase], replies: Sequence[Result], show: Show) -> list[Row]:
    """Likeness of the reply to the paper's own conclusion (token F1)."""
    texts = [resolve_reply(r.reply, c.case.passages).text for c, r in zip(cases, replies, strict=True)]
    model, similar = (
        sum(token_f1(text, case.case.facts[0]) for case, text in zip(cases, part, strict=True)) / len(cases)
        for part in (texts, [case.similar for case in cases])
    )
    refused = mean(replies, [case.case for case in cases], "refused", True)
    return [
        Row("pubmedqa: token F1 with the paper's conclusion", model, "mean", similar),
        Row("pubmedqa: refused", refused, "of questions"),
    ]


READ: dict[str, Callable[[Sequence[SetCase], Sequence[Result], Show], list[Row]]] = {
    "xquad": xquad_rows,
    "clapnq": clapnq_rows,
    "pubmedqa": pubmedqa_rows,
}


def memory_row() -> Row:
    """Resident memory of the engine process that this run started."""
    import psutil

    engines = [p for p in psutil.Process().children(recursive=True) if "engine.server" in p.cmdline()]
    return Row("memory of the engine", sum(p.memory_info().rss for p in engines) / 2**20, "MiB")


def _holds(case: Case, text: str) -> bool:
    return len(words(text)) <= LONGEST and fact_match(text, case.facts, case.evidence)


def _cites(case: SetCase, reply: Result) -> bool:
    resolved = resolve_reply(reply.reply, case.case.passages)
    return any(unit.text in case.gold for unit in resolved.units)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="builtin", help="a catalog id or a GGUF file (default: builtin)")
    parser.add_argument(
        "--sets", type=Path, help="folder of the public question sets; default: golden questions only"
    )


if __name__ == "__main__":
    sys.exit(main("reader", (__doc__ or "").splitlines()[0], measure, _arguments))
