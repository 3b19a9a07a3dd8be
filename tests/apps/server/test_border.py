"""What comes from outside: bytes, words and pictures that mean harm."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
import zlib
from contextlib import ExitStack
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image

from everyway.apps.server.border import picture_size
from everyway.apps.server.config import ServerConfig
from everyway.generate import load
from everyway.placement import peak_memory
from everyway.settings import ConfigError
from serving import png, running, text_of

JOBS, DRAW = "/v1/everyway/jobs", "/v1/images/generations"
QUICK = {"kind": "joint", "steps": 1}


@pytest.fixture(scope="module")
def server():
    with running({"nano": load("nano")}, max_body=100_000, max_pixels=10_000) as (address, app):
        with httpx.Client(base_url=address, timeout=60) as client:
            yield SimpleNamespace(client=client, app=app, address=address)


@pytest.fixture
def client(server):
    yield server.client
    assert server.client.get("/readyz").status_code == 200
    assert server.client.post(
        DRAW, json={"prompt": "a red ring", "num_inference_steps": 1}
    ).is_success


def refused(answer, status=400):
    """The one line of a refusal."""
    assert answer.status_code == status, answer.text
    said = answer.json()["error"]["message"]
    assert said and "\n" not in said and "Traceback" not in answer.text
    return said


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width, height):
    """A PNG that says it is so large, and holds next to nothing."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes(10**5)))
        + chunk(b"IEND", b"")
    )


def text_bomb():
    info = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5 * 10**7), 9))
    whole = png()
    return whole[:33] + info + whole[33:]


MALFORMED = {
    "nothing": b"",
    "half": b'{"kind": "joint"',
    "deep": b"[" * 50_000,
    "a deep field": b'{"kind":"joint","given":' + b'{"a":' * 15_000 + b"1" + b"}" * 15_000 + b"}",
    "a long number": b'{"kind":"joint","seed":' + b"9" * 20_000 + b"}",
    "no number": b'{"kind":"joint","guidance":NaN}',
    "endless": b'{"kind":"joint","guidance":Infinity}',
    "no text": b'{"kind":"text-to-image","text":"\\ud800"}',
    "bytes": b"\xff\xfe\x00",
    "a list": b"[]",
    "twice": b'{"kind":"joint","n":1,"n":1000}',
    "other types": b'{"kind":["joint"],"n":{},"images":"a"}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_malformed_json(client, body):
    for path in (JOBS, DRAW):
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        refused(answer, 413 if body == MALFORMED["twice"] and path == JOBS else 400)


def test_other_content_types_are_not_read(client):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused(client.post(JOBS, content=json.dumps(QUICK), headers={"content-type": kind}))


def test_bodies_are_bounded(client):
    def endless():
        for _ in range(200):
            yield bytes(10**6)

    before = peak_memory(SimpleNamespace(type="cpu"))
    said = refused(client.post(JOBS, content=endless()), 413)
    assert "100000 bytes" in said
    refused(client.post(JOBS, content=bytes(10**7)), 413)
    after = peak_memory(SimpleNamespace(type="cpu"))
    assert before is None or after - before < 60 * 2**20


def test_bodies_of_all_requests_are_bounded(server, client):
    """Senders of half a body each, and one more."""
    host, port = server.address.removeprefix("http://").split(":")
    head = f"POST {JOBS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with ExitStack() as slow:
        for _ in range(18):
            sender = slow.enter_context(socket.create_connection((host, int(port))))
            sender.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + bytes(99_000))
        for _ in range(100):
            if (answer := client.post(JOBS, json=QUICK)).status_code == 429:
                break
            time.sleep(0.02)
        assert "at a time" in refused(answer, 429)
    for _ in range(100):
        if client.post(JOBS, json=QUICK).is_success:
            break
        time.sleep(0.02)


PICTURES = {
    "a bomb": (bomb(100_000, 100_000), "pixels"),
    "a long one": (bomb(2**31 - 1, 1), "pixels"),
    "a little too large": (png(size=(101, 100)), "pixels"),
    "a bomb of text": (text_bomb(), "no picture"),
    "half of one": (png(size=(90, 90), colour="red")[:60], "truncated"),
    "vectors": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
    "another format": (b"P6 2 2 255 " + bytes(12), "no picture"),
    "nothing": (b"", "no picture"),
}


@pytest.mark.parametrize("content, said", PICTURES.values(), ids=PICTURES)
def test_pictures_that_mean_harm(client, content, said):
    body = {"kind": "image-to-text", "images": [text_of(content)], "steps": 1}
    answer = client.post(JOBS, json=body)
    assert said in refused(answer, 413 if said == "pixels" else 400)
    sent = {"files": {"image": ("a.png", content)}, "data": {"num_inference_steps": "1"}}
    refused(client.post("/v1/images/variations", **sent), answer.status_code)


