"""Another server that writes the answers: its address, its key, and the record of its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core.catalog import CATALOG, CHATML, DEFAULT_CONTEXT, CatalogModel, installed, resolve
from core.settings import Settings


def address(settings: Settings) -> str:
    """The server's address without `/v1`."""
    return settings.endpoint.rstrip("/").removesuffix("/v1")


def headers(settings: Settings) -> dict[str, str]:
    """What shows the server our key, if there is one."""
    return {"Authorization": f"Bearer {settings.endpoint_key}"} if settings.endpoint_key else {}


def record(settings: Settings) -> tuple[CatalogModel, Path | None]:
    """The record of the model in the settings, and the path of its GGUF.

    With an endpoint the file may be missing (None), and a name that the catalog does not know is a chat model
    of DEFAULT_CONTEXT tokens that is not trained here. Without one it is `resolve`, with its ModelError.
    """
    name = settings.model
    if not settings.endpoint or name.endswith(".gguf"):
        return resolve(settings)
    known = CATALOG.get(name)
    model = known or CatalogModel(name, name, 0.0, "unknown", DEFAULT_CONTEXT, CHATML, ())
    path = installed(settings, known) if known else None
    return (replace(model, context=settings.context) if settings.context else model), path
