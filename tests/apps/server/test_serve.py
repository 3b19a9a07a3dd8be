"""The command: what it refuses, how results are stamped, and that a server that dies comes back."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

import everyway
from everyway.apps import cli
from everyway.apps.server.config import ServerConfig
from everyway.apps.server.served import MARKED, filter_of, stamp_of, watermark, watermarked
from everyway.record import MADE_BY_A_MODEL, read_record
from everyway.settings import ConfigError
from serving import png, running, text_of

JOBS = "/v1/everyway/jobs"


WRONG = {
    "everyone, without a token": (["--host", "0.0.0.0"], "--token-file"),
    "no token there": (["--token-file", "nowhere"], "nowhere"),
    "no such port": (["--port", "70000"], "65535"),
    "replicas of nothing": (["--replicas", "2"], "--engine ray"),
    "no address": (["--host", "203.0.113.7", "--token-file", "token"], "203.0.113.7"),
    "a limit of nothing": (["--max-n", "0"], "max_n"),
}


@pytest.mark.parametrize("words, said", WRONG.values(), ids=WRONG)
def test_what_cannot_be_served_is_one_line(run, words, said):
    Path("token").write_text("0123456789abcdef")
    code, out, err = run("serve", *words)
    assert code == 2 and said in err and err.count("\n") == 1 and not out


def test_a_port_that_is_taken(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("serve", "--port", taken.getsockname()[1])
    assert code == 2 and "cannot listen" in err


def test_pictures_say_that_a_model_made_them(nano, tmp_path):
    with running({"nano": nano}, provenance=True, content_filter="serving:no_reds") as (own, _):
        with httpx.Client(base_url=own) as client:
            body = {"kind": "text-to-image", "text": "a blue ring", "steps": 1}
            id = client.post(JOBS, json=body).json()["id"]
            while not (view := client.get(f"{JOBS}/{id}").json())["ended"]:
                time.sleep(0.02)
            (path := tmp_path / "a.png").write_bytes(
                client.get(view["results"][0]["image"]).content
            )
            assert MADE_BY_A_MODEL in Image.open(path).text["XML:com.adobe.xmp"]
            assert read_record(path).request.text == "a blue ring"
            answer = client.post(JOBS, json={**body, "text": "a red ring"})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "content_policy_violation"


def test_a_watermark_is_read_again_and_not_seen():
    pytest.importorskip(
        "imwatermark", reason="its package is missing: pip install -e '.[watermark]'"
    )
    picture = Image.effect_noise((MARKED, MARKED), 60).convert("RGB")
    marked = watermarked(picture, "everyway")
    assert watermark(marked, 8) == "everyway" != watermark(picture, 8)
    worst = max(abs(a - b) for a, b in zip(picture.tobytes(), marked.tobytes()))
    assert 0 < worst < 64


def test_what_stamps_and_filters_cannot_be():
    assert stamp_of(ServerConfig()) is None and filter_of(ServerConfig()) is None
    for name in ("nowhere:x", "everyway:x", "x", ":"):
        with pytest.raises(ConfigError, match="MODULE:FUNCTION"):
            filter_of(ServerConfig(content_filter=name))


@pytest.fixture
def serving(tmp_path):
    """Starts `everyway serve` in processes of its own -> (address, watcher)."""
    started = []

    def start(*words):
        environment = {**os.environ, "PYTHONPATH": str(Path(everyway.__file__).parents[1])}
        command = [sys.executable, "-m", "everyway.apps.cli", "serve", "--model=nano", "--port=0"]
        own = subprocess.Popen(
            [*command, *map(str, words)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=open(tmp_path / "log", "a"),
            text=True,
        )
        started.append(own)
        return own.stdout.readline().split()[2].rstrip(";"), own

    yield start
    for own in started:
        own.terminate()
        own.wait(60)


def child(own):
    """The server's process, once it answers."""
    return int(Path(f"/proc/{own.pid}/task/{own.pid}/children").read_text().split()[-1])


def ended(client, id):
    for _ in range(1200):
        view = client.get(f"{JOBS}/{id}").json()
        if view["ended"]:
            return view
        time.sleep(0.1)
    raise AssertionError(view)


