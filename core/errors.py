"""Every error a user can meet, in one tree.

    UnderstudyError            something went wrong and the message says what to do next
    ├── SettingsError          a setting is unknown, malformed or unsafe; nothing was started
    ├── NotFoundError          an id names nothing
    ├── ConflictError          somebody else holds or changed the thing (lock, lease, promotion race)
    ├── StorageError           the disk is full or a path cannot be written; nothing half-written is left
    ├── DocumentError          a document cannot be read (broken, empty, too large, unknown type)
    │   └── QuotaError         too many files of one user wait
    ├── QuestionError          a question cannot be asked (empty, or too long for the model)
    ├── ModelError             a model or adapter file is missing, malformed or does not fit
    ├── EngineError            the engine did not answer
    │   ├── EngineUnavailable  it is not running or is restarting
    │   └── EngineBusy         its queue is full
    ├── TrainingError          a training stage failed; earlier stages are kept and the run can resume
    └── Cancelled              somebody asked the work to stop

Errors are raised where they are understood and caught only in pages, the API, `understudy` and `run_main`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


class UnderstudyError(Exception):
    """A sentence that says what happened (`message`) and one that says what to do (`next_step`)."""

    def __init__(self, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.message} {self.next_step}".strip()


class SettingsError(UnderstudyError):
    """A setting is unknown, malformed or unsafe."""


class NotFoundError(UnderstudyError):
    """An id names nothing."""


class ConflictError(UnderstudyError):
    """Somebody else holds or changed the thing."""


class StorageError(UnderstudyError):
    """The disk is full or a path cannot be written."""


class DocumentError(UnderstudyError):
    """A document cannot be read."""


class QuotaError(DocumentError):
    """Too many files of one user wait."""


class QuestionError(UnderstudyError):
    """A question cannot be asked."""


class ModelError(UnderstudyError):
    """A model or adapter file is missing, malformed or does not fit."""


class EngineError(UnderstudyError):
    """The engine did not answer."""


class EngineUnavailable(EngineError):
    """The engine is not running or is restarting."""


class EngineBusy(EngineError):
    """The engine's queue is full."""


class TrainingError(UnderstudyError):
    """A training stage failed."""


class Cancelled(UnderstudyError):
    """Somebody asked the work to stop."""


def first_line(error: Exception) -> str:
    """What a library's error says, at most 200 characters, to stand within a sentence of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def exit_code(error: UnderstudyError) -> int:
    """What a command exits with: 3 when somebody else holds the thing, else 1."""
    return 3 if isinstance(error, ConflictError) else 1


def run_main(main: Callable[[], int]) -> NoReturn:
    """Run a module as a program: an expected error is one line on standard error, without a traceback.

    One line, because the last line of a child's log is what the pages show of its end.
    """
    try:
        sys.exit(main())
    except UnderstudyError as error:
        print(error, file=sys.stderr)
        sys.exit(exit_code(error))
