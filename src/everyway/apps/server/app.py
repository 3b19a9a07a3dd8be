"""The server as an ASGI application: `build` puts its parts together, once.

Watched -> Known -> Bounded -> FastAPI (jobs, openai, health; the studio is mounted there)
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from everyway import __version__
from everyway.apps.server import jobs, openai
from everyway.apps.server.answers import HANDLERS, Refusal
from everyway.apps.server.config import ServerConfig
from everyway.apps.server.gate import Bounded, Known
from everyway.apps.server.journal import Journal
from everyway.apps.server.scheduler import Scheduler
from everyway.apps.server.served import filter_of, stamp_of
from everyway.apps.server.streams import Reading, apart
from everyway.apps.server.watching import Numbers, Watched

if TYPE_CHECKING:
    from everyway.generate import Model

LOOK = 1.0
"""Seconds between looks at what is due."""
WORDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
"""Bounds in pydantic's words -> in those of JSON Schema."""
log = logging.getLogger("everyway.server")


def loaded(config: ServerConfig) -> dict[str, Model]:
    """Name -> model, of those that a server has.  Raises as `everyway.load`."""
    from everyway.apps.cli.making import sparing
    from everyway.generate import load

    every = [sparing(load(n, config.device, config.dtype)) for n in config.models]
    return {model.name: model for model in every}


def build(config: ServerConfig, models: Mapping[str, Model] | None = None) -> FastAPI:
    """The application; its `state` has config, scheduler, desk and reading.

    models: loaded already; by default those that the config names are loaded now.
    Its own folder of jobs, where the config names none, is removed as it ends.
    """
    scheduler = Scheduler(
        loaded(config) if models is None else models,
        together=config.together,
        gather=config.gather,
        waiting=config.max_waiting,
        timeout=config.timeout,
        refuses=filter_of(config),
        stamp=stamp_of(config),
    )
    app = FastAPI(
        title="Everyway",
        version=__version__,
        description="One model goes every way between images and text.",
        lifespan=_life,
        exception_handlers=HANDLERS,
        responses={"default": {"model": Refusal, "description": "What is wrong, in one line"}},
    )
    app.state.config, app.state.scheduler, app.state.reading = config, scheduler, Reading()
    numbers = Numbers(scheduler)
    app.add_middleware(Bounded, limit=config.max_body)
    app.add_middleware(Known, token=config.token, loopback=config.loopback)
    app.add_middleware(Watched, numbers=numbers)
    app.include_router(jobs.router)
    app.include_router(openai.router)
    _add_health(app, numbers)
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    config, scheduler = app.state.config, app.state.scheduler
    with tempfile.TemporaryDirectory(prefix="everyway-jobs-") as own:
        journal = Journal(Path(config.jobs or own), config.keep)
        desk = app.state.desk = jobs.Desk(scheduler, journal, config)
        await apart(desk.look_around)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_look_around, desk)
            tasks.start_soon(_hand_back, scheduler, config.grace)
            try:
                yield
            finally:
                await apart(scheduler.close, config.grace)
                tasks.cancel_scope.cancel()
        await apart(desk.close)


async def _look_around(desk: jobs.Desk) -> None:
    while True:
        await anyio.sleep(LOOK)
        try:
            await apart(desk.look_around)
        except Exception:  # it is tried again, as a disk may come back
            log.exception("a look at the jobs failed")


async def _hand_back(scheduler: Scheduler, grace: float) -> None:
    """Once it is stopped, ends what is not done in time, so that those who wait are told."""
    while scheduler.open:
        await anyio.sleep(LOOK)
    await apart(scheduler.close, grace)


def _add_health(app: FastAPI, numbers: Numbers) -> None:
    @app.get("/healthz", tags=["health"], response_model=dict[str, Any])
    async def healthz(request: Request) -> JSONResponse:
        """200 while the threads that compute live; else the server has to be started again."""
        sound = request.app.state.scheduler.sound
        return JSONResponse({"sound": sound}, 200 if sound else 503)

    @app.get("/readyz", tags=["health"], response_model=dict[str, Any])
    async def readyz(request: Request) -> JSONResponse:
        """200 while new requests are taken."""
        scheduler = request.app.state.scheduler
        ready = scheduler.sound and scheduler.open
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    @app.get("/metrics", tags=["health"], response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(numbers.registry), media_type=CONTENT_TYPE_LATEST)


def _schema(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, whose bounds are in JSON Schema's words, and whose refusals are those there are."""
    if not app.openapi_schema:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            made["components"]["schemas"].pop(name, None)
        app.openapi_schema = _worded(made)
    return app.openapi_schema


def _worded(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_worded(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    bound = {k for k in WORDS if isinstance(schema.get(k), (int, float))}
    return {WORDS[k] if k in bound else k: _worded(v) for k, v in schema.items()}
