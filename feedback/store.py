"""Exchanges, votes and corrections as rows. A vote is an upsert, so a rerun or a changed mind is harmless."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import sqlite3
from dataclasses import asdict
from typing import Any

from core.db import Database, audit, new_id, now_ms
from core.errors import ConflictError, NotFoundError, UnderstudyError
from core.types import Answer
from feedback.questions import question_key, stands_alone
from feedback.records import Conversation, Correction, Exchange, Status, Vote, to_exchange

__all__ = ["LONGEST", "REASONS", "Conversation", "Correction", "Exchange", "FeedbackStore", "Status", "Vote"]

REASONS = (
    "wrong fact",
    "wrong source",
    "should have refused",
    "should have answered",
    "incomplete",
    "badly written",
)
LONGEST = 4_000
"""Characters a correction or a comment may have."""


class FeedbackStore:
    """Reads and writes conversations, exchanges, votes and corrections.

    Every method that takes a user puts the user into the query, so another user's id finds nothing.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def start_conversation(self, user: str, title: str) -> str:
        """Open a conversation and return its id."""
        conversation = new_id()
        with self.database.write() as connection:
            connection.execute(
                "INSERT INTO conversations VALUES (?,?,?,?)",
                (conversation, user, _text(title)[:200], now_ms()),
            )
        return conversation

    def conversations(self, user: str, limit: int = 200) -> list[Conversation]:
        """The user's conversations, newest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM conversations WHERE user_id = ? ORDER BY created_at DESC, rowid DESC LIMIT ?",
                (user, limit),
            ).fetchall()
        return [Conversation(**dict(row)) for row in rows]

    def exchanges(self, conversation_id: str, user: str) -> list[Exchange]:
        """The conversation's exchanges in order; none when it is not the user's."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT e.* FROM exchanges e JOIN conversations c ON c.id = e.conversation_id"
                " WHERE c.id = ? AND c.user_id = ? ORDER BY e.seq",
                (conversation_id, user),
            ).fetchall()
        return [to_exchange(row) for row in rows]

    def record(
        self, conversation_id: str, user: str, question: str, answer: Answer, status: Status = "complete"
    ) -> str:
        """Keep an exchange and return its id.

        Raises NotFoundError when the conversation is not the user's.
        """
        exchange = new_id()
        values = {
            "id": exchange, "conversation_id": conversation_id, "user_id": user,
            "question": _text(question), "answer": _text(answer.text), "raw": _text(answer.raw),
            "mode": answer.mode, "status": status, "messages": json.dumps(answer.messages),
            "passages": json.dumps([asdict(passage) for passage in answer.passages]),
            "citations": json.dumps([asdict(citation) for citation in answer.citations]),
            "model": answer.model, "adapter_id": answer.adapter, "prompt_version": answer.prompt_version,
            "supported": int(answer.supported), "finish_reason": answer.finish_reason,
            "sampling": json.dumps(answer.sampling), "timings": json.dumps(answer.timings),
            "trace": json.dumps(asdict(answer.trace)), "created_at": now_ms(),
        }  # fmt: skip
        with self.database.write() as connection:
            owned = connection.execute(
                "SELECT 1 FROM conversations WHERE id = ? AND user_id = ?", (conversation_id, user)
            ).fetchone()
            if owned is None:
                raise NotFoundError(
                    f"No conversation of yours is called {conversation_id}.", "Start a new one."
                )
            columns, marks = ", ".join(values), ", ".join(f":{name}" for name in values)
            connection.execute(f"INSERT INTO exchanges ({columns}) VALUES ({marks})", values)
            connection.executemany(
                "INSERT INTO citations VALUES (?,?,?,?)",
                [(exchange, cited.document_id, cited.start, cited.end) for cited in answer.citations],
            )
        return exchange

    def exchange(self, exchange_id: str, user: str | None = None) -> Exchange:
        """The exchange with this id, of this user when one is given (raises NotFoundError)."""
        with self.database.read() as connection:
            return to_exchange(_owned(connection, exchange_id, user))

    def vote(self, exchange_id: str, user: str, value: int, reason: str = "", comment: str = "") -> None:
        """Record the user's vote (1 or -1); a later one replaces it.

        Raises NotFoundError for another user's exchange, ConflictError when the answer is not complete, and
        UnderstudyError for a value, reason or comment that is not allowed.
        """
        if value not in (-1, 1):
            raise UnderstudyError(f"A vote is 1 or -1, not {value}.")
        if reason and reason not in REASONS:
            raise UnderstudyError(
                f"{reason[:60]!r} is not one of the reasons.", f"Choose {', '.join(REASONS)}."
            )
        comment = _checked(comment, "comment") if comment.strip() else ""
        with self.database.write() as connection:
            _complete(connection, exchange_id, user)
            connection.execute(
                "INSERT INTO votes VALUES (?,?,?,?,?,?) ON CONFLICT (exchange_id, user_id) DO UPDATE SET"
                " value = excluded.value, reason = excluded.reason, comment = excluded.comment,"
                " created_at = excluded.created_at",
                (exchange_id, user, value, reason, comment, now_ms()),
            )

    def unvote(self, exchange_id: str, user: str) -> None:
        """Take the user's vote back; harmless when there is none."""
        with self.database.write() as connection:
            connection.execute("DELETE FROM votes WHERE exchange_id = ? AND user_id = ?", (exchange_id, user))

    def vote_of(self, exchange_id: str, user: str) -> Vote | None:
        """The user's vote on an exchange, if any."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT * FROM votes WHERE exchange_id = ? AND user_id = ?", (exchange_id, user)
            ).fetchone()
        return Vote(**dict(row)) if row else None

    def correct(self, exchange_id: str, user: str, text: str) -> str:
        """Record what the answer should have said, and return the correction's id.

        It implies a down vote when the user has not voted. A new text replaces the user's earlier one and
        waits for review again; the same text changes nothing. Raises as `vote` does.
        """
        text = _checked(text, "correction")
        with self.database.write() as connection:
            exchange = to_exchange(_complete(connection, exchange_id, user))
            alone = stands_alone(exchange.question, exchange.answer.messages)
            key = question_key(exchange.question) if alone else ""
            row = connection.execute(
                "INSERT INTO corrections (id, exchange_id, user_id, question_key, text, status, created_at)"
                " VALUES (?,?,?,?,?,'pending',?) ON CONFLICT (exchange_id, user_id) DO UPDATE SET"
                " status = CASE WHEN text = excluded.text THEN status ELSE 'pending' END,"
                " reviewer = CASE WHEN text = excluded.text THEN reviewer END,"
                " reviewed_at = CASE WHEN text = excluded.text THEN reviewed_at END,"
                " created_at = CASE WHEN text = excluded.text THEN created_at ELSE excluded.created_at END,"
                " text = excluded.text RETURNING id",
                (new_id(), exchange_id, user, key, text, now_ms()),
            ).fetchone()
            connection.execute(
                "INSERT INTO votes (exchange_id, user_id, value, created_at) VALUES (?,?,-1,?)"
                " ON CONFLICT DO NOTHING",
                (exchange_id, user, now_ms()),
            )
            audit(connection, user, "correction.write", str(row["id"]))
        return str(row["id"])

    def correction_of(self, exchange_id: str, user: str) -> Correction | None:
        """The user's correction of an exchange, if any."""
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT * FROM corrections WHERE exchange_id = ? AND user_id = ?", (exchange_id, user)
            ).fetchone()
        return Correction(**dict(row)) if row else None

    def find_correction(self, question: str, user: str) -> Correction | None:
        """What answers this question: the newest approved correction, else the user's own pending one."""
        key = question_key(question)
        if not key:
            return None
        with self.database.read() as connection:
            row = connection.execute(
                "SELECT * FROM corrections WHERE question_key = ?"
                " AND (status = 'approved' OR (status = 'pending' AND user_id = ?))"
                " ORDER BY status = 'approved' DESC, COALESCE(reviewed_at, created_at) DESC, rowid DESC"
                " LIMIT 1",
                (key, user),
            ).fetchone()
        return Correction(**dict(row)) if row else None

    def counts(self) -> dict[str, int]:
        """How many exchanges, up and down votes, and corrections by status there are."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT 'exchanges' AS name, COUNT(*) AS n FROM exchanges"
                " UNION ALL SELECT 'up', COUNT(*) FROM votes WHERE value = 1"
                " UNION ALL SELECT 'down', COUNT(*) FROM votes WHERE value = -1"
                " UNION ALL SELECT 'pending', COUNT(*) FROM corrections WHERE status = 'pending'"
                " UNION ALL SELECT 'approved', COUNT(*) FROM corrections WHERE status = 'approved'"
                " UNION ALL SELECT 'rejected', COUNT(*) FROM corrections WHERE status = 'rejected'"
            ).fetchall()
        return {row["name"]: row["n"] for row in rows}

    def cited_spans(self, document_id: str) -> list[tuple[int, int]]:
        """Start and end of every citation of a document in an answer, however often it was cited."""
        with self.database.read() as connection:
            rows = connection.execute(
                'SELECT start, "end" AS stop FROM citations WHERE document_id = ?', (document_id,)
            ).fetchall()
        return [(int(row["start"]), int(row["stop"])) for row in rows]

    def judged(self) -> list[tuple[Exchange, list[Vote], list[Correction]]]:
        """Every complete exchange that has a vote or correction, with all of them, in order."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM exchanges e WHERE status = 'complete' AND NOT EXISTS"
                # everybody's adapter learns only from what everybody may see
                " (SELECT 1 FROM json_each(e.passages) AS passage JOIN document_access AS access"
                " ON access.document_id = json_extract(passage.value, '$.document_id')"
                " WHERE access.visibility != 'everybody' OR access.approval != 'approved') AND"
                " (EXISTS (SELECT 1 FROM votes WHERE exchange_id = e.id)"
                " OR EXISTS (SELECT 1 FROM corrections WHERE exchange_id = e.id)) ORDER BY seq"
            ).fetchall()
            votes = connection.execute("SELECT * FROM votes ORDER BY created_at, user_id").fetchall()
            corrections = connection.execute("SELECT * FROM corrections ORDER BY created_at, id").fetchall()
        by_exchange: dict[str, tuple[Exchange, list[Vote], list[Correction]]] = {
            row["id"]: (to_exchange(row), [], []) for row in rows
        }
        for row in votes:
            if row["exchange_id"] in by_exchange:
                by_exchange[row["exchange_id"]][1].append(Vote(**dict(row)))
        for row in corrections:
            if row["exchange_id"] in by_exchange:
                by_exchange[row["exchange_id"]][2].append(Correction(**dict(row)))
        return list(by_exchange.values())

    def pseudonym(self, user: str) -> str:
        """A stable name for the user in datasets; the salt that links them never leaves the database."""
        with self.database.write() as connection:
            connection.execute(
                "INSERT INTO meta VALUES ('pseudonym_salt', ?) ON CONFLICT DO NOTHING",
                (secrets.token_hex(16),),
            )
            row = connection.execute("SELECT value FROM meta WHERE key = 'pseudonym_salt'").fetchone()
        return hmac.new(row["value"].encode(), user.encode(), hashlib.sha256).hexdigest()[:12]

    def save_dataset(self, version: str, card: dict[str, Any]) -> None:
        """Note a frozen dataset; noting it again is harmless."""
        with self.database.write() as connection:
            connection.execute(
                "INSERT INTO datasets VALUES (?,?,?) ON CONFLICT DO NOTHING",
                (version, json.dumps(card, sort_keys=True), now_ms()),
            )

    def datasets(self) -> list[dict[str, Any]]:
        """The cards of all frozen datasets, newest first."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT card FROM datasets ORDER BY created_at DESC, rowid DESC"
            ).fetchall()
        return [json.loads(row["card"]) for row in rows]


def _owned(connection: sqlite3.Connection, exchange_id: str, user: str | None) -> sqlite3.Row:
    row: sqlite3.Row | None = connection.execute(
        "SELECT e.* FROM exchanges e JOIN conversations c ON c.id = e.conversation_id"
        " WHERE e.id = ?1 AND (?2 IS NULL OR c.user_id = ?2)",
        (exchange_id, user),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"No exchange of yours is called {exchange_id}.", "Open the conversation again.")
    return row


def _complete(connection: sqlite3.Connection, exchange_id: str, user: str) -> sqlite3.Row:
    row = _owned(connection, exchange_id, user)
    if row["status"] != "complete":
        raise ConflictError(
            "This answer was not finished, so it cannot be judged.", "Ask the question again."
        )
    return row


def _checked(text: str, what: str) -> str:
    text = _text(text).strip()
    if not text:
        raise UnderstudyError(f"The {what} is empty.", "Write what the answer should have said.")
    if len(text) > LONGEST:
        raise UnderstudyError(
            f"The {what} has {len(text):,} characters; at most {LONGEST:,} are kept.", "Shorten it."
        )
    return text


def _text(text: str) -> str:
    """Text that SQLite and JSON files can hold: lone surrogates become question marks, NULs go."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
