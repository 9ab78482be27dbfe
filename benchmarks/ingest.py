"""Documents of every format: how many are read, how much of their text is recovered, how fast.

Files of known endings below DIR are read by the jailed reader, one by one. Where a folder `groundtruth`
beside `sources` holds `NAME.md`, the share of its words that are recovered in order is measured: the longest
common subsequence of the two word lists over the length of the ground truth, computed bit-parallel (Hyyrö
2004, "Bit-parallel LCS-length computation revisited"). Markup does not count as words, and a table counts as
what it says: each row's cells with their column's header, which is how documents are stored here; the row
"raw order" leaves the ground truth's tables as they are.
"""

from __future__ import annotations

import argparse
import html
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from benchmarks.table import Row, at_least, main
from core.errors import DocumentError
from core.settings import load_settings
from rag.archives import members
from rag.chunks import chunk
from rag.filetypes import KINDS
from rag.outline import row_text
from rag.reader import Reader

LONGEST = 65.0
QUICK = 60
GOALS = {"docx": 0.90, "html": 0.90, "pptx": 0.90, "pdf": 0.85}


@dataclass
class Outcome:
    """What became of the files of one format."""

    ok: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    recovered: list[tuple[str, float, float]] = field(default_factory=list)


def in_order(wanted: list[str], found: list[str]) -> float:
    """Share (0 to 1) of `wanted` that stands in `found` in the same order."""
    if not wanted:
        return 1.0
    places: dict[str, int] = {}
    for at, word in enumerate(wanted):
        places[word] = places.get(word, 0) | 1 << at
    full = (1 << len(wanted)) - 1
    row = full
    for word in found:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return (len(wanted) - row.bit_count()) / len(wanted)


def words(text: str) -> list[str]:
    """Lower-case words and numbers of a text."""
    return re.findall(r"[^\W_]+", text.lower())


def plain(markdown: str, *, rows: bool) -> str:
    """Ground truth without its markup; with `rows`, tables become rows that carry their headers."""
    text = re.sub(r"<!--.*?-->", " ", markdown, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)\s]*\)", r"\1", text)
    text = re.sub(r"\$+|</?\w[^<>]*>|\\(?=[_*#|<>])", "", text)
    text = html.unescape(text)
    lines: list[str] = []
    header: list[str] | None = None
    for line in text.splitlines():
        if not rows or not line.lstrip().startswith("|"):
            header = None
            lines.append(line)
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if header is None:
            header = cells
        elif not all(re.fullmatch(r":?-+:?|", cell) for cell in cells):
            lines.append(row_text(header, cells))
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> list[Row]:
    """Read everything below the folder."""
    outcomes: dict[str, Outcome] = {}
    files = list(_files(options.folder))
    if options.quick:
        files = files[:: max(1, len(files) // QUICK)]
    seconds, longest, chunks = 0.0, 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings({}, data_dir=folder)
        with Reader(settings) as reader:
            for path, kind in files:
                began = time.monotonic()
                chunks += _one(
                    path, kind, outcomes.setdefault(kind, Outcome()), (reader, settings.chunk_tokens)
                )
                spent = time.monotonic() - began
                seconds += spent
                longest = max(longest, spent)
    if not options.json:
        _tell(outcomes)
    return _rows(outcomes, (seconds, longest, chunks))


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*")):
        kind = KINDS.get(path.suffix.lower())
        if kind and path.is_file() and "groundtruth" not in path.parts:
            yield path, kind


def _one(path: Path, kind: str, outcome: Outcome, state: tuple[Reader, int]) -> int:
    reader, tokens = state
    data = path.read_bytes()
    count = 0
    try:
        parts = [(m.name, m.data) for m in members(data)] if kind == "zip" else [(path.name, data)]
        for name, content in parts:
            try:
                done = reader.read(name, content)
            except DocumentError:
                if kind != "zip":
                    raise
                continue
            count += len(chunk(done, tokens))
            truth = path.parent.parent / "groundtruth" / f"{path.name}.md"
            truth = truth if truth.exists() else truth.with_name(f"{path.stem}.md")
            if truth.exists() and kind != "zip":
                wanted = truth.read_text("utf-8")
                found = words(done.text)
                shares = [in_order(words(plain(wanted, rows=rows)), found) for rows in (True, False)]
                outcome.recovered.append((path.name, shares[0], shares[1]))
        outcome.ok += 1
    except DocumentError as error:
        outcome.refused.append((path.name, error.message))
    except Exception as error:  # a crash is what this benchmark counts
        outcome.failed.append((path.name, f"{type(error).__name__}: {error}"))
    return count


def _tell(outcomes: dict[str, Outcome]) -> None:
    for kind, outcome in sorted(outcomes.items()):
        for name, reason in outcome.refused:
            print(f"refused  {kind:8} {name}: {reason}")
        for name, reason in outcome.failed:
            print(f"FAILED   {kind:8} {name}: {reason}")
        for name, share, raw in sorted(outcome.recovered, key=lambda one: one[1]):
            print(f"{share:.3f} {raw:.3f}  {kind:8} {name}")
    print()


def _rows(outcomes: dict[str, Outcome], speed: tuple[float, float, int]) -> list[Row]:
    seconds, longest, chunks = speed
    rows: list[Row] = []
    for kind, outcome in sorted(outcomes.items()):
        rows.append(Row(f"{kind}: files read", outcome.ok))
        if outcome.refused:
            rows.append(Row(f"{kind}: refused with a reason", len(outcome.refused)))
    crashes = sum(len(outcome.failed) for outcome in outcomes.values())
    crashes += sum("could not be read (" in why for one in outcomes.values() for _, why in one.refused)
    rows.append(Row("crashes", crashes, goal="0", met=crashes == 0))
    for kind, outcome in sorted(outcomes.items()):
        if outcome.recovered:
            share = mean(one[1] for one in outcome.recovered)
            name = f"{kind}: words recovered in order, {len(outcome.recovered)} files"
            rows.append(at_least(name, share, GOALS[kind]) if kind in GOALS else Row(name, share))
            rows.append(Row(f"{kind}: the same, raw order", mean(one[2] for one in outcome.recovered)))
    rows.append(Row("longest file", longest, "s", goal=f"<= {LONGEST:g}", met=longest <= LONGEST))
    rows.append(Row("chunks per second, without embedding", chunks / seconds if seconds else 0.0, "1/s"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    rows.append(Row("peak memory of the reader", peak, "MiB"))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [*rows, Row("peak memory of the parent", own, "MiB")]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder of documents")


if __name__ == "__main__":
    sys.exit(main("ingest", (__doc__ or "").splitlines()[0], measure, _arguments))
