from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st

from core.db import Database
from rag.ingest import Ingestor
from rag.lexical import match_expression, search
from rag.reader import Reader
from tests.rag.conftest import HANDBOOK


@pytest.fixture
def filled(ingestor: Ingestor, reader: Reader) -> Database:
    ingestor.documents.add("guide.md", HANDBOOK, "upload", reader)
    ingestor.process_pending()
    return ingestor.passages.database


def test_words_find_their_chunk(filled: Database, ingestor: Ingestor) -> None:
    ids = [i for i, _ in search(filled, "How long is the notice period?", 5)]
    assert "notice period is 30 days" in ingestor.passages.get(ids)[ids[0]].text


def test_headings_are_searched_too(filled: Database) -> None:
    assert search(filled, "leaving", 5)


@options(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(st.text(alphabet="ab \"'*():^-+{}[]\\;%&|ANDORNET0\u0000\n", max_size=60))
def test_no_text_is_query_syntax(filled: Database, question: str) -> None:
    search(filled, question, 5)


@pytest.mark.parametrize(
    "question",
    ['" OR 1', "NEAR(a b)", "text:notice", "notice*", "a AND NOT b", "'; DROP TABLE chunks; --", "^x", ""],
)
def test_operators_are_words(filled: Database, question: str) -> None:
    search(filled, question, 5)
    assert filled.read is not None


def test_pending_documents_are_not_found(ingestor: Ingestor, reader: Reader) -> None:
    ingestor.documents.add("guide.md", HANDBOOK, "upload", reader)
    assert search(ingestor.passages.database, "notice period", 5) == []


def test_match_expression_drops_function_words_unless_nothing_is_left() -> None:
    assert match_expression("What is the notice period?") == '"notice" OR "period"'
    assert match_expression("What is this?") == '"what" OR "is" OR "this"'
    assert match_expression("error F05!") == '"error" OR "f05"'
    assert match_expression("?!") == ""
    assert match_expression("Rates: are rates fair?") == '"rates" OR "rates" OR "fair"'
    assert match_expression("x " * 10_000) == '"x" OR "x" OR "x"'
    assert match_expression(" ".join(f"w{i}" for i in range(10_000))).count(" OR ") == 63


def test_a_word_said_twice_weighs_twice(filled: Database) -> None:
    once, twice = (dict(search(filled, question, 5)) for question in ("lunch", "lunch lunch"))
    assert once
    assert twice == pytest.approx({i: 2 * score for i, score in once.items()})
