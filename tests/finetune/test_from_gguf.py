"""Weights read back from a GGUF file are those that are served, and their tokenizer is the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.catalog import local_model
from core.errors import ModelError
from core.settings import Settings
from finetune import from_gguf
from finetune.converter import hf_to_gguf
from finetune.from_gguf import prepare, splitting, trainable_from_gguf
from finetune.plan import DEQUANTISED, trainable_folder
from tests.tiny import TinyModel

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def quantised(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in Q8_0."""
    return hf_to_gguf(tiny_model.folder, tmp_path_factory.mktemp("gguf") / "mine.gguf", "q8_0")


def test_the_weights_come_back_and_can_be_trained_on(
    tiny_model: TinyModel, quantised: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = Settings(data_dir=tmp_path)
    model = local_model(quantised)
    with pytest.raises(ModelError, match="no trainable weights"):
        trainable_folder(settings, model)
    said: list[str] = []
    folder = prepare(settings, model, quantised, said.append)
    assert folder == trainable_folder(settings, model) == tmp_path / "models" / "mine" / DEQUANTISED
    assert len(said) == 1
    assert prepare(settings, model, quantised, said.append) == folder
    assert len(said) == 1  # the second time it is there

    text = "Keep 12 bottles, it's the notice period's 3rd day.\n\nYes!"
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (tiny_model.folder, folder))
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert theirs.eos_token == "<|im_end|>"
    ids = torch.tensor([ours(text)["input_ids"]])
    with torch.no_grad():
        before, after = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (tiny_model.folder, folder)
        )
    assert torch.nn.functional.cosine_similarity(before[0], after[0]).min() > 0.99


def test_another_file_of_the_same_name_is_read_anew(
    tiny_model: TinyModel, quantised: Path, tmp_path: Path
) -> None:
    settings, model = Settings(data_dir=tmp_path), replace(local_model(quantised), id="same")
    folder = prepare(settings, model, quantised, lambda _: None)
    first = (folder / from_gguf.SOURCE).read_text("utf-8")
    prepare(settings, model, tiny_model.gguf, lambda _: None)
    assert (folder / from_gguf.SOURCE).read_text("utf-8") != first


def test_what_would_not_survive_is_refused(
    quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    with pytest.raises(ModelError, match="'viking' splits text is not known"):
        splitting("viking")
    with monkeypatch.context() as changed:
        changed.setattr(from_gguf, "memory_free", lambda _: 1000)
        with pytest.raises(ModelError, match=r"takes 0\.0 GB of RAM"):
            trainable_from_gguf(quantised, target)
    with monkeypatch.context() as changed:
        # a wrong rule would train on other tokens than are served
        changed.setattr(from_gguf, "splitting", lambda _: splitting("gpt-2"))
        with pytest.raises(ModelError, match="strings differently"):
            trainable_from_gguf(quantised, target)
    assert list(tmp_path.iterdir()) == []
