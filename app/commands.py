"""The command line: `understudy COMMAND`. A table of names, so that help is instant.

Each command's `main(argv) -> int` lives with its stage and is imported only when it is called. Exit codes:
0 done, 1 failed, 2 wrong usage, 3 somebody else holds it, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from core.errors import UnderstudyError, exit_code
from core.settings import quiet_environment

VERSION = "0.1.0"


@dataclass(frozen=True)
class Command:
    """Where a command's `main` lives (`module`) and what it does, in one line."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "serve": Command("app.serve", "start the pages, the API, the engine and the worker"),
    "ask": Command("rag.ask_command", "answer one question from the documents, with citations"),
    "ingest": Command("rag.ingest", "add files or folders to the documents"),
    "crawl": Command("rag.crawl_command", "add the pages of a web site to the documents"),
    "retrain": Command("finetune.retrain", "turn approved votes into an adapter and judge it"),
    "adapters": Command("app.adapters_command", "list the adapters, promote one, or roll back"),
    "groups": Command("app.groups_command", "put accounts into groups, and give documents to a group"),
    "embedder": Command("finetune.embedder", "fine-tune the search on votes and judge it, or roll back"),
    "models": Command("core.catalog", "list the base models, or download one"),
    "index": Command("rag.index", "rebuild the search index from the database"),
    "backup": Command("app.backup", "copy all that cannot be made again, while everything runs"),
    "restore": Command("app.restore", "check a backup, or put it in the place of what is there"),
    "demo": Command("app.demo", "run the whole loop with scripted users and show the gate at work"),
    "doctor": Command("app.doctor", "check this installation and say what to mend"),
}


def usage() -> str:
    """The text of `understudy --help`."""
    rows = "\n".join(f"  {name:<10} {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: understudy [--debug] COMMAND [OPTIONS]\n\n"
        "A self-hosted assistant for your documents that learns from its users' votes.\n\n"
        f"commands:\n{rows}\n\n"
        "`understudy COMMAND --help` shows a command's options; --debug shows where an error came from."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = bool(arguments) and arguments[0] == "--debug"
    arguments = arguments[1:] if debug else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"understudy {VERSION}")
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(f"error: {arguments[0]!r} is not a command.\n\n{usage()}", file=sys.stderr)
        return 2
    quiet_environment()
    return _run(command, arguments[1:], debug)


def _run(command: Command, arguments: list[str], debug: bool) -> int:
    try:
        return int(import_module(command.module).main(arguments) or 0)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `understudy ... | head`
        sys.stderr.close()
        return 0
    except UnderstudyError as error:
        if debug:
            raise
        print(f"error: {error.message}", file=sys.stderr)
        if error.next_step:
            print(f"       {error.next_step}", file=sys.stderr)
        return exit_code(error)
    except Exception as error:
        if debug:
            raise
        print(
            f"error: {command.module} stopped unexpectedly ({type(error).__name__}: {error}).\n"
            "       Run it again as `understudy --debug …` to see where.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
