"""Asking a model every case. Results are appended as they come, so a stopped run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from core.errors import Cancelled, ConflictError, EngineBusy, EngineError, EngineUnavailable, StorageError
from core.files import read_json, sha256_of, write_bytes, write_json
from core.types import Message
from evaluation.cases import CARD, Case
from evaluation.metrics import score
from rag.citations import Likelihood, Similarity, quote
from rag.model import PromptTooLong, Reply
from rag.prompt import REFUSAL

RESULTS, ASKED = "results.jsonl", "asked.json"
GREEDY: Mapping[str, Any] = {"max_tokens": 160, "temperature": 0.0, "seed": 7}
WAITS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between tries while the engine is busy or restarting; then the evaluation gives up."""


@dataclass(frozen=True)
class Show:
    """What users see of replies, for judging them by it.

    `said` gets a case, a reply and the adapter that wrote it, and returns what is shown as a model would
    write it. `name` says all that it depends on: results that were judged otherwise are set aside.
    """

    name: str
    said: Callable[[Case, str, str | None], str]


class Client(Protocol):
    """What answers: `rag.model.ModelClient`."""

    def generate(self, messages: Sequence[Message], model: str = "live", **options: Any) -> Reply:
        """The whole reply to `messages`."""


@dataclass(frozen=True)
class Result:
    """A model's reply to one case and its scores (see `metrics.score`); `ms` is the time it took.

    `reply` is what was judged: what is shown of the model's own words, which are kept in `raw`, or those
    words themselves. A case whose prompt is longer than the model's context has no scores: it was not asked.
    """

    case_id: str
    origin: str
    kind: str
    question: str
    reply: str
    scores: dict[str, Any]
    fingerprint: str
    adapter: str | None
    prompt_tokens: int
    completion_tokens: int
    ms: float
    raw: str = ""

    @property
    def asked(self) -> bool:
        """Whether the model could read the prompt."""
        return bool(self.scores)

    @property
    def score(self) -> float:
        """The case's score, 0 to 1."""
        return float(self.scores["score"])


def evaluate(
    client: Client,
    cases: Sequence[Case],
    model: str,
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    sampling: Mapping[str, Any] = GREEDY,
    show: Show | None = None,
) -> list[Result]:
    """Ask `model` ("live", "base" or an adapter id) every case and score the replies, or what `show` shows.

    With a `folder`, `results.jsonl` grows there and `card.json` follows when all are answered; a second call
    goes on with the rest. Raises Cancelled when `should_stop` says so, EngineError when the engine stays
    away, and ConflictError when replies come from different adapters (a promotion came in between).
    """
    kept = _Kept(folder, model, cases, sampling, show) if folder else None
    results = kept.results if kept else []
    for case in cases[len(results) :]:
        if should_stop and should_stop():
            raise Cancelled("The evaluation was stopped.", "Start it again; it goes on where it was.")
        result = ask(client, case, model, sampling)
        if show and result.asked:
            result = as_shown(case, result, show)
        if result.asked:
            _same_model(model, next((each for each in results if each.asked), result), result)
        results.append(result)
        if kept:
            kept.append(result)
        if progress:
            progress(len(results), len(cases))
    if kept:
        kept.finish()
    return results


def ask(client: Client, case: Case, model: str, sampling: Mapping[str, Any] = GREEDY) -> Result:
    """Ask one case and score the reply; waits while the engine is busy or restarting.

    A frozen prompt is never shortened, or two models would read different ones: when the context does not
    hold it, the case is marked as not asked.
    """
    for wait in (*WAITS, None):
        try:
            began = time.monotonic()
            reply = client.generate(case.messages, model, **sampling)
            return _result(case, reply, (time.monotonic() - began) * 1000)
        except PromptTooLong:
            return _result(case, Reply("", "too_long", "", "", None, 0, 0), 0.0, asked=False)
        except (EngineBusy, EngineUnavailable):
            if wait is None:
                raise
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def as_shown(case: Case, result: Result, show: Show) -> Result:
    """The result judged by what is shown of it."""
    said = show.said(case, result.reply, result.adapter)
    return replace(result, reply=said, raw=result.reply, scores=score(case, said))


