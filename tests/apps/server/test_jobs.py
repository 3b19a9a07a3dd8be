"""The whole request over HTTP: followed, cancelled, kept, and taken up where a server died."""

from __future__ import annotations

import errno
import io
import json
import threading
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from everyway.apps.server.border import JobRequest
from everyway.apps.server.journal import Journal
from everyway.generate import Model, load
from everyway.job import Job
from everyway.record import read_record
from everyway.request import GenerateRequest
from serving import png, running, text_of

JOBS = "/v1/everyway/jobs"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    with running({"nano": load("nano")}, jobs=str(folder), max_rounds=4) as (address, app):
        with httpx.Client(base_url=address, timeout=60) as client:
            yield SimpleNamespace(client=client, app=app, folder=folder)


@pytest.fixture
def client(server):
    return server.client


def events_of(client, id, **headers):
    """(event, id, data) of a job's stream."""
    found = []
    with client.stream("GET", f"{JOBS}/{id}/events", headers=headers) as stream:
        for block in "".join(stream.iter_text()).split("\n\n"):
            lines = dict(
                row.split(": ", 1) for row in block.split("\n") if row[:1] not in ("", ":")
            )
            if lines:
                data = json.loads(lines["data"])
                found.append((lines.get("event"), lines.get("id"), data))
    return found


def done(client, id):
    """A job once it has ended."""
    for _ in range(600):
        view = client.get(f"{JOBS}/{id}").json()
        if view["ended"]:
            return view
        time.sleep(0.02)
    raise AssertionError(view)


REQUESTS = {
    "joint": {"kind": "joint", "n": 2},
    "chain": {"kind": "chain", "text": "a red ring", "rounds": 2},
    "interpolation": {"kind": "interpolate", "images": ["teal", "red"], "frames": 3},
    "from a noisy text": {
        "kind": "text-to-image",
        "text": "a red ring",
        "given_noise": {"text": 0.3},
    },
    "inpainting": {"kind": "inpaint", "text": "a red ring", "images": ["teal"], "mask": "white"},
}


@pytest.mark.parametrize("body", REQUESTS.values(), ids=REQUESTS)
def test_a_job_is_what_it_is_alone(client, nano, body, tmp_path):
    own = {"seed": 3, "steps": 2, "model": "nano", **body}
    sent = {k: _sent(k, v) for k, v in own.items()}
    answer = client.post(JOBS, json=sent)
    assert answer.status_code == 202
    id = answer.json()["id"]
    told = events_of(client, id)
    names = [name for name, *_ in told]
    assert names[-1] == "end" and told[-1][2] == {"status": "done", "error": None}
    view = done(client, id)
    assert [data for name, _, data in told if name == "result"] == view["results"]
    files = {c: png(c) for c in ("teal", "red", "white")}
    expected = nano.generate(Job(request=GenerateRequest(**own), files=files))
    assert len(view["results"]) == len(expected)
    by_place = {(row["seed"], row["part"]): row for row in view["results"]}
    for result in expected:
        row = by_place[result.seed, result.part]
        assert row.get("text") == result.text
        if result.image:
            content = client.get(row["image"]).content
            assert Image.open(io.BytesIO(content)).tobytes() == result.image.tobytes()
            (path := tmp_path / "a.png").write_bytes(content)
            assert read_record(path).request.seed == result.seed


def _sent(name, value):
    if name == "images":
        return [text_of(png(colour)) for colour in value]
    return text_of(png(value)) if name == "mask" else value


def test_steps_have_previews(client):
    id = client.post(JOBS, json={"kind": "joint", "steps": 4}).json()["id"]
    steps = [data for name, _, data in events_of(client, id) if name == "step"]
    assert [s["step"] for s in steps][-1] == 4 and steps[-1]["done"] == 1
    seen = [preview for s in steps for preview in s["previews"]]
    assert seen and {"image", "text"} <= seen[0]["outputs"].keys()


def test_a_client_that_comes_back_gets_what_it_missed(client):
    id = client.post(JOBS, json={"kind": "joint", "steps": 1, "n": 3}).json()["id"]
    assert done(client, id)["status"] == "done"
    whole = events_of(client, id)
    assert [e[1] for e in whole] == ["1", "2", "3", None]
    assert events_of(client, id, **{"last-event-id": "2"}) == whole[2:]


class Gate:
    def __init__(self, monkeypatch):
        self.opened, run = threading.Event(), Model.batch

        def held(model, batch):
            for event in run(model, batch):
                yield event
                assert self.opened.wait(20)

        monkeypatch.setattr(Model, "batch", held)


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


def test_lists_and_cancels(client, gate):
    ids = [client.post(JOBS, json={"kind": "joint", "steps": k}).json()["id"] for k in (2, 3)]
    listed = client.get(JOBS, params={"limit": 2}).json()["data"]
    assert {job["id"] for job in listed} == {*ids} and not any(job["results"] for job in listed)
    assert client.delete(f"{JOBS}/{ids[0]}").status_code == 409
    assert client.post(f"{JOBS}/{ids[1]}/cancel").status_code == 200
    assert done(client, ids[1])["error"]["code"] == "cancelled"
    waiting = client.get(JOBS, params={"status": "cancelled"}).json()["data"]
    assert ids[1] in [job["id"] for job in waiting]
    gate.opened.set()
    assert done(client, ids[0])["status"] == "done"
    assert client.post(f"{JOBS}/{ids[0]}/cancel").json()["status"] == "done"
    assert client.delete(f"{JOBS}/{ids[0]}").status_code == 204
    assert client.get(f"{JOBS}/{ids[0]}").status_code == 404


