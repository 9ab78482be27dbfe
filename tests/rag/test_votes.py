"""Votes become priors of the passages that answers cited, and stop being so when they are taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.catalog import BUILTIN
from core.db import Database
from core.settings import Settings
from core.types import Answer, Citation, Passage
from feedback.review import Review
from feedback.store import REASONS, FeedbackStore
from rag import prompt
from rag.index import Index
from rag.ingest import Ingestor
from rag.priors import DAY_MS, SHRINKAGE, Said
from rag.reader import Reader
from rag.retrieve import Retriever
from rag.votes import BLAMES_THE_SOURCE, Votes
from tests.rag.conftest import HANDBOOK

QUESTION = "What does parking cost?"
CANTEEN = b"# Canteen\n\n## Food\n\nSoup is served at noon.\n\n## Car park\n\nParking costs 3 EUR a day.\n"


@pytest.fixture
def retriever(ingestor: Ingestor, reader: Reader, settings: Settings, index: Index) -> Retriever:
    for name, data in (("guide.md", HANDBOOK), ("canteen.md", CANTEEN)):
        ingestor.documents.add(name, data, "upload", reader)
    ingestor.process_pending()
    chosen = replace(settings, vote_priors=True, vote_half_life=100.0)
    return Retriever(chosen, ingestor.passages.database, index, ingestor.embedder)


@pytest.fixture
def store(database: Database) -> FeedbackStore:
    return FeedbackStore(database)


def answered(passage: Passage, passages: list[Passage], question: str = QUESTION) -> Answer:
    """An answer that cites the first line of a passage."""
    built = prompt.build(question, passages, BUILTIN)
    shown = next(one for one in built.passages if one.chunk_id == passage.chunk_id)
    unit = shown.units[0]
    citation = Citation(1, unit.number, shown.document_id, shown.document, "", None, unit.start, unit.end, "")
    return Answer(
        "x", "x", "answer", (citation,), built.passages, built.messages, "builtin", None, built.version,
        True, "stop", {}, {},
    )  # fmt: skip


def ask(store: FeedbackStore, user: str, answer: Answer) -> str:
    return store.record(store.start_conversation(user, QUESTION), user, QUESTION, answer)


def last(retriever: Retriever) -> Passage:
    return retriever.search(QUESTION, 4)[-1]


def test_the_reason_is_one_that_users_can_choose() -> None:
    assert BLAMES_THE_SOURCE in REASONS


def test_an_up_vote_moves_the_cited_passage_and_its_removal_takes_that_back(
    retriever: Retriever, store: FeedbackStore
) -> None:
    before = retriever.search(QUESTION, 4)
    assert {"voted"} <= set(before[0].scores)
    exchanges = [ask(store, user, answered(before[-1], before)) for user in "abc"]
    for user, exchange in zip("abc", exchanges, strict=True):
        store.vote(exchange, user, 1)
    chosen = next(p for p in retriever.search(QUESTION, 4) if p.chunk_id == before[-1].chunk_id)
    assert chosen.scores["prior"] == pytest.approx(3 / (3 + SHRINKAGE), rel=1e-3)
    assert chosen.scores["voted"] > chosen.scores["reranked"]
    for user, exchange in zip("abc", exchanges, strict=True):
        store.unvote(exchange, user)
    assert retriever.search(QUESTION, 4) == before


def test_only_a_reason_that_blames_the_source_speaks_against_a_passage(
    retriever: Retriever, store: FeedbackStore
) -> None:
    found = retriever.search(QUESTION, 4)
    exchange = ask(store, "ann", answered(found[0], found))
    for reason in ("", "wrong fact", "incomplete"):
        store.vote(exchange, "ann", -1, reason)
        assert retriever.votes is not None
        assert retriever.votes.said() == {}
    store.vote(exchange, "ann", -1, BLAMES_THE_SOURCE)
    assert retriever.votes is not None
    assert retriever.votes.priors([found[0].chunk_id])[found[0].chunk_id] < 0


def test_a_voter_counts_once_for_a_passage_and_the_newest_word_counts(
    retriever: Retriever, store: FeedbackStore, database: Database
) -> None:
    found = retriever.search(QUESTION, 4)
    for sign in (1, 1, 1, 1, 1, -1):
        exchange = ask(store, "eve", answered(found[0], found))
        store.vote(exchange, "eve", sign, BLAMES_THE_SOURCE if sign < 0 else "")
    said = Votes(database, 100).said()[found[0].chunk_id]
    assert [one.sign for one in said] == [-1]


def test_votes_fade_with_the_half_life(retriever: Retriever, store: FeedbackStore) -> None:
    found = retriever.search(QUESTION, 4)
    exchange = ask(store, "ann", answered(found[0], found))
    store.vote(exchange, "ann", 1)
    votes, i = retriever.votes, found[0].chunk_id
    assert votes is not None
    at = votes.said()[i][0].at
    assert votes.priors([i], at + 100 * DAY_MS)[i] == pytest.approx(0.5 / (0.5 + SHRINKAGE))


def test_an_approved_correction_speaks_for_the_passage_that_holds_it(
    retriever: Retriever, store: FeedbackStore, database: Database
) -> None:
    found = retriever.search(QUESTION, 4)
    holder = next(p for p in found if "3 EUR a day" in p.text)
    wrong = next(p for p in found if p.chunk_id != holder.chunk_id)
    correction = store.correct(ask(store, "ann", answered(wrong, found)), "ann", "Parking costs 3 EUR a day.")
    assert retriever.votes is not None
    assert retriever.votes.said() == {}
    Review(database).approve(correction, "rita")
    assert [one.sign for one in retriever.votes.said()[holder.chunk_id]] == [1]
    Review(database).undo(correction)
    assert retriever.votes.said() == {}


def test_votes_survive_that_a_document_is_cut_anew(
    retriever: Retriever, store: FeedbackStore, ingestor: Ingestor, reader: Reader
) -> None:
    found = retriever.search(QUESTION, 4)
    chosen = next(p for p in found if "3 EUR a day" in p.text)
    exchange = ask(store, "ann", answered(chosen, found))
    store.vote(exchange, "ann", 1)
    ingestor.delete(chosen.document_id)
    assert retriever.votes is not None
    assert retriever.votes.said() == {}
    ingestor.documents.add("canteen.md", CANTEEN, "upload", reader)
    ingestor.process_pending()
    again = next(p for p in retriever.search(QUESTION, 4) if "3 EUR a day" in p.text)
    assert again.chunk_id != chosen.chunk_id
    assert isinstance(retriever.votes.said()[again.chunk_id][0], Said)


def test_votes_do_nothing_unless_they_are_asked_to(
    ingestor: Ingestor, settings: Settings, index: Index
) -> None:
    plain = Retriever(settings, ingestor.passages.database, index, ingestor.embedder)
    assert plain.votes is None
    assert "voted" not in plain.stages(QUESTION, 5)