def quote_replies(
    cases: Sequence[Case], similarity: Similarity | None = None, answers: Likelihood | None = None
) -> list[Result]:
    """The baseline without a model: quote the unit that fits best, or refuse when none fits."""
    results = []
    for case in cases:
        found = quote(case.question, case.passages, similarity, answers)
        results.append(judged(case, found.said if found else REFUSAL, "quotes"))
    return results


def judged(case: Case, text: str, author: str) -> Result:
    """A reply that no model wrote just now, scored."""
    return _result(case, Reply(text, "stop", f"{author}@base", author, None, 0, 0), 0.0)


def mean(results: Sequence[Result], measure: str = "score") -> float:
    """Mean of a measure over the results that were asked; 0 when there are none."""
    values = [float(result.scores[measure]) for result in results if result.asked]
    return sum(values) / len(values) if values else 0.0


def asked_of_both(before: Sequence[Result], after: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """The results of the cases that both models were asked, in the same order."""
    pairs = [pair for pair in zip(before, after, strict=True) if pair[0].asked and pair[1].asked]
    return [old for old, _ in pairs], [new for _, new in pairs]


def load_results(folder: Path) -> list[Result]:
    """Read a finished evaluation (raises StorageError when it is unfinished or was changed)."""
    path = folder / RESULTS
    if not path.exists() or sha256_of(path) != read_json(folder / CARD)["sha256"]:
        raise StorageError(f"{path} is not what was evaluated.", f"Remove {folder} and evaluate again.")
    return _parsed(path.read_bytes())


def _result(case: Case, reply: Reply, took: float, *, asked: bool = True) -> Result:
    return Result(
        case.id,
        case.origin,
        case.kind,
        case.question,
        reply.text,
        score(case, reply.text) if asked else {},
        reply.fingerprint,
        reply.adapter,
        reply.prompt_tokens,
        reply.completion_tokens,
        round(took, 1),
    )


def _same_model(model: str, first: Result, latest: Result) -> None:
    """Raise unless both replies come from one adapter, and from the one asked for."""
    if first.adapter != latest.adapter:
        raise ConflictError(
            "Another adapter came on stage during the evaluation.", "Start it again to compare with that one."
        )
    wanted = {"base": None, "live": latest.adapter}.get(model, model)
    if latest.adapter != wanted:
        raise EngineError(
            f"Adapter {model} was asked but {latest.adapter or 'the base model'} answered.",
            "Check that the engine could load the adapter (see `understudy doctor`).",
        )


class _Kept:
    """The results file of one evaluation; what belongs to other cases, model or sampling is set aside."""

    def __init__(
        self,
        folder: Path,
        model: str,
        cases: Sequence[Case],
        sampling: Mapping[str, Any],
        show: Show | None,
    ) -> None:
        self.folder = folder
        self.path = folder / RESULTS
        blob = json.dumps([asdict(case) for case in cases], sort_keys=True).encode()
        asked = {"model": model, "cases": hashlib.sha256(blob).hexdigest(), "sampling": dict(sampling)}
        asked["judged_as"] = show.name if show else "written"
        if not (folder / ASKED).exists() or read_json(folder / ASKED) != asked:
            (folder / CARD).unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            write_json(folder / ASKED, asked)
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]  # a line cut short by a kill is asked again
        if whole != data:
            write_bytes(self.path, whole)
        self.results = _parsed(whole)

    def append(self, result: Result) -> None:
        line = json.dumps(asdict(result), ensure_ascii=False, sort_keys=True) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode("utf-8", "replace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(
                f"Could not write {self.path}: {error.strerror or error}.",
                "Free some space, then start again.",
            ) from error

    def finish(self) -> None:
        if not (self.folder / CARD).exists():
            card = {"sha256": sha256_of(self.path), "count": len(self.results), "score": mean(self.results)}
            write_json(self.folder / CARD, card)


def _parsed(data: bytes) -> list[Result]:
    return [Result(**json.loads(line)) for line in data.decode("utf-8").split("\n") if line]
