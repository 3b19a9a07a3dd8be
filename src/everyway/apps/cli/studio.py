"""Everything that a model can do, in a browser on this machine, and the API beside it."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from everyway.apps.cli.flags import Parser, folder
from everyway.apps.cli.language import spoken
from everyway.errors import UsageError

NEEDED = ("gradio", "fastapi", "uvicorn", "prometheus_client", "multipart")


def add_flags(p: Parser) -> None:
    said = "a model that pages offer; given again, one more; by default all that are shipped"
    p.add_argument("--model", action="append", dest="models", help=said)
    p.add_argument("--out", type=folder, default="out", help="for all that is made, as of generate")
    p.add_argument("--port", type=int, default=7860, help="where it listens; 0 is any that is free")


def run(args: argparse.Namespace) -> int:
    if any(find_spec(name) is None for name in NEEDED):
        raise UsageError("the studio needs its packages: pip install 'everyway[studio]'")
    print(spoken("loading"), file=sys.stderr, flush=True)  # which takes seconds
    import uvicorn

    from everyway.apps.server.app import build
    from everyway.apps.server.config import ServerConfig
    from everyway.apps.server.process import address, bound
    from everyway.apps.studio.bench import Studio
    from everyway.apps.studio.site import mount
    from everyway.library import shipped

    with bound("127.0.0.1", args.port) as own:
        app = build(ServerConfig(port=args.port), models={})
        names = args.models or shipped()
        mount(app, Studio(out=Path(args.out), names=names, scheduler=app.state.scheduler))
        print(spoken(f"the studio is at {address(own)}/; Ctrl-C ends it"), flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[own])
    return 0
