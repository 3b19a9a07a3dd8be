"""A server in this process, at a port of its own, and what is sent to it."""

from __future__ import annotations

import base64
import io
import threading
import time
from contextlib import contextmanager

import pytest
from PIL import Image

WHY = "the server's packages are missing: pip install -e '.[serve]'"
uvicorn = pytest.importorskip("uvicorn", reason=WHY)
pytest.importorskip("fastapi", reason=WHY)

from everyway.apps.server.app import build  # noqa: E402
from everyway.apps.server.config import ServerConfig  # noqa: E402


@contextmanager
def running(models, **settings):
    """(address, app) of a server of these models."""
    own = {"models": tuple(models), "grace": 1.0, **settings}
    app = build(ServerConfig(**own), models)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def png(colour="teal", size=(16, 16), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def text_of(content):
    return base64.b64encode(content).decode()


def picture(data):
    """Of an answer's base64."""
    return Image.open(io.BytesIO(base64.b64decode(data)))


def no_reds(what, made):
    """A content filter, as somebody would write it."""
    return "reds are not made here" if not made and "red" in str(what.get("text")) else None
