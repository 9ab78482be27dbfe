"""Rules about the source itself: who may touch llama.cpp, and that no saved state is loaded."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from core.settings import PROJECT

PACKAGES = ("app", "rag", "engine", "feedback", "finetune", "evaluation", "core", "benchmarks")
# resumes the making of the built-in model from the checkpoint it wrote itself
OWN_CHECKPOINT = "finetune/base_train.py"
UNSAFE_CALLS = {"torch.load"}
UNSAFE_METHODS = {"load_state", "set_cache", "llama_state_load_file", "llama_state_seq_load_file"}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in (PROJECT / package).rglob("*.py"):
            yield path.relative_to(PROJECT), ast.parse(path.read_text("utf-8"))


def test_only_one_file_imports_llama_cpp() -> None:
    found = [
        str(path)
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and "llama_cpp" in ast.unparse(node)
    ]
    assert found == ["engine/native.py"]


def test_nothing_loads_foreign_state() -> None:
    found = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                unsafe = called in UNSAFE_CALLS or called.rpartition(".")[2] in UNSAFE_METHODS
                if unsafe and (called, str(path)) != ("torch.load", OWN_CHECKPOINT):
                    found.append(f"{path}:{node.lineno} {called}")
    assert found == []


def test_no_grammar_reaches_native_code() -> None:
    for name in ("native.py", "sampler.py"):
        assert "grammar" not in (PROJECT / "engine" / name).read_text("utf-8")
