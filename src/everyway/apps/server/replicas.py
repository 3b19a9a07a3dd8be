"""`everyway serve --engine ray`: replicas of the server behind Ray Serve's proxy, one a device.

Every replica is the whole application with a queue of its own.  They share the folder of jobs, so a
job that one has accepted is found through any, and is taken up by another when its replica dies.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from everyway.apps.server.config import ServerConfig
from everyway.errors import UsageError

APPLICATION = "everyway"
CONCURRENT = 512
"""Requests that a replica holds at a time; its own queue refuses those that are too many."""


def application(config: ServerConfig) -> Any:
    """What `ray serve` runs: a deployment of as many replicas as the config says."""
    try:
        from ray import serve
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install 'everyway[ray]'") from None

    def built() -> Any:
        """In the replica's own process."""
        return _built(config)

    @serve.deployment(
        name="Replica",
        num_replicas=config.replicas,
        max_ongoing_requests=CONCURRENT,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(_on_gpu(config))},
        graceful_shutdown_timeout_s=config.grace,
    )
    @serve.ingress(built)
    class Replica:
        """The application."""

    return Replica.bind()  # type: ignore[attr-defined]


def serve(config: ServerConfig) -> int:
    """Runs replicas on this machine until Ctrl-C; on a cluster of Ray, on all of it."""
    served = application(config)
    import ray
    from ray import serve as ray_serve

    with tempfile.TemporaryDirectory(prefix="everyway-jobs-") as jobs:
        if not config.jobs:
            served = application(config.model_copy(update={"jobs": jobs}))
        ray.init(ignore_reinit_error=True, log_to_driver=True)
        ray_serve.start(http_options={"host": config.host, "port": config.port})
        try:
            ray_serve.run(served, name=APPLICATION, route_prefix="/")
            while True:
                time.sleep(1)
        finally:
            ray_serve.shutdown()
            ray.shutdown()


def _built(config: ServerConfig) -> Any:
    from everyway.apps.server.app import build
    from everyway.apps.server.watching import log_lines

    log_lines()
    return build(config)


def _on_gpu(config: ServerConfig) -> bool:
    import torch

    return config.device.startswith("cuda") or (
        config.device == "auto" and torch.cuda.is_available()
    )
