"""`understudy ask`: one question from the command line, with its sources."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from dataclasses import asdict

from core.catalog import resolve
from core.db import Database
from core.errors import run_main
from core.settings import Settings, load_settings, quiet_environment
from core.types import Answer, Citation
from rag.access import OPERATOR
from rag.answer import Assistant
from rag.memory import marked
from rag.model import engine_client
from rag.prompt import question_line
from rag.retrieve import Retriever
from rag.sources import web_addresses
from rag.trace import search_notice

SHOWN = (  # of an answer, as JSON beside its text
    "mode", "supported", "citations", "passages", "model", "adapter", "finish_reason", "timings", "trace",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """`understudy ask "question"`: the answer and its sources, or everything as JSON."""
    parser = argparse.ArgumentParser(
        prog="understudy ask",
        description="Answer one question from the documents, with citations. Uses the engine of a running"
        " `understudy serve`, or starts one for this question.",
    )
    parser.add_argument("question", nargs="+", help="the question")
    parser.add_argument(
        "--json", action="store_true", help="print answer, citations, passages and timings as JSON"
    )
    parser.add_argument(
        "--model", default="live", metavar="live|base|ID", help="what answers (default: live)"
    )
    options = parser.parse_args(arguments)
    quiet_environment()
    settings = load_settings()
    answer = _ask_once(settings, " ".join(options.question), options.model)
    urls = web_addresses(Database(settings.database), [cited.document_id for cited in answer.citations])
    if options.json:
        shown = asdict(answer)
        for cited in shown["citations"]:
            cited["url"] = urls.get(cited["document_id"], "")
        print(json.dumps({"answer": shown["text"]} | {key: shown[key] for key in SHOWN}, ensure_ascii=False))
    else:
        lines = [f"{source_line(c)} {urls.get(c.document_id, '')}".rstrip() for c in answer.citations]
        print("\n\n".join([marked(answer), "\n".join(lines), search_notice(answer)]).strip())
    return 0


def _ask_once(settings: Settings, question: str, model: str) -> Answer:
    """Answer without a running server: a new data folder gets the samples, the engine starts if need be."""
    from rag.ingest import open_ingestor

    question_line(question)
    record, _ = resolve(settings)
    ingestor = open_ingestor(settings)
    ingestor.add_samples(lambda line: print(line, file=sys.stderr))
    retriever = Retriever(settings, ingestor.passages.database, ingestor.index, ingestor.embedder)
    threading.Thread(target=ingestor.embedder.warm, daemon=True).start()  # while the engine starts
    with engine_client(settings) as client:
        return Assistant(settings, retriever, client, record).ask(question, model=model, viewer=OPERATOR)


def source_line(citation: Citation) -> str:
    """`[1] Employee handbook > Leaving, page 2: the quoted unit`."""
    path = f"{citation.document} > {citation.heading}" if citation.heading else citation.document
    page = f", page {citation.page}" if citation.page else ""
    edited = " (edited passage)" if citation.edited else ""
    return f"[{citation.number}] {path}{page}{edited}: {citation.quote}"


if __name__ == "__main__":
    run_main(main)
