"""The base models Understudy knows. One dial, the model's id, decides everything else about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.errors import ModelError
from core.settings import PROJECT, Settings

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
READER = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class CatalogModel:
    """A base model: where its files are and how to talk to, budget and train it.

    `passages` and `history` are how many passages and earlier messages its prompt may hold; `cite_first`
    says that the model writes `[n] sentence` instead of `sentence [n]`. Memory is in GB for Q4 serving on a
    CPU (`ram_gb`), and for QLoRA and 16-bit LoRA training on a GPU (`qlora_gb`, `lora_gb`).
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
    passages: int = 6
    history: int = 6
    cite_first: bool = False
    lora_targets: tuple[str, ...] = LORA_TARGETS
    ram_gb: float = 0.0
    qlora_gb: float = 0.0
    lora_gb: float = 0.0


BUILTIN = CatalogModel(
    id="builtin",
    name="Understudy Reader v1 (built in)",
    parameters=0.0075,
    licence="Apache-2.0",
    context=1024,
    template=READER,
    stop=("<|im_end|>",),
    gguf_file="understudy-reader-v1.gguf",
    passages=4,
    history=0,
    cite_first=True,
    ram_gb=0.1,
)

CATALOG: dict[str, CatalogModel] = {BUILTIN.id: BUILTIN}


def resolve(settings: Settings) -> tuple[CatalogModel, Path]:
    """The catalog record and GGUF path of the model that `settings.model` names.

    Raises ModelError when the id is unknown or the file is not there.
    """
    raise NotImplementedError
