"""The studio in a real browser: a server in this process, and Chromium."""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

WIDE, NARROW = 1400, 400
PATIENCE = 120_000
"""Milliseconds, as a test machine may be busy."""
SHOTS = os.path.abspath(os.environ["EVERYWAY_SHOTS"]) if "EVERYWAY_SHOTS" in os.environ else None
"""Where pictures of pages are written for the documents; by default nowhere."""
COLOURS = 192
"""Of such a picture, so that it is small."""


def chromium() -> str:
    """Where one is; the test is skipped where none can be had."""
    pytest.importorskip("playwright", reason="pip install playwright")
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    return pytest.skip("there is no Chromium here: apt-get install chromium")


@contextmanager
def serving(out: Path, names: list[str]):
    """(address, studio) of a studio in this process, at a port of its own."""
    gradio = "the studio needs its packages: pip install 'everyway[studio]'"
    for package in ("gradio", "fastapi", "prometheus_client"):
        pytest.importorskip(package, reason=gradio)
    uvicorn = pytest.importorskip("uvicorn", reason=gradio)
    from everyway.apps.server.app import build
    from everyway.apps.server.config import ServerConfig
    from everyway.apps.studio.bench import Studio
    from everyway.apps.studio.site import mount

    app = build(ServerConfig(grace=1.0), models={})
    studio = Studio(out=out, names=names, scheduler=app.state.scheduler)
    mount(app, studio)
    settings = uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=2)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", studio
    finally:
        studio.trainings.close()
        server.should_exit = True
        thread.join(30)


@contextmanager
def browsing():
    """A browser."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        made = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


class Visit:
    """A page of the studio in a window of its own; `foreign` has what it asked others for, `faults`
    what its scripts did wrong and what was not found."""

    def __init__(self, browser, address: str, language="en", width=WIDE, dark=False) -> None:
        size = {"width": width, "height": 900}
        scheme = "dark" if dark else "light"
        self.page = browser.new_page(viewport=size, color_scheme=scheme)
        self.page.set_default_timeout(PATIENCE)
        self.foreign, self.faults = [], []
        own = (address, "data:", "blob:")
        self.page.on("request", lambda r: r.url.startswith(own) or self.foreign.append(r.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("response", lambda r: r.status < 400 or self.faults.append(r.url))
        self.page.goto(f"{address}/{language}/")
        self.page.wait_for_selector("#hero .ew-plane")

    def open(self, name: str) -> None:
        """A page by its name."""
        self.page.click(f"#ew-nav [data-page={name}]")
        self.page.wait_for_selector(f"#page-{name}", state="visible")

    def shot(self, name: str, whole: bool = False) -> None:
        """A picture of the window for the documents."""
        if not SHOTS:
            return
        path = Path(SHOTS) / f"studio-{name}.png"
        self.page.mouse.move(0, 0)
        self.page.evaluate("document.activeElement?.blur()")
        self.page.wait_for_timeout(600)
        self.page.screenshot(path=path, full_page=whole)
        with Image.open(path) as image:
            image.convert("RGB").quantize(COLOURS).save(path, optimize=True)

    def set_number(self, element: str, value: int) -> None:
        """Of a slider or a number, by its field."""
        field = self.page.locator(f"{element} input[type=number]").first
        field.fill(str(value))
        field.blur()

    def settings(self) -> None:
        """Opens those of the first page."""
        self.page.click("#settings button")
        self.page.wait_for_selector("#settings .ew-seed input", state="visible")

    def drag(self, canvas: str, *points: tuple[float, float]) -> None:
        """A stroke over a canvas through points, as shares of its sides."""
        self.page.locator(canvas).scroll_into_view_if_needed()
        box = self.page.locator(canvas).bounding_box()
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        self.page.mouse.move(*places[0])
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*place, steps=4)
        self.page.mouse.up()
