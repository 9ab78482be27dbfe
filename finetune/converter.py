"""Hugging Face folders and LoRA adapters to GGUF, with llama.cpp's own converter.

The converter is not in any wheel. Set-up downloads the llama-cpp-python source archive anyway, so
`python -m finetune.converter ARCHIVE` checks its hash and unpacks the 1.1 MB that is needed. It runs in a
child process with its own gguf-py first on the path: PyPI's `gguf` has the same version but older code.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

from core.errors import ModelError, StorageError, run_main
from core.files import atomic_path, fsync_dir, read_json, sha256_of, write_json
from core.settings import PROJECT, quiet_environment

ARCHIVE = "llama_cpp_python-0.3.36"
ARCHIVE_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SOURCE = "source.json"
FILES = (
    "LICENSE",
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "conversion/__init__.py",
    "conversion/base.py",
    "conversion/llama.py",
    "conversion/qwen.py",
)
TIME_LIMIT = 3600
# the regular expression of Llama 3's tokenizer, which llama.cpp calls `llama-bpe`
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
OUTTYPES = ("f32", "f16", "bf16", "q8_0")


def converter_dir() -> Path:
    """Where the converter is unpacked: inside the virtual environment, so it goes when that goes."""
    return Path(sys.prefix) / "share" / "understudy" / "llama.cpp"


def install(archive: Path, target: Path | None = None) -> Path:
    """Unpack the converter from the llama-cpp-python source archive; nothing happens when it is there.

    Raises ModelError when the archive is missing or is not the pinned one. A killed run leaves nothing half.
    """
    target = target or converter_dir()
    if installed(target):
        return target
    if not archive.is_file():
        raise ModelError(f"There is no file {archive}.", "Run `make setup`, which downloads it.")
    if sha256_of(archive) != ARCHIVE_SHA256:
        raise ModelError(
            f"{archive} is not the pinned {ARCHIVE}.tar.gz (its SHA-256 differs).", "Download it again."
        )
    fresh = target.with_name(f"{target.name}.{os.getpid()}.partial")
    stale = target.with_name(f"{target.name}.{os.getpid()}.old")
    try:
        _unpack(archive, fresh)
        write_json(fresh / SOURCE, {"archive": ARCHIVE, "sha256": ARCHIVE_SHA256})
        if target.exists():
            target.rename(stale)
        fresh.rename(target)
        fsync_dir(target.parent)
    except OSError as error:
        raise StorageError(
            f"Could not unpack the converter into {target}: {error}.", "Free some space."
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)
    return target


def installed(target: Path | None = None) -> bool:
    """Whether the pinned converter is unpacked."""
    source = (target or converter_dir()) / SOURCE
    return source.exists() and read_json(source).get("sha256") == ARCHIVE_SHA256


def _unpack(archive: Path, folder: Path) -> None:
    prefix = f"{ARCHIVE}/vendor/llama.cpp/"
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(prefix)
            wanted = name in FILES or (name.startswith("gguf-py/gguf/") and "/scripts/" not in name)
            if name == member.name or not wanted or not member.isfile():
                continue
            content = tar.extractfile(member)
            if content is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content.read())
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise ModelError(f"{archive} lacks {', '.join(missing)}.", "Download it again.")


def declare_no_bos(folder: Path) -> None:
    """Write `add_bos_token: false` into a model folder's tokenizer_config.json.

    Without it llama.cpp puts a BOS token before every prompt that training never saw; `save_pretrained` drops
    the key, so it is written again before each conversion of a model of ours.
    """
    path = folder / "tokenizer_config.json"
    config = read_json(path)
    if config.get("add_bos_token") is not False:
        write_json(path, config | {"add_bos_token": False})


def hf_to_gguf(folder: Path, target: Path, outtype: str = "f16", pre: str = "llama-bpe") -> Path:
    """Convert a Hugging Face model folder to the GGUF file `target`; returns it.

    `pre` names the pre-tokenizer family to declare for a vocabulary llama.cpp does not know (its regex must
    be that family's: see check_tokenizer). Raises ModelError with the converter's last words and leaves no
    file.
    """
    if outtype not in OUTTYPES:
        raise ModelError(f"GGUF type {outtype!r} is unknown.", f"Choose from {', '.join(OUTTYPES)}.")
    _require(folder / "config.json")
    with atomic_path(target) as partial:
        _run(["hf", pre, str(folder), "--outfile", str(partial), "--outtype", outtype], partial)
    return target


def lora_to_gguf(adapter: Path, base: Path, target: Path) -> Path:
    """Convert a PEFT LoRA folder to the GGUF file `target`; returns it.

    `base` is the base model's folder (its config is enough). Raises ModelError for adapters llama.cpp would
    apply wrongly without a word: rank-stabilised scaling, alpha patterns, DoRA and fully trained modules.
    """
    _require(adapter / "adapter_config.json")
    _require(adapter / "adapter_model.safetensors")
    _require(base / "config.json")
    refuse_unservable(read_json(adapter / "adapter_config.json"))
    with atomic_path(target) as partial:
        options = ["--base", str(base), "--outfile", str(partial), "--outtype", "f16"]
        _run(["lora", "-", str(adapter), *options], partial)
    return target


def refuse_unservable(config: dict[str, Any]) -> None:
    """Raise ModelError when a PEFT configuration uses what a LoRA GGUF cannot express.

    Measured: rsLoRA is off by a factor sqrt(rank) and alpha_pattern is ignored, both silently.
    """
    for key in ("use_rslora", "alpha_pattern", "use_dora", "modules_to_save"):
        if config.get(key):
            raise ModelError(
                f"The adapter uses {key}, which a LoRA GGUF cannot express.", f"Train it again without {key}."
            )


def check_tokenizer(folder: Path, gguf: Path) -> int:
    """Tokenize the probe strings with both tokenizers and return how many there were.

    Raises ModelError naming the first string on which they differ: a wrongly declared pre-tokenizer gives no
    warning of its own (measured: 22 of 200 strings differed).
    """
    from tokenizers import Tokenizer

    _require(folder / "tokenizer.json")
    strings = probe_strings()
    expected = [
        encoding.ids
        for encoding in Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(
            strings, add_special_tokens=False
        )
    ]
    lines = "".join(json.dumps(text) + "\n" for text in strings)
    done = _child("Tokenizing with the GGUF", [sys.executable, "-m", "engine.tokenize", str(gguf)], lines)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [text for text, left, right in zip(strings, expected, found, strict=True) if left != right]
    if wrong:
        raise ModelError(
            f"The GGUF tokenizes {len(wrong)} of {len(strings)} strings differently, first {wrong[0]!r}.",
            "Declare the pre-tokenizer family whose regex the tokenizer uses.",
        )
    return len(strings)


def probe_strings() -> list[str]:
    """200 strings over which pre-tokenizers differ: digits, contractions, spaces, scripts, symbols, code."""
    seeds = (
        "The notice period is {n} days.",
        "It's we'll THEY'VE i'd {n}",
        "  leading and   inner  spaces {n}",
        "tabs\tand\nlines\n\n{n}\r\n",
        "1234567890 {n}{n}{n}",
        "Grüße, naïve café — {n} €",
        "привет мир {n}",
        "你好，世界{n}",
        "emoji 🙂🚴‍♀️ {n}",
        "x = foo(bar[{n}]) != None",
        "a/b\\c:d;e,f.{n}",
        "#{n} @user $5.00 %",
        "UPPER lower CamelCase snake_case_{n}",
        "\u00a0nbsp\u2003em {n}",
        "e\u0301 combining {n}",
        "مرحبا {n}",
        "Plan: Basic; Price: {n} EUR.",
        "[{n}] (see section {n}.{n})",
        "don't can't o'clock's {n}",
        "...!!!??? {n}",
    )
    return [seed.replace("{n}", str(n * 37 + n)) for n in range(10) for seed in seeds]


def _require(path: Path) -> None:
    if not path.exists():
        raise ModelError(f"{path.parent} lacks {path.name}.", "Give a complete model or adapter folder.")


def _run(arguments: list[str], partial: Path) -> None:
    if not installed():
        raise ModelError(
            "llama.cpp's converter is not installed.",
            "Run `make run`, or `python -m finetune.converter PATH_OF_THE_LLAMA_CPP_PYTHON_SDIST`.",
        )
    _child("The GGUF converter", [sys.executable, "-m", "finetune.converter", "--run", *arguments])
    if not partial.exists():
        raise ModelError("llama.cpp's converter wrote no file.", "Check the model folder.")


def _child(what: str, command: list[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command, input=stdin, cwd=PROJECT, capture_output=True, text=True, timeout=TIME_LIMIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{what} took longer than {TIME_LIMIT} s.", "Check the machine's load.") from error
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()]
        last = words[-1].strip() if words else f"exit status {done.returncode}"
        raise ModelError(f"{what} failed: {last[:300]}", "Check the model folder and the versions.")
    return done


def _convert_here(kind: str, pre: str, arguments: list[str]) -> None:
    """Run a converter script in this (child) process; `pre` stands in for an unknown pre-tokenizer."""
    folder = str(converter_dir())
    sys.path[:0] = [folder, f"{folder}/gguf-py"]
    text_model: Any = importlib.import_module("conversion.base").TextModel
    original = text_model.get_vocab_base_pre

    def known_or_declared(self: Any, tokenizer: Any) -> str:
        try:
            return str(original(self, tokenizer))
        except NotImplementedError:
            return pre

    text_model.get_vocab_base_pre = known_or_declared
    script = f"convert_{kind}_to_gguf.py"
    sys.argv = [script, *arguments]
    runpy.run_path(f"{folder}/{script}", run_name="__main__")


def main(argv: list[str] | None = None) -> int:
    """`python -m finetune.converter ARCHIVE`: install the converter."""
    arguments = sys.argv[1:] if argv is None else argv
    quiet_environment()
    if arguments[:1] == ["--run"]:
        _convert_here(arguments[1], arguments[2], arguments[3:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m finetune.converter", description=__doc__)
    parser.add_argument("archive", type=Path, help=f"{ARCHIVE}.tar.gz")
    print(install(parser.parse_args(arguments).archive))
    return 0


if __name__ == "__main__":
    run_main(main)
