"""The web process: Streamlit's pages, the API and a health check in one ASGI app on one port."""

from __future__ import annotations

import logging
import secrets
import sys
import traceback
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from app.guard import Guard
from app.login import Login
from core.settings import PROJECT, Settings, load_settings, quiet_environment

log = logging.getLogger("understudy.web")


def create_app(settings: Settings) -> ASGIApp:
    """Pages at `/`, API at `/v1`, health at `/health`, all behind the Guard."""
    from streamlit.starlette import App

    from app.api import create_api
    from app.resources import resources

    shared = resources(settings)
    login = Login(settings)

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    pages = App(
        PROJECT / "app" / "main.py",
        routes=[Route("/health", health), *login.routes(), Mount("/v1", create_api(shared))],
        on_script_error=report_page_error,
    )
    configure_streamlit(settings)
    shared.warm_up()
    shared.resume()
    return Guard(pages, settings, login)


def streamlit_options(settings: Settings) -> dict[str, Any]:
    """What must hold whatever a configuration file or variable says."""
    return {
        "browser.gatherUsageStats": False,
        "client.showErrorDetails": "none",
        "client.toolbarMode": "minimal",
        "client.showErrorLinks": False,
        "client.disableDataExport": True,
        "client.allowedOrigins": [],
        "global.developmentMode": False,
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.enableStaticServing": False,
        "server.enableAgentApi": False,
        "server.fileWatcherType": "none",
        "server.headless": True,
        "server.address": settings.host,
        "server.port": settings.port,
        "server.maxUploadSize": settings.upload_mb,
        "server.disconnectedSessionTTL": 120,
        "logger.hideWelcomeMessage": True,
        "runner.magicEnabled": False,
    }


def configure_streamlit(settings: Settings) -> None:
    """Apply `streamlit_options` as flags, which win over files and environment."""
    from streamlit.web import bootstrap

    bootstrap.load_config_options(streamlit_options(settings))


def report_page_error(error: Exception) -> bool:
    """Log an uncaught error of a page under an id; the visitor sees only the id."""
    import streamlit as st

    number = secrets.token_hex(4)
    log.error("page error %s\n%s", number, "".join(traceback.format_exception(error)))
    st.error(
        f"Something went wrong on this page (error {number}). The web log says what.", icon=":material/error:"
    )
    return True


def main() -> int:
    """Serve until SIGTERM."""
    import uvicorn

    quiet_environment()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("uvicorn.error", "httpx", "httpx2", "openai", "chromadb", "sentence_transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    settings = load_settings()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        ws_max_size=2 * 1024 * 1024,
        ws="websockets-sansio",
        lifespan="on",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