def test_a_moving_picture_is_bounded_as_a_whole():
    file = io.BytesIO()
    frames = [Image.new("P", (10, 10), k) for k in range(3)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert picture_size(file.getvalue()) == (10, 10)


TRICKS = (
    "../../etc/passwd", "/etc/passwd", "a\0b", "CON", "%2e%2e%2f", "a" * 5000, "..\\..\\x", "",
    "hf:owner/name", "file:///etc/passwd", "http://169.254.169.254/latest", "~/.ssh/id_rsa",
)  # fmt: skip


@pytest.mark.parametrize("name", TRICKS)
def test_names_are_never_paths(client, name):
    for field in ("images", "mask", "paint"):
        value = [name] if field == "images" else name
        refused(client.post(JOBS, json={"kind": "image-to-text", "images": [name], field: value}))
    context = {"embedding": name, "condition": "image"}
    refused(client.post(JOBS, json={"kind": "image", "contexts": [context]}))
    refused(client.post(JOBS, json={"kind": "image", "contexts": [{"image": name}]}))
    for field in ("model", "upscale"):
        answer = client.post(JOBS, json={**QUICK, field: name})
        assert answer.status_code in ((404,) if name else (202, 404))
    made = client.post(
        "/v1/images/variations",
        files={"image": (name, png())},
        data={"num_inference_steps": "1"},
    )
    assert made.is_success or len(name) in (0, 5000) and refused(made)
    for path in (f"{JOBS}/{name}", f"{JOBS}/{'0' * 32}/files/{name}", f"/v1/models/{name}"):
        try:
            answer = client.get(path)
        except httpx.InvalidURL:
            continue
        assert answer.status_code in (200, 307, 404) and "root:" not in answer.text


def test_a_jobs_files_are_those_of_its_results(client, server):
    id = client.post(JOBS, json=QUICK).json()["id"]
    while not client.get(f"{JOBS}/{id}").json()["ended"]:
        time.sleep(0.02)
    for name in (
        "job.json",
        "end.json",
        ".held",
        "results.jsonl",
        "00001.png",
        "..%2f..%2fjob.json",
    ):
        refused(client.get(f"{JOBS}/{id}/files/{name}"), 404)
    assert client.get(f"{JOBS}/{id}/files/00000.png").headers["content-type"] == "image/png"


LIMITS = {
    "n": {"n": 17},
    "steps": {"steps": 251},
    "frames": {"kind": "interpolate", "images": [text_of(png())] * 2, "frames": 33},
    "rounds": {"kind": "chain", "text": "a red ring", "rounds": 17},
    "words": {
        "kind": "text-to-image",
        "text": "a red ring",
        "paint": text_of(png()),
        "words": {f"#0000{k:02x}": "ring" for k in range(17)},
    },
    "knots": {"clock_paths": {"text": [[k / 20, k / 20] for k in range(21)]}},
}


@pytest.mark.parametrize("more", LIMITS.values(), ids=LIMITS)
def test_what_a_request_may_ask_for_is_bounded(client, more):
    assert "at most" in refused(client.post(JOBS, json={**QUICK, **more}), 413)


def test_what_is_made_is_bounded(client):
    body = {"kind": "upscale", "images": [text_of(png())], "scale": 8}
    assert "pixels" in refused(client.post(JOBS, json=body), 413)


# -- who asks -------------------------------------------------------------------------------------


def test_foreign_pages_and_names_do_not_reach_a_server_on_loopback(client):
    assert "own machine" in refused(client.get("/v1/models", headers={"host": "evil.example"}), 403)
    for origin in ("http://evil.example", "null", "http://localhost:1"):
        refused(client.post(JOBS, json=QUICK, headers={"origin": origin}), 403)
    own = str(client.base_url).rstrip("/")
    assert client.get("/v1/models", headers={"origin": own}).is_success
    assert client.get("/v1/models", headers={"host": "localhost"}).is_success
    assert client.get("/healthz", headers={"host": "10.0.0.1"}).is_success
    refused(client.get("/v1/models", headers={"host": "[::"}), 403)


def test_a_token_is_needed_elsewhere(nano, tmp_path):
    with pytest.raises(ValueError, match="--token-file"):
        ServerConfig(host="0.0.0.0")
    (path := tmp_path / "token").write_text("short\n")
    with pytest.raises(ConfigError, match="openssl rand"):
        assert ServerConfig(token_file=str(path)).token
    path.write_text("0123456789abcdef\n")
    with running({"nano": nano}, token_file=str(path)) as (address, _):
        with httpx.Client(base_url=address) as client:
            for headers in (
                {},
                {"authorization": "Bearer 0123456789abcdeg"},
                {"cookie": "a=b;;=c"},
            ):
                refused(client.get("/v1/models", headers=headers), 401)
                assert client.get("/readyz", headers=headers).is_success
            own = {"authorization": "Bearer 0123456789abcdef", "host": "example.org"}
            assert client.get("/v1/models", headers=own).is_success
            refused(client.get("/v1/models?token=0123456789abcdeg"), 401)
            answer = client.get(f"{address}//v1/models?token=0123456789abcdef")
            assert (answer.status_code, answer.headers["location"]) == (303, "/v1/models")
            assert "httponly; path=/; samesite=strict" in answer.headers["set-cookie"].lower()
            assert client.get("/v1/models").is_success  # the client has kept it


# -- clients that are rude ------------------------------------------------------------------------


def test_clients_that_break_off(server, client):
    host, port = server.address.removeprefix("http://").split(":")
    head = f"POST {JOBS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = (
        b"\x00" * 100,
        b"GET",
        head.encode(),
        (head + "Content-Length: 50000\r\n\r\n{").encode(),
    )
    for content in sent * 5:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(content)
    live = server.app.state.scheduler.live
    assert not live and threading.active_count() < 40


def test_numbers_and_schema_tell_of_the_server_but_not_of_what_was_asked(client):
    client.post(DRAW, json={"prompt": "a red secret"})
    numbers = client.get("/metrics").text
    assert 'everyway_requests_total{method="POST",path="/v1/images/generations"' in numbers
    assert "everyway_waiting_samples 0.0" in numbers and "secret" not in numbers
    schema = client.get("/openapi.json").json()
    asked = schema["components"]["schemas"]["JobRequest"]["properties"]
    assert asked["seed"]["minimum"] == 0 and asked["images"]["items"]["contentEncoding"] == "base64"
    assert asked["truncation"]["description"].startswith("Mass of a token's distribution")
