"""The command line: help is instant, errors are one sentence, exit codes tell what happened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app import commands
from core.errors import ConflictError, ModelError
from core.settings import PROJECT


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from app.commands import main; sys.exit(main())", *arguments],
        cwd=PROJECT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, command in commands.COMMANDS.items():
        assert name in done.stdout
        assert command.summary in done.stdout


@pytest.mark.parametrize("name", sorted(commands.COMMANDS))
def test_help_of_a_command_imports_nothing_heavy(name: str) -> None:
    code = (
        "import sys; from app.commands import main\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'streamlit', 'chromadb', 'llama_cpp', 'transformers', 'langchain_core'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: understudy {name}" in done.stdout


def test_an_unknown_command_is_named() -> None:
    done = run("fly")
    assert done.returncode == 2
    assert "'fly' is not a command" in done.stderr


def test_a_bad_setting_is_one_sentence_without_traceback(tmp_path: Path) -> None:
    done = run("serve", UNDERSTUDY_PORT="eighty", UNDERSTUDY_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "port" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelError("No file.", "Get one."), 1),
        (ConflictError("Taken."), 3),
        (KeyboardInterrupt(), 130),
        (OSError("x"), 1),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from app import adapters_command

    def fail(_arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr(adapters_command, "main", fail)
    assert commands.main(["adapters"]) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    if isinstance(error, ModelError):
        assert shown == "error: No file.\n       Get one.\n"


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    from app import adapters_command

    def fail(_arguments: list[str]) -> int:
        raise ModelError("No file.")

    monkeypatch.setattr(adapters_command, "main", fail)
    with pytest.raises(ModelError):
        commands.main(["--debug", "adapters"])
