"""Settings refuse what they do not know and never open the door by mistake."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from core.errors import SettingsError
from core.settings import PROJECT, Settings, child_environment, engine_key, is_loopback, load_settings

HOSTS = {
    "127.0.0.1": True,
    "localhost": True,
    "::1": True,
    "0.0.0.0": False,
    "::": False,
    "192.168.1.5": False,
    "example.org": False,
    "": False,
}
PASSWORDS = ("", "short", "long enough to count")


@pytest.mark.parametrize(("host", "password"), list(product(HOSTS, PASSWORDS)))
def test_other_machines_need_a_password(host: str, password: str) -> None:
    """W01: all 24 combinations; no address that others reach without a long password."""
    environ = {"UNDERSTUDY_HOST": host, "UNDERSTUDY_PASSWORD": password}
    if HOSTS[host] or len(password) >= 12:
        assert load_settings(environ).host == host
    else:
        with pytest.raises(SettingsError, match="password is required"):
            load_settings(environ)


def test_spaces_are_no_password() -> None:
    with pytest.raises(SettingsError, match="password"):
        load_settings({"UNDERSTUDY_HOST": "0.0.0.0", "UNDERSTUDY_PASSWORD": " " * 20})


def test_without_anything_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings({})
    assert settings == Settings()
    assert is_loopback(settings.host)
    assert settings.data_dir == PROJECT / "data"
    assert settings.database.parent == settings.data_dir
    assert settings.method_list == ("sft", "dpo")


def test_later_sources_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "understudy.toml").write_text('port = 1\nengine_port = 2\nmodel = "x"\nfour_bit = true\n')
    settings = load_settings(
        {"UNDERSTUDY_PORT": "10", "UNDERSTUDY_ENGINE_PORT": "20"}, port=100, context=None
    )
    assert (settings.port, settings.engine_port, settings.model, settings.four_bit) == (100, 20, "x", True)
    other = tmp_path / "other.toml"
    other.write_text("port = 7\n")
    assert load_settings({"UNDERSTUDY_CONFIG": str(other)}).port == 7


@pytest.mark.parametrize(
    ("environ", "overrides", "names"),
    [
        ({"UNDERSTUDY_PROT": "1"}, {}, "'prot' .*UNDERSTUDY_PROT"),
        ({"UNDERSTUDY_DATA": "/x"}, {}, "'data'"),
        ({}, {"colour": "red"}, "'colour' .*command line"),
    ],
)
def test_an_unknown_setting_is_named_with_its_source(
    environ: dict[str, str], overrides: Any, names: str
) -> None:
    with pytest.raises(SettingsError, match=names) as caught:
        load_settings(environ, **overrides)
    assert "data_dir" in caught.value.next_step


def test_other_variables_are_none_of_ours() -> None:
    assert load_settings({"PATH": "/bin", "understudy_port": "1", "UNDERSTUD": "x"}).port == 8400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", "eighty"),
        ("port", "70000"),
        ("port", "-1"),
        ("port", "8400.5"),
        ("temperature", "nan"),
        ("temperature", "inf"),
        ("temperature", "2.1"),
        ("four_bit", "maybe"),
        ("data_dir", ""),
        ("data_dir", "/"),
        ("data_dir", "~"),
        ("data_dir", "~nobody-of-this-name/x"),
        ("data_dir", "a\nb"),
        ("data_dir", "a\0b"),
        ("adapters_aside", "-1"),
        ("adapters_aside", "65"),
        ("schedule", "hourly"),
        ("schedule_hour", "24"),
        ("methods", ""),
        ("methods", "sft,ppo"),
        ("chunk_tokens", "1000"),
        ("upload_mb", "0"),
        ("seed", "-1"),
        ("support_threshold", "1.5"),
    ],
)
def test_a_bad_value_is_named_by_its_key(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=key):
        load_settings({f"UNDERSTUDY_{key.upper()}": value})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("port = ", "Could not read"),
        ("prot = 1", "'prot'"),
        ("[server]\nport = 1", "'server'"),
        ("port = true", "port"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=says) as caught:
        load_settings({"UNDERSTUDY_CONFIG": str(path)})
    assert "my.toml" in str(caught.value)


def test_a_config_that_is_not_there_is_not_ignored(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings({"UNDERSTUDY_CONFIG": str(tmp_path / "gone.toml")})


def test_one_port_is_not_given_twice() -> None:
    with pytest.raises(SettingsError, match="engine_port"):
        load_settings({}, port=8500, engine_port=8500)
    assert load_settings({}, port=0, engine_port=0).port == 0


def test_a_child_gets_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        {}, data_dir=tmp_path / "d", port=9, four_bit=True, temperature=0.5, password="x y"
    )
    monkeypatch.setenv("UNDERSTUDY_PORT", "1234")
    environment = child_environment(settings, EXTRA="1")
    assert environment["EXTRA"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
    assert load_settings(environment) == settings


def test_every_setting_has_a_default_of_its_type() -> None:
    for field in fields(Settings):
        assert field.type in (type(field.default).__name__, "Path"), field.name


def _key(folder: str) -> str:
    return engine_key(Settings(data_dir=Path(folder)))


def test_processes_that_start_together_share_one_secret_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for number in range(20):
            keys = set(pool.map(_key, [str(tmp_path / str(number))] * 8, chunksize=1))
            assert len(keys) == 1
            assert len(keys.pop()) >= 32
    folder = tmp_path / "0"
    assert [path.name for path in folder.iterdir()] == ["engine.key"]
    assert (folder / "engine.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "address", ["http://gpu-box:8000", "https://models.example/v1", "http://[::1]:8080/"]
)
def test_an_endpoint_is_an_address(address: str) -> None:
    assert load_settings({}, endpoint=address).endpoint == address


@pytest.mark.parametrize(
    "address",
    [
        "gpu-box:8000",
        "ftp://gpu-box",
        "http://",
        "http://user:secret@gpu-box",
        "http://gpu-box/?key=1",
        "http://a b",
    ],
)
def test_other_endpoints_are_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="not the address of a server"):
        load_settings({}, endpoint=address)


@pytest.mark.parametrize("languages", ["eng", "eng+deu", "chi_sim_vert+osd"])
def test_languages_are_named_as_tesseract_names_them(languages: str) -> None:
    assert load_settings({}, ocr_languages=languages).ocr_languages == languages


@pytest.mark.parametrize("languages", ["", "eng+", "eng,deu", "-l", "../eng", "eng deu", "script/Latin"])
def test_other_languages_are_refused(languages: str) -> None:
    with pytest.raises(SettingsError, match="ocr_languages"):
        load_settings({}, ocr_languages=languages)
