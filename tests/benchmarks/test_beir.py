from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from benchmarks.beir import load
from core.errors import StorageError

CORPUS = '{"_id": "d1", "title": "One", "text": "first"}\n\n{"_id": 2, "text": "second"}\n'
QUERIES = (
    '{"_id": "q1", "text": "which is first?"}\n{"_id": "q2", "text": "judged, nothing relevant"}\n'
    '{"_id": "q3", "text": "not judged"}\n'
)
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\t2\t0\nq2\td1\t0\n"


def write(folder: Path, corpus: str = CORPUS, queries: str = QUERIES, qrels: str = QRELS) -> Path:
    (folder / "corpus.jsonl").write_text(corpus, "utf-8")
    (folder / "queries.jsonl").write_text(queries, "utf-8")
    (folder / "qrels.tsv").write_text(qrels, "utf-8")
    return folder


def test_only_queries_with_something_relevant_are_asked(tmp_path: Path) -> None:
    found = load(write(tmp_path))
    assert found.documents == {"d1": ("One", "first"), "2": ("", "second")}
    assert found.queries == {"q1": "which is first?"}
    assert found.grades == {"q1": {"d1": 2, "2": 0}}


def test_compressed_files_and_the_folder_of_the_original_layout(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("corpus.jsonl", "queries.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels.tsv").rename(tmp_path / "qrels" / "test.tsv")
    assert load(tmp_path).grades == {"q1": {"d1": 2, "2": 0}}


def test_judgements_without_a_header(tmp_path: Path) -> None:
    assert load(write(tmp_path, qrels="q1\td1\t1\n")).grades == {"q1": {"d1": 1}}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"corpus": CORPUS + "{broken\n"}, "Line 4 of .*corpus.jsonl"),
        ({"queries": '{"_id": "q1"}\n'}, "Line 1 of .*queries.jsonl"),
        ({"qrels": QRELS + "q1 d1 1\n"}, "Line 5 of .*qrels.tsv"),
        ({"qrels": QRELS + "q1\td1\tvery\n"}, "Line 5 of .*qrels.tsv"),
        ({"qrels": "q9\td1\t1\n"}, "no query with a relevant document"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, changed: dict[str, str], told: str) -> None:
    with pytest.raises(StorageError, match=told):
        load(write(tmp_path, **changed))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path).joinpath("qrels.tsv").unlink()
    with pytest.raises(StorageError, match=r"has no qrels\.tsv"):
        load(tmp_path)
