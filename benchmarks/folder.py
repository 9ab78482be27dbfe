"""A folder of Markdown and HTML files made searchable, beside the embedder alone and a LangChain script.

The files are made by rule: a title and some sections of the written organisations (`finetune.base_papers`),
every second one a web page. Each side runs in a process of its own, one after the other, with its libraries
and model loaded before the clock starts, and all in turns; the quickest turn of each counts, since other
programs on the processors only make it slower (how many of them were busy meanwhile is printed). The product
synchronises the folder (`rag.sync`), and again when nothing changed. The embedder alone embeds the same
passages in one call, after some that set it up. Reading needs processors too, so with all of them busy the
product cannot be faster than the embedder's share of its processor time. The script is what tutorials
show, one step after the other: read every file (web pages through BeautifulSoup; langchain-community, whose
loaders do no more, is not installed), RecursiveCharacterTextSplitter, langchain_chroma with
`SentenceTransformer.encode`. Its chunks have 500 characters, so that MiniLM reads all of each. The two cut
differently, so they are compared by files.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from html import escape
from multiprocessing import get_context
from pathlib import Path

from benchmarks.table import Row, main
from core.settings import load_settings, quiet_environment
from finetune.base_papers import domains

FILES, QUICK, TURNS = 2_000, 100, 3
WARM = 64  # passages
SECTIONS, LINES = 3, 8  # of a file, of a section
CHARACTERS, OVERLAP = 500, 50  # of the script's chunks
LIMIT, SCRIPT, AGAIN = 0.9, 3.0, 0.02  # goals: of the embedder's speed, times the script's, of the first time


@dataclass(frozen=True)
class Part:
    """One side: seconds, chunks, and the peak memory of its process in MiB, its reader's included.

    `processor` is its own processor time and its reader's in seconds, `others` how many processors other
    programs kept busy.
    """

    seconds: float
    processor: float
    others: float
    chunks: int
    again: float = 0.0
    memory: float = 0.0


def measure(options: argparse.Namespace) -> list[Row]:
    """Make the files and run the sides."""
    quiet_environment()
    count = QUICK if options.quick else options.files
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "files")
        folder.mkdir()
        for name, text in made(count):
            (folder / name).write_text(text, "utf-8")
        turns: list[list[Part]] = []
        for turn in range(1 if options.quick else TURNS):
            state = Path(scratch, f"data{turn}")
            sides = ((understudy, state), (embedder, state), (langchain, Path(scratch, f"chroma{turn}")))
            turns.append([_alone(side, folder, where) for side, where in sides])
    product, limit, script = (min(turn, key=lambda part: part.seconds) for turn in zip(*turns, strict=True))
    speed, bare = product.chunks / product.seconds, limit.chunks / limit.seconds
    times = script.seconds / product.seconds
    share = product.again / product.seconds
    return [
        Row("files", count),
        Row("the embedder alone", bare, "chunks/s"),
        Row("Understudy: folder to searchable", speed, "chunks/s", bare, f"ratio >= {LIMIT:g}",
            speed >= LIMIT * bare),
        Row("processor time of the embedder alone, of the product", limit.processor, "s", product.processor),
        Row("processors that other programs kept busy: the embedder alone, the product", limit.others, "",
            product.others),
        Row("LangChain script", script.chunks / script.seconds, "chunks/s", bare),
        Row("Understudy", count / product.seconds, "files/s", count / script.seconds,
            f"ratio >= {SCRIPT:g}", times >= SCRIPT),
        Row("again, nothing changed", product.again, "s", product.seconds, f"ratio <= {AGAIN:g}",
            share <= AGAIN),
        Row("Understudy: peak memory", product.memory, "MiB", script.memory),
    ]  # fmt: skip


def made(count: int) -> Iterator[tuple[str, str]]:
    """Names and texts of `count` files under the seed 0, no two alike."""
    rng = random.Random(0)
    sections = [section for domain in domains() for section in domain.sections]
    for number in range(count):
        parts = [
            (heading, rng.sample(lines, min(LINES, len(lines))))
            for heading, lines in rng.sample(sections, SECTIONS)
        ]
        yield (_page if number % 2 else _markdown)(number, f"Paper {number + 1}", parts)


def _markdown(number: int, title: str, parts: Sequence[tuple[str, list[str]]]) -> tuple[str, str]:
    blocks = [f"# {title}"]
    for heading, lines in parts:
        blocks += [f"## {heading}", *lines]
    return f"{number:05d}.md", "\n\n".join(blocks) + "\n"


def _page(number: int, title: str, parts: Sequence[tuple[str, list[str]]]) -> tuple[str, str]:
    blocks = [f"<h1>{escape(title)}</h1>"]
    for heading, lines in parts:
        blocks += [f"<h2>{escape(heading)}</h2>", *(f"<p>{escape(line)}</p>" for line in lines)]
    body = "\n".join(blocks)
    head = f"<meta charset='utf-8'><title>{escape(title)}</title>"
    return f"{number:05d}.html", f"<!doctype html><html><head>{head}</head><body>\n{body}\n</body></html>\n"


def understudy(folder: Path, state: Path) -> Part:
    """The product, twice."""
    from rag.ingest import open_ingestor

    ingestor = open_ingestor(load_settings({}, data_dir=str(state)))
    ingestor.embedder.warm()
    ingestor.index.open()
    ingestor.embedder.encode(["Some words"] * WARM)
    first = _seconds(lambda: ingestor.sync(folder, lambda line: None))
    again = _seconds(lambda: ingestor.sync(folder, lambda line: None))
    return Part(*first, ingestor.passages.counts()[1], again[0])


def embedder(_folder: Path, state: Path) -> Part:
    """The product's embedder on the product's passages."""
    from rag.ingest import open_ingestor

    ingestor = open_ingestor(load_settings({}, data_dir=str(state)))
    ids = [document.id for document in ingestor.documents.list()]
    texts = [text for document_id in ids for _, text in ingestor.documents.chunk_texts(document_id)]
    ingestor.embedder.encode(texts[:WARM])
    return Part(*_seconds(lambda: ingestor.embedder.encode(texts)), len(texts))


def langchain(folder: Path, state: Path) -> Part:
    """The script."""
    from bs4 import BeautifulSoup
    from langchain_chroma import Chroma
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    from rag.embed import library, weights

    model = library().SentenceTransformer(str(weights()), device="cpu", local_files_only=True)

    class MiniLM(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            found: list[list[float]] = model.encode(texts).tolist()
            return found

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    chunks: list[Document] = []

    def run() -> None:
        documents = []
        for path in sorted(folder.iterdir()):
            text = path.read_text("utf-8")
            if path.suffix == ".html":
                text = BeautifulSoup(text, "lxml").get_text()
            documents.append(Document(page_content=text, metadata={"source": str(path)}))
        splitter = RecursiveCharacterTextSplitter(chunk_size=CHARACTERS, chunk_overlap=OVERLAP)
        chunks.extend(splitter.split_documents(documents))
        Chroma.from_documents(chunks, MiniLM(), persist_directory=str(state))

    model.encode(["Some words"] * WARM)
    return Part(*_seconds(run), len(chunks))


def _seconds(run: Callable[[], object]) -> tuple[float, float, float]:
    """Seconds, seconds of processor time, and how many processors others kept busy."""
    began, own, busy = time.perf_counter(), _own(), _busy()
    run()
    seconds, used = time.perf_counter() - began, _own() - own
    return seconds, used, max(0.0, (_busy() - busy - used) / seconds)


def _own() -> float:
    """Seconds of processor time of this process and of children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _busy() -> float:
    """Seconds of processor time of all programs."""
    import psutil

    total = psutil.cpu_times()
    return float(sum(total) - total.idle - getattr(total, "iowait", 0.0))


def _alone(side: Callable[[Path, Path], Part], folder: Path, state: Path) -> Part:
    """Run a side in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, side, folder, state).result()


def _measured(side: Callable[[Path, Path], Part], folder: Path, state: Path) -> Part:
    quiet_environment()
    part = side(folder, state)
    used = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return replace(part, memory=sum(used) / 1024)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--files", type=int, default=FILES, help=f"how many (default: {FILES})")


if __name__ == "__main__":
    sys.exit(main("folder", (__doc__ or "").splitlines()[0], measure, _arguments))
