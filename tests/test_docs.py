"""The documentation says what the code does: settings, commands, folders and links."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from core.settings import PROJECT, Settings

README = (PROJECT / "README.md").read_text("utf-8")
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]


def documented_settings() -> list[tuple[str, str, str]]:
    return re.findall(r"^\| `(\w+)` \| `(.+?)` \| (.+?) \|$", README, re.MULTILINE)


def test_the_settings_table_is_the_settings_file() -> None:
    source = (PROJECT / "core" / "settings.py").read_text("utf-8")
    declared = re.findall(r"^    (\w+): \w+ = (.+?)  # (.+)$", source, re.MULTILINE)
    assert [name for name, _, _ in declared] == [field.name for field in fields(Settings)]
    expected = [(name, default.replace("PROJECT / ", ""), text) for name, default, text in declared]
    assert documented_settings() == expected


def test_the_command_list_is_the_help() -> None:
    from app.commands import COMMANDS

    rows = re.findall(r"^\| `understudy ([\w-]+)` \| (.+?) \|$", README, re.MULTILINE)
    assert rows == [(name, command.summary) for name, command in COMMANDS.items()]


def test_help_is_quick_to_import() -> None:
    """`--help` must not import anything heavy: no torch, no Streamlit, no Chroma, no llama.cpp."""
    code = (
        "import sys; from app.commands import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'streamlit', 'chromadb', 'llama_cpp', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_folder_table_names_every_folder() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
    folders = {line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    folders = {name for name in folders if not name.startswith(".")}
    documented = set(re.findall(r"^\| `(\w+)/` \|", README, re.MULTILINE))
    assert folders - documented <= {"tests"}
    assert documented <= folders


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text("utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)\b", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
