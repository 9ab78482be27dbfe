"""Gold sets are read or refused with the line, and their documents found by whatever they are called."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from core.db import Database
from core.errors import QuestionError
from core.files import sha256_of
from core.settings import PROJECT, load_settings
from evaluation.gold import Gold, Names, Wanted, keep_gold, kept_gold, names_of, read_files, read_gold
from rag.documents import DocumentStore
from rag.reader import Reader

CSV = "question,document,note\nWho pays?,a.md,x\nWho pays?,b.md,\n Who leaves? ,a.md,\nWho pays?,a.md,\n,,\n"
QUERIES = b"""{"_id": "q1", "text": "Who pays?"}

{"_id": "q2", "text": "Who leaves?"}
{"_id": "q3", "text": "?"}
"""
QRELS = b"query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t1\nq1\td1\t2\nq2\td1\t1\nq3\td1\t0\n"
CORPUS = b'{"_id": "d1", "title": "Fees", "text": "x"}\n{"_id": "d2", "text": "y"}\n'
WANTED = [
    Gold("Who pays?", (Wanted("d1", 2, title="Fees"), Wanted("d2"))),
    Gold("Who leaves?", (Wanted("d1", title="Fees"),)),
]
BEIR = {"queries.jsonl": QUERIES, "qrels.tsv": QRELS, "corpus.jsonl": CORPUS}


def zipped(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return packed.getvalue()


def test_a_csv_is_read_and_what_stands_twice_counts_once() -> None:
    gold = read_gold(CSV.encode("utf-8-sig"))
    assert gold == [
        Gold("Who pays?", (Wanted("a.md"), Wanted("b.md"))),
        Gold("Who leaves?", (Wanted("a.md"),)),
    ]
    assert [wanted.line for one in gold for wanted in one.documents] == [2, 3, 4]
    [graded] = read_gold(b"question,document,grade\nWho?,a.md,3\n")
    assert graded.documents == (Wanted("a.md", 3),)


def test_the_golden_questions_are_a_gold_set() -> None:
    gold = read_gold((PROJECT / "data" / "eval" / "golden.jsonl").read_bytes())
    assert len(gold) == 50
    assert all(wanted.name.count(".") == 1 for one in gold for wanted in one.documents)


@pytest.mark.parametrize(
    "files",
    [
        BEIR,
        {
            "queries.jsonl.gz": gzip.compress(QUERIES),
            "qrels.tsv": QRELS,
            "corpus.jsonl.gz": gzip.compress(CORPUS),
        },
        {"set.zip": zipped({f"set/{name}": data for name, data in BEIR.items()})},
        {
            "set.zip": zipped(
                {"q/queries.jsonl": QUERIES, "q/qrels/test.tsv": QRELS, "q/corpus.jsonl": CORPUS}
            )
        },
        {**BEIR, "qrels.tsv": QRELS.partition(b"\n")[2]},  # without its header
        {name: data.replace(b"\n", b"\r\n") for name, data in BEIR.items()},
    ],
    ids=["files", "gzip", "zip", "qrels in a folder", "no header", "CRLF"],
)
def test_beir_is_read_as_files_and_in_a_zip(files: dict[str, bytes]) -> None:
    gold = read_files(files)
    assert gold == WANTED
    assert gold[0].documents[0].line in (3, 4)  # the line with the best grade


def test_beir_without_a_corpus_has_no_titles() -> None:
    gold = read_files({"queries.jsonl": QUERIES, "qrels.tsv": QRELS})
    assert gold[0].documents == (Wanted("d1", 2), Wanted("d2"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "lacks the columns"),
        (b"q,d\n1,2\n", "lacks the columns"),
        (b"question,document\n,\n", "holds no question"),
        (b"question,document\nWho?,a.md\n,a.md\n", "Line 3 .* has no question"),
        (b"question,document\nWho?,\n", "Line 2 .* has no document"),
        (b"question,document\nCan I, a student, pay?,a.md\n", "Line 2 .* more cells than columns"),
        (b'question,document\n"Who?,a.md\n', "Line 2 .* is no line of a CSV"),
        (b"question,document,grade\nWho?,a.md,good\n", "Line 2 .* the grade 'good'"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"question": "x", "sources": ["a"]}\n[1]\n', "Line 2"),
        (b'{"question": "x"', "Line 1"),
        (b"question,document\n" + b"".join(b"q%d,a\n" % n for n in range(5001)), "5,001 questions"),
        (b"PK\x03\x04 and no more", "The ZIP cannot be read"),
        (zipped({"notes.txt": b"x"}), "lacks queries.jsonl"),
    ],
)
def test_what_is_no_gold_set_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(QuestionError, match=words):
        read_gold(data)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"qrels.tsv": QRELS + b"q9\td1\t1\n"}, "Line 7 of qrels.tsv names the query 'q9'"),
        ({"qrels.tsv": QRELS + b"q1\td1\n"}, "Line 7 of qrels.tsv is not query-id"),
        ({"qrels.tsv": QRELS + b"q1\td1\thigh\n"}, "Line 7 of qrels.tsv has the grade 'high'"),
        ({"qrels.tsv": b"q3\td1\t0\n"}, "holds no question"),
        ({"queries.jsonl": QUERIES + b'{"_id": "q4"}\n'}, "Line 5 of queries.jsonl is not a JSON object"),
        ({"queries.jsonl": QUERIES + b'{"_id": "q1", "text": "Again?"}\n'}, "Line 5 .* repeats the id 'q1'"),
        ({"queries.jsonl": b"[1]\n"}, "Line 1 of queries.jsonl"),
        ({"corpus.jsonl": CORPUS + b"{}\n"}, "Line 3 of corpus.jsonl"),
        ({"queries.jsonl": gzip.compress(QUERIES)[:20]}, "not a whole gzip"),
    ],
)
def test_a_line_that_cannot_be_meant_is_refused(changed: dict[str, bytes], words: str) -> None:
    with pytest.raises(QuestionError, match=words):
        read_files(BEIR | changed)


def test_documents_are_found_by_id_path_name_and_title(tmp_path: Path) -> None:
    settings = load_settings({}, data_dir=str(tmp_path / "data"))
    database = Database(settings.database)
    store = DocumentStore(database, settings)
    with Reader(settings) as reader:
        fees = store.add("fees.md", b"# What it costs\n\nSeven EUR.", "upload", reader)
        other = store.add("other.md", b"# fees.md\n\nAbout that file.", "sync", reader)
    with database.write() as connection:
        connection.execute("UPDATE documents SET status = 'ready'")
        connection.execute(
            "INSERT INTO sources (root, path, bytes, modified_ns, inode, hash, documents, reader)"
            " VALUES ('/docs', 'deep/other.md', 1, 1, 1, '', ?, '')",
            (json.dumps([other.id]),),
        )
    names = names_of(settings, database)
    for name in (fees.id, "fees.md", "FEES.md", "what it costs"):
        assert names.find(Wanted(name)) == (fees.id,), name
    for name in ("deep/other.md", "/docs/deep/other.md", "other.md"):
        assert names.find(Wanted(name)) == (other.id,), name
    assert names.find(Wanted("d17", title="What it costs")) == (fees.id,)
    assert names.find(Wanted("gone.md")) == ()
    database.close()


def test_documents_that_share_a_name_are_all_meant() -> None:
    assert Names([("1", ["a.md"]), ("2", ["a.md"])], [("3", ["a.md"])]).find(Wanted("a.md")) == ("1", "2")


def test_a_gold_set_is_kept_and_those_of_earlier_versions_are_read(tmp_path: Path) -> None:
    assert kept_gold(tmp_path) == []
    keep_gold(tmp_path / "bench", WANTED)
    assert kept_gold(tmp_path / "bench") == WANTED
    before = sha256_of(tmp_path / "bench" / "gold.txt")
    keep_gold(tmp_path / "bench", kept_gold(tmp_path / "bench"))
    assert sha256_of(tmp_path / "bench" / "gold.txt") == before
    for old in (CSV, '{"question": "Who pays?", "sources": ["a.md"]}\n'):
        (tmp_path / "gold.txt").write_text(old, "utf-8")
        assert kept_gold(tmp_path)[0].documents[0] == Wanted("a.md")
