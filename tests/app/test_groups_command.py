"""`understudy groups`: members and documents by the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.groups_command import main
from core.db import Database
from core.errors import NotFoundError
from core.jobs import Jobs
from core.settings import load_settings
from rag.access import Access
from rag.documents import DocumentStore


def test_a_group_from_its_making_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_DATA_DIR", str(tmp_path))
    settings = load_settings()
    database = Database(settings.database)
    store = DocumentStore(database, settings)
    plan = store.add("plan.md", b"# Plan\n\nThe plan.", "upload")
    twins = [store.add("twin.md", f"# Twin\n\nNumber {n}.".encode(), "upload") for n in range(2)]
    store.add("hers.md", b"# Hers\n\nAnna's.", "upload", access=Access("api:anna"))

    def said(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out.strip()

    assert said("list").startswith("No groups yet.")
    assert said("create", "sales") == "Made the group sales."
    said("join", "sales", "api:anna", "local")
    said("leave", "sales", "local")
    assert said("give", "plan.md", "sales") == "plan.md is found by sales and you."
    assert store.get(plan.id).access == Access(visibility="owner", groups=("sales",))
    assert Jobs(database).list("ingest")  # the index follows
    assert said("list") == "sales: api:anna (1 document)"
    assert json.loads(said("list", "--json")) == [{"name": "sales", "members": ["api:anna"], "documents": 1}]
    for unknown in ("twin.md", "hers.md", "none.md"):
        with pytest.raises(NotFoundError):
            main(["give", unknown, "sales"])
    said("give", twins[0].id)
    assert store.get(twins[0].id).access == Access(visibility="owner")
    assert "owner's alone again" in said("remove", "sales")
    assert store.get(plan.id).access == Access(visibility="owner")
    database.close()
