"""`understudy adapters`: what is on stage, what waits, and putting one on or off."""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from core.adapters import Adapter, AdapterRegistry
from core.db import Database
from core.endpoint import record
from core.settings import load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """List, promote or roll back adapters of the model in the settings."""
    parser = argparse.ArgumentParser(prog="understudy adapters", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every adapter, and which is on stage")
    listing.add_argument("--json", action="store_true", help="machine-readable output")
    promote = actions.add_parser("promote", help="put an adapter on stage")
    promote.add_argument("adapter", help="its id")
    promote.add_argument("--reason", required=True, help="why, for the audit log")
    rollback = actions.add_parser("rollback", help="put back what was on stage before")
    rollback.add_argument("--reason", required=True, help="why, for the audit log")
    options = parser.parse_args(argv)

    settings = load_settings()
    base = record(settings)[0].id
    database = Database(settings.database)
    registry = AdapterRegistry(database, settings.data_dir / "adapters")
    try:
        if options.action == "list":
            show(registry, base, as_json=options.json)
        elif options.action == "promote":
            registry.promote(options.adapter, getpass.getuser(), options.reason)
            print(f"{options.adapter} is on stage. A running engine takes it up within seconds.")
        else:
            now = registry.rollback(base, getpass.getuser(), options.reason)
            print(f"{now.adapter_id or 'The bare base model'} is on stage again.")
    finally:
        database.close()
    return 0


def show(registry: AdapterRegistry, base: str, *, as_json: bool) -> None:
    """Print the adapters of `base`, newest first; the one on stage carries a star."""
    stage = registry.on_stage(base)
    current = stage.adapter_id if stage else None
    rows = [_row(adapter, adapter.id == current) for adapter in registry.all(base)]
    if as_json:
        print(json.dumps({"base": base, "on_stage": current, "adapters": rows}, indent=2))
        return
    print(f"On stage: {current or f'the bare base model ({base})'}")
    for row in rows:
        star = "*" if row["on_stage"] else " "
        print(f"{star} {row['id']:<28} {row['verdict']:<9} {row['method']:<10} {row['created']}")
    if not rows:
        print("No adapters yet. Vote, approve corrections, then run `understudy retrain`.")


def _row(adapter: Adapter, on_stage: bool) -> dict[str, Any]:
    return {
        "id": adapter.id,
        "on_stage": on_stage,
        "verdict": adapter.verdict,
        "method": adapter.method,
        "run": adapter.run_id,
        "dataset": adapter.dataset_version,
        "created": datetime.fromtimestamp(adapter.created_at / 1000).isoformat(" ", "seconds"),
    }
