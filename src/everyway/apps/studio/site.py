"""The pages put together, in each language, and mounted on a server."""

from __future__ import annotations

from functools import partial
from html import escape
from inspect import signature
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everyway.apps.cli.language import translated
from everyway.apps.studio.bench import Studio
from everyway.apps.studio.blend import Blend
from everyway.apps.studio.create import Create
from everyway.apps.studio.explore import Explore
from everyway.apps.studio.gallery import Gallery
from everyway.apps.studio.models import Models
from everyway.apps.studio.paint import Paint
from everyway.apps.studio.train import Train
from everyway.apps.studio.views import WEB, Say, loaded

LANGUAGES = {"en": "English", "ko": "한국어"}
TABLES = {"ko": Path(__file__).with_name("korean.json")}
PAGES = {
    "Create": Create,
    "Blend": Blend,
    "Paint": Paint,
    "Explore": Explore,
    "Gallery": Gallery,
    "Models": Models,
    "Train": Train,
}
"""Name -> page, in the order of the tabs."""
MARK = (
    'viewBox="0 0 32 32" fill="none" stroke="#16708f" stroke-width="3" stroke-linecap="round" '
    'stroke-linejoin="round"><path d="M6 26L26 6M26 26H6V6"/>'
    '<circle cx="6" cy="26" r="4" fill="#c9411b" stroke="none"/></svg>'
)
"""The plane with its ways, as the inside of an SVG."""
SVG = "image/svg+xml"
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; "
    "form-action 'self'; base-uri 'self'"
)
"""Nothing is fetched from anywhere else, whatever a library's page asks for."""


class Policed:
    """ASGI middleware that adds POLICY to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def policed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, policed)


def mount(app: FastAPI, studio: Studio) -> FastAPI:
    """The studio on a server: /en/ and /ko/, the files that were made at /made/."""
    studio.out.mkdir(parents=True, exist_ok=True)

    app.add_middleware(Policed)

    @app.get("/", include_in_schema=False)
    def front(request: Request) -> RedirectResponse:
        wanted = request.headers.get("accept-language", "")[:2].lower()
        return RedirectResponse(f"{wanted if wanted in LANGUAGES else 'en'}/")

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(f'<svg xmlns="http://www.w3.org/2000/svg" {MARK}', media_type=SVG)

    app.mount("/made", StaticFiles(directory=studio.out), name="made")
    for language in LANGUAGES:
        gr.mount_gradio_app(
            app,
            pages(studio, language),
            f"/{language}",
            theme=theme(),
            css=(WEB / "look.css").read_text(encoding="utf-8"),
            head=head(language),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            max_file_size="32mb",
            show_error=True,
        )
    return app


def pages(studio: Studio, language: str) -> gr.Blocks:
    """Every page in one language, a tab each."""
    say = partial(said, language=language)
    other = next(name for name in LANGUAGES if name != language)
    with gr.Blocks(title="Everyway", analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(_header(say, other), elem_id="ew-header", js_on_load=None)
        nav = gr.HTML(_nav(say), elem_id="ew-nav", js_on_load=loaded("nav"))
        with gr.Tabs(elem_id="ew-pages") as tabs:
            made = {
                name: page(studio=studio, say=say, language=language)
                for name, page in PAGES.items()
            }
            for name, page in made.items():
                with gr.Tab(say(name), id=name.lower(), elem_id=f"page-{name.lower()}") as tab:
                    links: dict[str, Any] = {other.lower(): made[other] for other in made}
                    links |= {"tabs": tabs, "tab": tab}
                    page.build(**{k: links[k] for k in signature(page.build).parameters})
                    page.heed()
        nav.select(None, None, tabs, js="(event) => window.everywayPage")
        offered = [choice for page in made.values() for choice in page.offered]
        blocks.load(
            lambda: [gr.update(choices=[*studio.names]) for _ in offered],
            None,
            offered,
            queue=False,
            show_progress="hidden",
        )
    return blocks.queue(default_concurrency_limit=4)


def said(sentence: str, language: str) -> str:
    """A sentence in a language: by the studio's own table, else by that of the command line."""
    if language not in TABLES:
        return sentence
    own = translated(sentence, language, TABLES)
    return own if own != sentence else translated(sentence, language)


def _header(say: Say, other: str) -> str:
    return (
        f'<a class="ew-brand" href="./"><svg aria-hidden="true" {MARK}Everyway</a>'
        f'<nav class="ew-switches"><a href="../{other}/" lang="{other}" hreflang="{other}">'
        f"{LANGUAGES[other]}</a>"
        f'<button type="button" data-theme aria-label="{say("dark or light")}">◐</button></nav>'
    )


def _nav(say: Say) -> str:
    """The pages, all in sight at any width."""
    links = "".join(
        f'<button type="button" data-page="{name.lower()}">{escape(say(name))}</button>'
        for name in PAGES
    )
    return f'<nav aria-label="{escape(say("pages"))}">{links}</nav>'


def head(language: str) -> str:
    """The components of our own, and the language of the built-in ones."""
    scripts = [path.read_text(encoding="utf-8") for path in sorted(WEB.glob("*.js"))]
    own = f'document.documentElement.lang = "{language}";'
    fixed = (
        f'Object.defineProperty(navigator, "language", {{ get: () => "{language}" }});'
        f'Object.defineProperty(navigator, "languages", {{ get: () => ["{language}"] }});'
    )
    return "".join(f"<script>{code}</script>" for code in (fixed, own, *scripts))


def theme() -> gr.themes.Base:
    """Warm paper and ink, coral for what is to be pressed; fonts are the system's own."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans CJK KR", "Noto Sans KR"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=[*fonts, "sans-serif"],
        font_mono=mono,
    ).set(
        body_background_fill="#faf7f2",
        body_background_fill_dark="#15141a",
        body_text_color="#1f1d24",
        body_text_color_dark="#efedf5",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1e1c25",
        block_border_width="1px",
        block_border_color="#e8e2d8",
        block_border_color_dark="#322f3d",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0",
        input_border_width="1px",
        input_border_color="#e0d9cd",
        input_border_color_dark="#3a3646",
        input_background_fill="#ffffff",
        input_background_fill_dark="#26232f",
        border_color_primary="#e0d9cd",
        border_color_primary_dark="#3a3646",
        color_accent="#c9411b",
        slider_color="#c9411b",
        slider_color_dark="#ff8a5c",
        checkbox_background_color_selected="#c9411b",
        checkbox_background_color_selected_dark="#d8502a",
        checkbox_border_color_selected="#c9411b",
        checkbox_border_color_selected_dark="#d8502a",
        button_primary_background_fill="#c9411b",
        button_primary_background_fill_hover="#b03615",
        button_primary_background_fill_dark="#d8502a",
        button_primary_background_fill_hover_dark="#e4632f",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#f1ebe1",
        button_secondary_background_fill_hover="#e8dfd1",
        button_secondary_background_fill_dark="#2c2936",
        button_secondary_background_fill_hover_dark="#393545",
    )
