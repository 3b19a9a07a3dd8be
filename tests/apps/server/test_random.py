"""Random requests out of the OpenAPI schema: the server answers each, and stays up."""

from __future__ import annotations

import os
import threading

import httpx
import pytest

from everyway.generate import load
from serving import running

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")
hypothesis = pytest.importorskip("hypothesis", reason="pip install hypothesis")
MOST = {"max_n": 2, "max_steps": 2, "max_frames": 2, "max_rounds": 1}
"""So that what happens to be valid is soon made."""
LEFT_OUT = ("/v1/everyway/jobs/{id}/events",)
"""Whose answer lasts as long as the job."""


@pytest.fixture(scope="module")
def server():
    with running({"nano": load("nano")}, **MOST) as (address, app):
        yield address, app


def asked(address, count):
    """Sends as many requests, those of the schema and those against it in turns -> statuses."""
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [o.ok() for o in schema.get_all_operations()]
    operations = [o for o in operations if o.path not in LEFT_OUT]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    found, each = [], -(-count // len(operations))  # many have few that are against them
    for operation in operations:
        for mode in modes:
            try:
                strategy = operation.as_strategy(generation_mode=mode)
                _send(strategy, address, each, found)
            except hypothesis.errors.Unsatisfiable:  # nothing is against it
                continue
    return found


def _send(strategy, address, count, found):
    checks = hypothesis.HealthCheck

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[*checks],
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(case=strategy)
    def send(case):
        answer = case.call(base_url=address, timeout=120)
        found.append((case.method, case.operation.path, answer.status_code))
        if answer.status_code >= 400:
            said = answer.json()["error"]["message"]
            assert "Traceback" not in said and "/src/" not in said and "\n" not in said

    send()


def check(server, count):
    address, app = server
    found = asked(address, count)
    odd = sorted({row for row in found if row[2] >= 500 or row[2] == 413 and row[0] == "GET"})
    assert not odd
    for ticket in app.state.scheduler.live:
        ticket.cancel()
    with httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/readyz").json() == {"ready": True}
        drawn = {"prompt": "a red ring", "num_inference_steps": 1}
        assert client.post("/v1/images/generations", json=drawn).is_success
    assert threading.active_count() < 60 and len(os.listdir("/proc/self/fd")) < 300
    return found


@pytest.mark.slow
def test_ten_thousand_random_requests(server):
    found = check(server, int(os.environ.get("EVERYWAY_REQUESTS", 10_000)))
    print({status: sum(row[2] == status for row in found) for status in {row[2] for row in found}})