@pytest.mark.slow
def test_a_server_that_is_killed_in_the_middle_of_jobs_makes_them_all(nano, serving, tmp_path):
    """kill -9, twice; who connects meanwhile waits."""
    address, own = serving("--jobs", tmp_path / "jobs")
    with httpx.Client(base_url=address, timeout=300) as client:
        assert client.get("/readyz").is_success
        body = {"kind": "joint", "steps": 60, "n": 4}
        ids = [client.post(JOBS, json={**body, "seed": 10 * k}).json()["id"] for k in range(6)]
    for _ in range(2):
        former = child(own)
        os.kill(former, signal.SIGKILL)
        while Path(f"/proc/{former}").exists() and own.poll() is None:
            time.sleep(0.05)
        with httpx.Client(base_url=address, timeout=300) as client:
            assert client.get("/readyz").is_success and child(own) != former
    with httpx.Client(base_url=address, timeout=300) as client:
        views = [ended(client, id) for id in ids]
        assert {view["status"] for view in views} == {"done"}
        alone = nano.generate(kind="joint", steps=60, seed=20, n=4)
        by_seed = {row["seed"]: row for row in views[2]["results"]}
        for result in alone:
            row = by_seed[result.seed]
            content = client.get(row["image"]).content
            assert Image.open(io.BytesIO(content)).tobytes() == result.image.tobytes()
            assert row["text"] == result.text
    own.send_signal(signal.SIGTERM)
    assert own.wait(60) == 0


@pytest.mark.slow
def test_a_disk_that_is_full_and_empty_again(serving, tmp_path):
    """A real one, of 256 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here; run it as root")
    try:
        address, own = serving("--jobs", disk)
        with httpx.Client(base_url=address, timeout=300) as client:
            body = {"kind": "image-to-text", "images": [text_of(png(size=(90, 90)))], "steps": 1}
            ids, status = [], 202
            while status == 202 and len(ids) < 200:
                answer = client.post(JOBS, json=body | {"given": {}})
                status = answer.status_code
                ids += [answer.json()["id"]] if status == 202 else []
                client.get("/readyz").raise_for_status()
            assert status == 507 and answer.json()["error"]["code"] == "disk_full"
            drawn = {"prompt": "a red ring", "num_inference_steps": 1}
            assert client.post("/v1/images/generations", json=drawn).is_success
            for id in ids[: len(ids) // 2]:
                view = client.get(f"{JOBS}/{id}").json()
                assert view["status"] in ("done", "failed", "running", "waiting")
                client.delete(f"{JOBS}/{id}")
            time.sleep(3)
            id = client.post(JOBS, json=body).json()["id"]
            assert ended(client, id)["status"] == "done"
    finally:
        own.terminate()
        own.wait(60)
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_two_replicas_of_ray_serve_share_their_jobs(nano, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is missing: pip install -e '.[ray]'")
    from ray import serve

    from everyway.apps.server.replicas import application

    for name in ("raylet_start_wait_time_s", "SERVE_PROXY_READY_CHECK_TIMEOUT_S"):
        monkeypatch.setenv(f"RAY_{name}", "300")  # a busy machine
    monkeypatch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", 300)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    own = {"engine": "ray", "replicas": 2, "jobs": str(tmp_path / "jobs")}
    config = ServerConfig(models=("nano",), port=port, **own)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(config), name="everyway", route_prefix="/")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            body = {"kind": "joint", "steps": 2}
            ids = [client.post(JOBS, json={**body, "seed": k}).json()["id"] for k in range(12)]
            views = [ended(client, id) for id in ids]
            texts = [view["results"][0]["text"] for view in views]
            assert texts == [nano.generate(**body, seed=k)[0].text for k in range(12)]
        replicas = serve.status().applications["everyway"].deployments["Replica"]
        assert replicas.replica_states == {"RUNNING": 2}
    finally:
        serve.shutdown()
        ray.shutdown()


def test_every_limit_is_in_the_help():
    flags = {word for action in cli.parser("serve")._actions for word in action.option_strings}
    (command,) = (a for a in cli.parser("serve")._actions if getattr(a, "choices", None))
    flags |= {w for a in command.choices["serve"]._actions for w in a.option_strings}
    for name in ServerConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in flags or name == "models"
