"""The Search page: what each stage of the search finds, for one question or for a gold set."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import streamlit as st

from app.embedder_view import embedder
from app.resources import USER, Resources, resources
from app.wording import short
from core.errors import UnderstudyError
from core.settings import PROJECT
from core.types import Passage
from evaluation import bench
from evaluation.gold import keep_gold, names_of, read_files
from rag.citations import safe_markdown
from rag.prompt import question_line

STAGES = {
    "lexical": ("Words", "BM25: rare words of the question count most."),
    "dense": ("Meaning", "Cosine similarity of MiniLM's vectors."),
    "fused": ("Both", "The two scores mixed."),
    "reranked": ("Feedback", "Mixed again after the question moved towards the best passages."),
    "voted": ("Votes", "Readers' votes on earlier answers moved passages a little."),
    "answers": ("Read again", "The cross-encoder reads the best lines with the question."),
}
SHOWN = 5  # passages of a stage
SAMPLES = PROJECT / "data" / "eval" / "golden.jsonl"


def page() -> None:
    """Draw the page once."""
    parts = resources()
    st.title("Search", anchor=False)
    st.caption("What each stage of the search finds, before any model writes an answer.")
    single, many, votes = st.tabs(["One question", "Gold set", "Learn from votes"])
    with single:
        one_question(parts)
    with many:
        gold_set(parts)
    with votes:
        embedder(parts)


def one_question(parts: Resources) -> None:
    """The stages side by side."""
    question = st.text_input("Question", placeholder="What would a reader ask?", key="bench_question")
    if not question:
        st.info("Type a question to see which passages each stage puts first.", icon=":material/search:")
        return
    try:
        with st.spinner("Searching"):
            found = parts.assistant.retriever.stages(question_line(question), 10 * SHOWN, USER)
    except UnderstudyError as error:
        st.warning(safe_markdown(str(error)), icon=":material/warning:")
        return
    if not any(found.values()):
        st.info("Nothing is found. Add documents first.", icon=":material/description:")
        return
    for column, (stage, passages) in zip(st.columns(len(found)), found.items(), strict=True):
        title, about = STAGES[stage]
        column.markdown(f"**{title}**", help=about)
        for place, passage in enumerate(passages[:SHOWN], 1):
            with column.container(border=True):
                st.markdown(f"{place}. {safe_markdown(short(passage.document, 60))}")
                st.caption(safe_markdown(_line(passage, stage)))
        if not passages:
            column.caption("Not available now.")


def _line(passage: Passage, stage: str) -> str:
    """The line that the cross-encoder liked, or the passage's beginning, with the stage's score."""
    text = passage.units[0].text if passage.units else passage.text
    score = passage.scores.get(stage)
    return short(text, 120) + (f" ({score:.3g})" if score is not None else "")


def gold_set(parts: Resources) -> None:
    """Figures over many questions, and what changed since the last time."""
    folder = parts.settings.data_dir / "bench"
    st.caption(
        "A CSV with the columns question and document, one row for each document that answers; or BEIR's"
        " layout, queries.jsonl and qrels.tsv, as files or in a ZIP. A document is named by its file name,"
        " its path, its title or its id. Without one, the questions about the sample documents are used."
    )
    files = st.file_uploader(
        "Gold set",
        type=["csv", "jsonl", "tsv", "gz", "zip"],
        accept_multiple_files=True,
        label_visibility="collapsed",
        key="bench_gold",
    )
    if st.button("Measure", type="primary", icon=":material/speed:", key="bench_measure"):
        measure(parts, folder, {file.name: file.getvalue() for file in files})
    results = bench.kept(folder)
    if not results:
        st.info("Nothing was measured yet.", icon=":material/speed:")
        return
    show(results[0])
    same = [old for old in results[1:] if _questions(old) == _questions(results[0])]
    if same:
        compare(same[0], results[0])


def measure(parts: Resources, folder: Path, files: dict[str, bytes]) -> None:
    """Ask every question; leaving the page or pressing something else stops it, and nothing is kept."""
    try:
        gold = read_files(files or {SAMPLES.name: SAMPLES.read_bytes()})
        if files:
            keep_gold(folder, gold)
        names = names_of(parts.settings, parts.database)
        bar = st.progress(0.0)

        def tell(done: float) -> None:
            bar.progress(done, text=f"{round(done * len(gold))} of {len(gold)} questions")

        bench.keep(folder, bench.measure(parts.assistant.retriever, gold, names, tell))
        bar.empty()
    except UnderstudyError as error:
        st.error(safe_markdown(str(error)), icon=":material/error:")


def show(result: dict[str, Any]) -> None:
    """The means of every stage."""
    when = datetime.fromtimestamp(result["at"] / 1000)
    st.markdown(f"**{len(result['questions'])} questions**, measured {when:%d %b %Y, %H:%M}")
    rows = [
        {"stage": STAGES[stage][0]}
        | {name: round(value, 3) for name, value in zip(bench.MEASURES, values, strict=False)}  # once fewer
        for stage, values in result["means"].items()
    ]
    st.dataframe(rows, hide_index=True)
    if unknown := result.get("unknown"):
        st.warning(
            f"Documents of the gold set that are not here: {len(unknown)}. They count as not found.",
            icon=":material/warning:",
        )
        st.dataframe(unknown, hide_index=True)


def compare(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Wins and losses of the last stage since the run before on the same questions."""
    found = bench.changes(before, after)
    won = sum(change.after > change.before for change in found)
    when = datetime.fromtimestamp(before["at"] / 1000)
    st.markdown(f"Since {when:%d %b %Y, %H:%M}: {won} questions better, {len(found) - won} worse (nDCG@10)")
    if found:
        rows = [
            {"question": one.question, "before": round(one.before, 3), "after": round(one.after, 3)}
            for one in found
        ]
        st.dataframe(rows, hide_index=True)


def _questions(result: dict[str, Any]) -> set[str]:
    return {row["question"] for row in result["questions"]}


page()