def test_a_cancel_storm(client, gate):
    ids = [
        client.post(JOBS, json={"kind": "joint", "steps": 2, "seed": k}).json()["id"]
        for k in range(20)
    ]
    kept = ids[::5]
    for id in ids:
        if id not in kept:
            for _ in range(2):
                assert client.post(f"{JOBS}/{id}/cancel").status_code == 200
    gate.opened.set()
    assert [done(client, id)["status"] for id in kept] == ["done"] * 4
    assert {done(client, id)["status"] for id in ids if id not in kept} == {"cancelled"}


def test_clients_that_go_cancel_what_they_waited_for(server, client, gate):
    scheduler = server.app.state.scheduler
    body = {"prompt": "a red ring", "num_inference_steps": 2}
    for more in ({}, {"stream": True, "partial_images": 1}) * 5:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/images/generations", json={**body, **more}, timeout=0.2)
    id = client.post(JOBS, json={"kind": "joint", "steps": 2}).json()["id"]
    with pytest.raises(httpx.ReadTimeout):
        with client.stream("GET", f"{JOBS}/{id}/events", timeout=0.2) as stream:
            [*stream.iter_text()]
    for _ in range(200):
        if len(scheduler.live) == 1:
            break
        time.sleep(0.02)
    assert [ticket.id for ticket in scheduler.live] == [id]
    gate.opened.set()
    assert done(client, id)["status"] == "done"


def test_embeddings_are_given_as_safetensors(nano):
    from safetensors.numpy import save

    from everyway.apps.server.border import attached
    from everyway.apps.server.config import Limits
    from everyway.request import RequestError

    tokens = np.arange(6, dtype=np.float32).reshape(2, 3)
    context = {"embedding": text_of(save({"tokens": tokens})), "condition": "image"}
    asked = JobRequest(kind="image", contexts=[context])
    job = attached(asked, nano, Limits())
    (own,) = job.request.contexts
    assert np.array_equal(job.files[own.embedding], tokens) and own.condition == "image"
    huge = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    traps = [huge, len(huge).to_bytes(8, "little") + huge, b"\xff" * 40, save({})]
    for trap in [*traps, save({"a": tokens, "b": tokens})]:
        own = {"embedding": text_of(trap), "condition": "image"}
        with pytest.raises(RequestError, match="tensor"):
            attached(JobRequest(kind="image", contexts=[own]), nano, Limits())


# -- what is on disk -----------------------------------------------------------------------------


def test_a_job_whose_server_died_is_taken_up(nano, tmp_path):
    journal = Journal(tmp_path, keep=3600)
    request = {"kind": "joint", "steps": 2, "seed": 5, "model": "nano", "n": 2}
    lost, held, poison = (f"{k:032x}" for k in range(3))
    locks = {id: journal.add(id, request) for id in (lost, held, poison)}
    for id in (lost, poison):
        locks[id].release()
    for _ in range(2):
        journal.begin_again(poison)
    (tmp_path / lost / "00000.png").write_bytes(b"half")
    with running({"nano": nano}, jobs=str(tmp_path)) as (address, _):
        with httpx.Client(base_url=address) as client:
            view = done(client, lost)
            assert [row["seed"] for row in view["results"]] == [5, 6]
            (own, *_) = nano.generate(GenerateRequest(**request))
            content = client.get(view["results"][0]["image"]).content
            assert Image.open(io.BytesIO(content)).tobytes() == own.image.tobytes()
            assert done(client, poison)["status"] == "failed"
            assert client.get(f"{JOBS}/{held}").json()["status"] == "waiting"
            client.post(f"{JOBS}/{held}/cancel")
    assert journal.unwanted(held)


def test_a_shutdown_hands_back_what_is_not_done(nano, tmp_path, gate):
    with running({"nano": nano}, jobs=str(tmp_path), grace=0.2) as (address, app):
        ids = [httpx.post(address + JOBS, json={"kind": "joint", "steps": 3}).json()["id"]]
        threading.Timer(1.0, gate.opened.set).start()
    journal = Journal(tmp_path, keep=3600)
    assert journal.view(ids[0])["ended"] is None and [id for id, _ in journal.lost()] == ids


def test_a_full_disk_is_told_and_the_server_goes_on(server, client, monkeypatch):
    def no_room(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", no_room)
        answer = client.post(JOBS, json={"kind": "joint", "steps": 1})
        assert answer.status_code == 507 and answer.json()["error"]["code"] == "disk_full"
        assert not [p for p in server.folder.iterdir() if not (p / "job.json").exists()]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "save", no_room)
        id = client.post(JOBS, json={"kind": "joint", "steps": 1}).json()["id"]
        view = done(client, id)
        assert view["status"] == "failed" and view["error"]["code"] == "disk_full"
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "end", no_room)
        id = client.post(JOBS, json={"kind": "joint", "steps": 1}).json()["id"]
        server.app.state.scheduler._threads[0].join(0.3)
        assert client.get(f"{JOBS}/{id}").json()["ended"] is None
    assert done(client, id)["status"] == "done"
    id = client.post(JOBS, json={"kind": "joint", "steps": 1}).json()["id"]
    assert done(client, id)["status"] == "done"


def test_old_jobs_are_removed(tmp_path):
    journal = Journal(tmp_path, keep=0.0)
    for k in range(2):
        journal.add(f"{k:032x}", {"kind": "joint", "model": "nano", "n": 1}).release()
    journal.end(f"{0:032x}", "done", None)
    time.sleep(0.02)
    journal.tidy()
    assert journal.ids() == [f"{1:032x}"]
