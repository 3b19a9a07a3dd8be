"""The studio: everything that a model can do, in a browser, and the API beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from everyway.apps.cli.flags import Parser, folder
from everyway.apps.cli.language import spoken
from everyway.errors import UsageError


def add_flags(p: Parser) -> None:
    many = {"action": "append", "default": []}
    said = "one that pages offer, a shipped name or a folder, once each; by default all shipped"
    p.add_argument("--model", **many, help=said)
    p.add_argument("--out", type=folder, default="out", help="for all that is made")
    p.add_argument("--port", type=int, default=7860, help="where it listens")


def run(args: argparse.Namespace) -> None:
    try:
        import fastapi
        import uvicorn

        from everyway.apps.server.scheduler import Scheduler
        from everyway.apps.studio.bench import Studio
        from everyway.apps.studio.site import mount
    except ImportError as error:
        raise UsageError(f"the studio needs {error.name}: pip install 'everyway[studio]'") from None
    from everyway.library import shipped

    studio = Studio(out=Path(args.out), names=args.model or shipped(), scheduler=Scheduler({}))
    app = mount(fastapi.FastAPI(), studio)
    print(spoken(f"the studio is at http://127.0.0.1:{args.port}/"), flush=True)
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning")
