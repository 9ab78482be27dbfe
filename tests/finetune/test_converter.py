from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from core.errors import ModelError
from core.files import sha256_of, write_json
from core.gguf import check_gguf
from finetune import converter
from finetune.converter import (
    check_tokenizer,
    declare_no_bos,
    hf_to_gguf,
    install,
    installed,
    lora_to_gguf,
    probe_strings,
    refuse_unservable,
)
from tests.tiny import TinyModel


def test_two_hundred_different_strings() -> None:
    assert len(set(probe_strings())) == len(probe_strings()) == 200


def test_the_converted_model_tokenizes_as_the_original(tiny_model: TinyModel) -> None:
    assert check_tokenizer(tiny_model.folder, tiny_model.gguf) == 200


def test_a_wrongly_declared_pre_tokenizer_is_found(tiny_model: TinyModel, tmp_path: Path) -> None:
    wrong = hf_to_gguf(tiny_model.folder, tmp_path / "wrong.gguf", pre="qwen2")
    with pytest.raises(ModelError, match=r"tokenizes \d+ of 200 strings differently"):
        check_tokenizer(tiny_model.folder, wrong)


def test_the_adapter_fits_its_base(tiny_model: TinyModel) -> None:
    info = check_gguf(tiny_model.adapter(1) / "adapter.gguf", "adapter")
    assert info.metadata["adapter.lora.alpha"] == 8
    assert len(info.shapes) == 2 * 7 * 2  # layers x projections x (A, B)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rslora", True),
        ("use_dora", True),
        ("alpha_pattern", {"q_proj": 3}),
        ("modules_to_save", ["lm_head"]),
    ],
)
def test_what_a_gguf_cannot_express_is_refused(
    key: str, value: object, tiny_model: TinyModel, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=key):
        refuse_unservable({key: value})
    folder = tmp_path / "adapter"
    shutil.copytree(tiny_model.adapter(1), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    write_json(folder / "adapter_config.json", config | {key: value})
    with pytest.raises(ModelError, match=key):
        lora_to_gguf(folder, tiny_model.folder, tmp_path / "out.gguf")


def test_failures_say_why_and_leave_nothing(tiny_model: TinyModel, tmp_path: Path) -> None:
    target = tmp_path / "out" / "model.gguf"
    with pytest.raises(ModelError, match=r"lacks config\.json"):
        hf_to_gguf(tmp_path, target)
    with pytest.raises(ModelError, match="is unknown"):
        hf_to_gguf(tiny_model.folder, target, outtype="q3")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model.folder, broken)
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="The GGUF converter failed: "):
        hf_to_gguf(broken, target)
    assert not list(tmp_path.rglob("*.gguf*"))


def test_no_bos_is_declared_once(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<s>"})
    declare_no_bos(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {
        "add_bos_token": False,
        "bos_token": "<s>",
    }


def test_install_refuses_another_archive(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no file"):
        install(tmp_path / "none.tar.gz", tmp_path / "llama.cpp")
    (tmp_path / "other.tar.gz").write_bytes(b"not the archive")
    with pytest.raises(ModelError, match="SHA-256"):
        install(tmp_path / "other.tar.gz", tmp_path / "llama.cpp")
    assert not (tmp_path / "llama.cpp").exists()


def test_install_unpacks_atomically_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tarfile

    archive, target = tmp_path / "sdist.tar.gz", tmp_path / "share" / "llama.cpp"
    with tarfile.open(archive, "w:gz") as tar:
        source = converter.converter_dir()
        for path in source.rglob("*"):
            if path.is_file() and path.name != converter.SOURCE and "__pycache__" not in path.parts:
                tar.add(path, f"{converter.ARCHIVE}/vendor/llama.cpp/{path.relative_to(source)}")
        tar.add(__file__, f"{converter.ARCHIVE}/vendor/llama.cpp/../../../evil.py")
        tar.add(__file__, f"{converter.ARCHIVE}/vendor/llama.cpp/src/llama.cpp")
    monkeypatch.setattr(converter, "ARCHIVE_SHA256", sha256_of(archive))
    target.mkdir(parents=True)
    (target / "half").touch()  # what a killed older run could have left
    assert install(archive, target) == target
    assert installed(target)
    assert (target / "gguf-py" / "gguf" / "__init__.py").exists()
    assert (target / "LICENSE").exists()
    assert not (target / "half").exists()
    assert not (target / "src").exists()
    assert not list(tmp_path.rglob("evil.py"))
    archive.unlink()
    assert install(archive, target) == target  # nothing to do, so no archive is needed
    assert [path.name for path in target.parent.iterdir()] == ["llama.cpp"]
