from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st

from core.db import Database
from rag import lexical
from rag.access import EVERYBODY, Access
from rag.ingest import Ingestor
from rag.lexical import match_terms, search
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


def test_chunks_may_be_passed_over_and_leave_the_others_scores(filled: Database) -> None:
    every = search(filled, "notice period lunch", 5)
    assert len(every) > 1
    assert search(filled, "notice period lunch", 5, without=[every[0][0], 10**6]) == every[1:]


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


def test_function_words_are_dropped_unless_nothing_is_left() -> None:
    assert match_terms("What is the notice period?") == ['"notice"', '"period"']
    assert match_terms("What is this?") == ['"what"', '"is"', '"this"']
    assert match_terms("error F05!") == ['"error"', '"f05"']
    assert match_terms("?!") == []
    assert match_terms("Rates: are rates fair?") == ['"rates"', '"rates"', '"fair"']
    assert match_terms("x " * 10_000) == ['"x"', '"x"', '"x"']
    assert len(match_terms(" ".join(f"w{i}" for i in range(10_000)))) == 64


def test_a_word_said_twice_weighs_twice(filled: Database) -> None:
    once, twice = (dict(search(filled, question, 5)) for question in ("lunch", "lunch lunch"))
    assert once
    assert twice == pytest.approx({i: 2 * score for i, score in once.items()})


def few_scored(monkeypatch: pytest.MonkeyPatch, passages: int) -> None:
    monkeypatch.setattr(lexical, "SCORED", passages)
    monkeypatch.setattr(lexical, "PER_WORD", 0)


def test_rarer_words_are_taken_first_while_their_passages_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    few_scored(monkeypatch, 10)
    assert lexical.rarest({"a": 3, "b": 7, "c": 1}) == {"a", "c"}
    assert lexical.rarest({"a": 3, "b": 6, "c": 1}) == {"a", "b", "c"}
    assert lexical.rarest({"a": 30, "b": 20}) == {"b"}
    assert lexical.rarest({"a": 30, "unknown": 0}) == {"a", "unknown"}
    monkeypatch.setattr(lexical, "PER_WORD", 6)
    assert lexical.rarest({"a": 3, "b": 8, "c": 1}) == {"a", "b", "c"}


def add_plans(ingestor: Ingestor, reader: Reader, prices: range, access: Access = EVERYBODY) -> None:
    for price in prices:
        text = f"# Plan {price}\n\nThe price of it is {price} EUR, and the notice period {price} days.\n"
        ingestor.documents.add(f"{price}.md", text.encode(), "upload", reader, access)
    ingestor.process_pending()


def test_common_words_count_where_a_rarer_one_stands(
    ingestor: Ingestor, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small budget the passages with a rarer word are found as before, and those without are not."""
    add_plans(ingestor, reader, range(10, 22))
    database, question = ingestor.passages.database, "notice period of plan 15 for a price of 17?"
    everything = search(database, question, 50)
    assert len(everything) == 12
    few_scored(monkeypatch, 5)
    few = search(database, question, 50)
    assert [i for i, _ in few] == [i for i, _ in everything[:2]]
    assert dict(few) == pytest.approx(dict(everything[:2]))
    assert [i for i, _ in search(database, question, 1)] == [everything[0][0]]
    # only common words, and one that stands nowhere: the question is answered all the same
    assert len(search(database, "notice periods of Xanadu", 50)) == 12


def test_hidden_passages_do_not_make_a_word_common(
    ingestor: Ingestor, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingestor.documents.add("guide.md", HANDBOOK, "upload", reader)
    ingestor.process_pending()
    database, question = ingestor.passages.database, "notice period and parking"
    before = [i for i, _ in search(database, question, 50)]
    assert len(before) == 2
    add_plans(ingestor, reader, range(10, 22), Access("api:mallory", "owner"))
    few_scored(monkeypatch, 5)
    assert sorted(i for i, _ in search(database, question, 50)) == sorted(before)
    assert len(search(database, "notice", 50, "api:mallory")) == 13
