"""The doctor finds what is wrong, says what to do, and exits 1 only for what must be mended."""

from __future__ import annotations

import json
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from app import doctor
from app.restore import STAGE
from core.db import Database
from core.settings import Settings


def levels(findings: list[doctor.Finding]) -> dict[str, str]:
    return {finding.what: finding.level for finding in findings}


def test_the_report_has_a_line_for_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_MODEL", str(tmp_path / "missing.gguf"))
    assert doctor.main(["--json"]) == 1
    found = [doctor.Finding(**row) for row in json.loads(capsys.readouterr().out)]
    seen = levels(found)
    assert seen["model"] == "fail"
    assert seen["python"] == seen["llama.cpp"] == seen["disk"] == seen["streamlit"] == "ok"
    assert all(finding.next_step for finding in found if finding.level != "ok")
    doctor.main([])
    assert "→" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("package", "version"), [("streamlit", "1.30.0"), ("torch", "2.9.1+cpu"), ("jinja2", "3.1.5")]
)
def test_a_version_with_a_known_hole_turns_red(package: str, version: str) -> None:
    assert doctor.below_floor({package: version}) == [package]
    assert doctor.below_floor({package: doctor.FLOORS[package][0]}) == []
    assert doctor.below_floor({package: None}) == []


def test_a_damaged_database_is_found(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    Database(settings.database).close()
    assert levels(list(doctor.state(settings)))["database"] == "ok"
    settings.database.write_bytes(b"not a database, but long enough to be looked at" * 50)
    [finding] = doctor.state(settings)
    assert (finding.what, finding.level) == ("database", "fail")
    assert "understudy restore" in finding.next_step


def test_an_interrupted_restore_is_found(tmp_path: Path) -> None:
    assert "restore" not in levels(list(doctor.state(Settings(data_dir=tmp_path))))
    (tmp_path / STAGE).mkdir()
    assert levels(list(doctor.state(Settings(data_dir=tmp_path))))["restore"] == "warn"


def test_a_data_folder_that_is_a_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    [finding] = doctor.state(Settings(data_dir=tmp_path / "file"))
    assert (finding.level, finding.what) == ("fail", "data folder")
    assert "data_dir" in finding.next_step
    [finding] = doctor.state(Settings(data_dir=tmp_path / "file" / "below"))
    assert finding.level == "fail"
    assert levels(list(doctor.state(Settings(data_dir=tmp_path / "to" / "be" / "made"))))["database"] == "ok"


def test_a_taken_port_is_found(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(data_dir=tmp_path, port=taken.getsockname()[1], engine_port=0)
        found = list(doctor.ports(settings))
    assert [finding.level for finding in found] == ["fail", "ok"]
    assert "UNDERSTUDY_PORT" in found[0].next_step


def test_a_build_for_another_cpu_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "NATIVE", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    found = next(doctor.native(Settings(data_dir=tmp_path)))
    assert found.level == "fail"
    assert "signal 4" in found.seen
    assert "Compile" in found.next_step


@pytest.mark.parametrize(
    ("trial", "level"),
    [("pass", None), ("import os; os.abort()", "warn"), ("import time; time.sleep(60)", "warn")],
)
def test_a_build_that_breaks_amx_is_named(
    trial: str, level: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = json.dumps(["0.3.36", "AVX2 = 1 | AMX_INT8 = 1", "3.60.0"])
    monkeypatch.setattr(doctor, "NATIVE", f"print({'FACTS' + facts!r})")
    monkeypatch.setattr(doctor, "AMX", [sys.executable, "-c", trial])
    monkeypatch.setattr(doctor, "TRIAL_SECONDS", 2.0)
    assert levels(list(doctor.native(Settings(data_dir=tmp_path)))).get("amx") == level


@pytest.mark.parametrize(("key", "level"), [("", "ok"), ("right", "ok"), ("wrong", "fail")])
def test_an_endpoint_that_answers_is_found(key: str, level: str, tmp_path: Path) -> None:
    class Listing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("authorization") in (None, "Bearer right")
            self.send_response(200 if known else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Listing)
    threading.Thread(target=server.handle_request, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    found = list(doctor.model(Settings(data_dir=tmp_path, model="house", endpoint=address, endpoint_key=key)))
    server.server_close()
    assert levels(found)["endpoint"] == level


def test_a_silent_endpoint_is_found(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        found = list(doctor.model(Settings(data_dir=tmp_path, model="house", endpoint=address)))
    assert levels(found) == {"endpoint": "fail", "model file": "warn"}
    assert all(finding.next_step for finding in found)


@pytest.mark.parametrize(
    ("languages", "level", "says"),
    [
        ("eng", "ok", "reads eng; it has eng, osd"),
        ("eng+deu", "warn", "no data for deu; it has eng, osd"),
        (None, "warn", "not installed"),
    ],
)
def test_tesseract_and_its_languages_are_looked_at(
    languages: str | None, level: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if languages:
        program = tmp_path / "tesseract"
        program.write_text("#!/bin/sh\necho 'List of available languages (2):'\necho osd\necho eng\n")
        program.chmod(0o755)
    [finding] = doctor.ocr(Settings(data_dir=tmp_path, ocr_languages=languages or "deu"))
    assert finding.level == level
    assert says in finding.seen
    assert level == "ok" or "apt install tesseract-ocr tesseract-ocr-deu" in finding.next_step
