"""Serve models over HTTP: OpenAI's addresses for pictures and captions, and jobs for everything
else."""

from __future__ import annotations

import argparse
from importlib.util import find_spec

from pydantic import ValidationError

from everyway.apps.cli.flags import Parser, described
from everyway.apps.cli.language import spoken
from everyway.apps.server.config import ServerConfig
from everyway.errors import UsageError
from everyway.settings import ConfigError, fault

BY_HAND = ("models", "provenance")
"""Fields that are flags of another form."""


def add_flags(p: Parser) -> None:
    said = "a model that is served; given again, one more"
    p.add_argument("--model", action="append", dest="models", help=said)
    p.add_argument("--provenance", action="store_true", help=described(ServerConfig, "provenance"))
    p.add_fields(ServerConfig, *(n for n in ServerConfig.model_fields if n not in BY_HAND))


def run(args: argparse.Namespace) -> int:
    config = config_of(args)
    needed = ("fastapi", "uvicorn", "prometheus_client", "multipart")
    if any(find_spec(name) is None for name in needed):
        raise UsageError("serve needs its packages: pip install 'everyway[serve]'")
    if config.engine == "ray":
        from everyway.apps.server import replicas

        return replicas.serve(config)
    from everyway.apps.server.process import address, bound, watched

    with bound(config.host, config.port) as own:
        print(spoken(f"listening at {address(own)}; Ctrl-C ends it"), flush=True)
        return watched(config, own)


def config_of(args: argparse.Namespace) -> ServerConfig:
    """What the flags say; ConfigError for what cannot be."""
    names = [name for name in ServerConfig.model_fields if name != "models"]
    given = {name: getattr(args, name) for name in names}
    try:
        config = ServerConfig(models=tuple(args.models or ["default"]), **given)
    except ValidationError as error:
        raise ConfigError(fault(error)) from None
    assert config.token is not None  # what cannot be read is told now
    return config
