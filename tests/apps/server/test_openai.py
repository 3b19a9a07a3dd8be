"""OpenAI's own client, unchanged: pictures, edits, variations, captions, streamed and not, and its
own exceptions."""

from __future__ import annotations

import io
import threading

import pytest
from PIL import Image

from everyway.generate import Model, load
from everyway.job import Job
from everyway.record import read_record
from everyway.request import GenerateRequest
from serving import picture, png, running, text_of

openai = pytest.importorskip("openai", reason="OpenAI's client is missing: pip install openai")
QUICK = {"seed": 7, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def server():
    with running({"nano": load("nano")}, max_waiting=4, max_n=8) as (address, app):
        yield address, app


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server[0]}/v1", api_key="none", max_retries=0) as made:
        yield made


def alone(model, files=None, **settings):
    own = {"kind": "text-to-image", "seed": 7, "steps": 2}
    job = Job(request=GenerateRequest(**{**own, **settings}), files=files or {})
    return model.generate(job)


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "nano" and "joint" in model.tasks and model.size == "16x16"
    assert client.models.retrieve("nano").id == "nano"
    with pytest.raises(openai.NotFoundError) as told:
        client.models.retrieve("nan")
    assert told.value.code == "model_not_found" and "nano" in told.value.message


def test_pictures_of_a_text_carry_their_facts(client, nano, tmp_path):
    made = client.images.generate(
        model="nano", prompt="a red ring", n=2, size="16x16", extra_body=QUICK
    )
    expected = alone(nano, text="a red ring", n=2)
    assert [d.seed for d in made.data] == [7, 8]
    for datum, own in zip(made.data, expected):
        shown = picture(datum.b64_json)
        assert shown.tobytes() == own.image.tobytes()
        assert shown.text["parameters"].startswith("a red ring\nSteps: 2, ")
        shown.save(path := tmp_path / "a.png", pnginfo=_kept(shown))
        assert read_record(path).request == own.request.model_copy(update={"model": "nano"})


def _kept(shown):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("everyway", shown.text["everyway"])
    return info


def test_without_a_seed_pictures_differ_and_say_theirs(client, nano):
    own = {"prompt": "a red ring", "extra_body": {"num_inference_steps": 2}}
    first, second = (client.images.generate(**own).data[0] for _ in range(2))
    assert first.seed != second.seed
    (again,) = alone(nano, text="a red ring", seed=second.seed, steps=2)
    assert picture(second.b64_json).tobytes() == again.image.tobytes()


@pytest.mark.parametrize("form", ["jpeg", "webp"])
def test_other_formats_and_urls(client, form):
    made = client.images.generate(
        prompt="a red ring", output_format=form, response_format="url", extra_body=QUICK
    )
    head, _, data = made.data[0].url.partition(",")
    assert head == f"data:image/{form};base64" and picture(data).format == form.upper()


def test_pictures_streamed(client, nano):
    stream = client.images.generate(
        prompt="a red ring", stream=True, partial_images=2, extra_body=QUICK
    )
    events = [*stream]
    kinds = [event.type.rpartition(".")[2] for event in events]
    assert kinds[-1] == "completed" and 1 <= kinds.count("partial_image") <= 2
    assert picture(events[0].b64_json).size == (16, 16)
    (own,) = alone(nano, text="a red ring")
    assert picture(events[-1].b64_json).tobytes() == own.image.tobytes()


def test_an_edit_draws_where_the_mask_is_transparent(client, nano):
    mask = Image.new("RGBA", (16, 16), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 8, 16))
    file = io.BytesIO()
    mask.save(file, "PNG")
    own = {"prompt": "a red ring", "extra_body": QUICK}
    made = client.images.edit(image=png(), mask=file.getvalue(), **own)
    ours = Image.new("RGB", (16, 16))
    ours.paste("white", (0, 0, 8, 16))
    files = {"a": png(), "b": ours}
    settings = {"kind": "inpaint", "text": "a red ring", "images": ("a",), "mask": "b"}
    (expected,) = alone(nano, files, **settings)
    shown = picture(made.data[0].b64_json)
    assert shown.tobytes() == expected.image.tobytes()
    assert shown.getpixel((15, 8)) == Image.new("RGB", (1, 1), "teal").getpixel((0, 0))


def test_an_edit_without_a_mask_draws_all_anew(client, nano):
    own = {"prompt": "a red ring", "extra_body": {**QUICK, "strength": 0.5}}
    made = client.images.edit(image=[png()], **own)
    settings = {"kind": "image-to-image", "text": "a red ring", "images": ("a",), "strength": 0.5}
    (expected,) = alone(nano, {"a": png()}, **settings)
    assert picture(made.data[0].b64_json).tobytes() == expected.image.tobytes()
    events = [*client.images.edit(image=png(), stream=True, **own)]
    assert events[-1].type == "image_edit.completed"
    assert picture(events[-1].b64_json).tobytes() == expected.image.tobytes()


def test_variations(client, nano):
    made = client.images.create_variation(image=png("red"), n=2, extra_body=QUICK)
    expected = alone(nano, {"a": png("red")}, kind="vary-image", images=("a",), n=2)
    for datum, own in zip(made.data, expected):
        assert picture(datum.b64_json).tobytes() == own.image.tobytes()


def asking(content):
    url = f"data:image/png;base64,{text_of(content)}"
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]


def test_a_chat_with_a_picture_is_its_caption(client, nano):
    own = {"model": "nano", "messages": asking(png("red")), "n": 2, "temperature": 0.2}
    made = client.chat.completions.create(**own, extra_body=QUICK)
    expected = alone(nano, {"a": png("red")}, kind="image-to-text", images=("a",), n=2)
    assert [c.message.content for c in made.choices] == [r.text for r in expected]
    said = {0: "", 1: ""}
    for chunk in client.chat.completions.create(**own, stream=True, extra_body=QUICK):
        (choice,) = chunk.choices
        said[choice.index] += choice.delta.content or ""
    assert [*said.values()] == [r.text for r in expected]


WRONG = {
    "no prompt": ({}, openai.BadRequestError, "prompt"),
    "steps": ({"prompt": "a red ring", "num_inference_steps": 0}, openai.BadRequestError, "steps"),
    "too many": ({"prompt": "a red ring", "n": 9}, openai.APIStatusError, "at most 8 here"),
    "unknown words": ({"prompt": "a red zebrafish"}, openai.BadRequestError, "zebrafish"),
    "empty": ({"prompt": " "}, openai.BadRequestError, "empty"),
    "a field": ({"prompt": "a red ring", "colour": 1}, openai.BadRequestError, "colour"),
    "a size": ({"prompt": "a red ring", "size": "512x512"}, openai.BadRequestError, "16x16"),
    "a model": ({"prompt": "a red ring", "model": "hf:a/b"}, openai.NotFoundError, "hf:a/b"),
    "a path": ({"prompt": "a red ring", "model": "../nano"}, openai.NotFoundError, "nano"),
    "a sampler": ({"prompt": "a red ring", "sampler": "dpm"}, openai.BadRequestError, "dpm"),
}


@pytest.mark.parametrize("body, kind, said", WRONG.values(), ids=WRONG)
def test_mistakes_are_its_own_exceptions(client, body, kind, said):
    with pytest.raises(kind) as told:
        client.post("/images/generations", body=body, cast_to=object)
    assert said in told.value.message and told.value.request_id
    assert "\n" not in told.value.body["message"]


def test_pictures_that_are_none(client):
    for wrong in (b"", b"GIF89a", png()[:40], b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0"):
        with pytest.raises(openai.BadRequestError):
            client.images.create_variation(image=wrong)
    for url in ("http://127.0.0.1:1/a.png", "file:///etc/passwd", "/etc/passwd", "data:,a"):
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        with pytest.raises(openai.BadRequestError, match="base64"):
            client.chat.completions.create(
                model="nano", messages=[{"role": "user", "content": parts}]
            )
    with pytest.raises(openai.BadRequestError, match="needs a picture"):
        client.chat.completions.create(model="nano", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.BadRequestError, match="nowhere transparent"):
        client.images.edit(image=png(), mask=png(), prompt="a red ring")


def test_a_full_queue_is_its_rate_limit(client, server, monkeypatch):
    held, run = threading.Event(), Model.batch

    def waiting(model, batch):
        assert held.wait(20)
        yield from run(model, batch)

    monkeypatch.setattr(Model, "batch", waiting)
    scheduler = server[1].state.scheduler
    jobs = [Job(request=GenerateRequest(kind="joint", steps=k, n=4)) for k in (1, 2)]
    kept = [scheduler.submit(jobs[0])]
    while scheduler.waiting:
        pass
    kept.append(scheduler.submit(jobs[1]))
    with pytest.raises(openai.RateLimitError) as told:
        client.images.generate(prompt="a red ring")
    assert 1 <= int(told.value.response.headers["retry-after"]) <= 60
    held.set()
    assert [len(ticket.results()) for ticket in kept] == [4, 4]
    retrying = client.with_options(max_retries=3)
    assert retrying.images.generate(prompt="a red ring", extra_body=QUICK).data


def test_a_fault_of_ours_tells_nothing_but_where_to_look(client, monkeypatch):
    def broken(model, row, *rest):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Model, "_result", broken)
    with pytest.raises(openai.InternalServerError) as told:
        client.images.generate(prompt="a red ring", extra_body=QUICK)
    assert "secret" not in told.value.message and told.value.request_id in told.value.message
    with pytest.raises(openai.APIError) as told:
        [*client.images.generate(prompt="a red ring", stream=True, extra_body=QUICK)]
    assert "secret" not in told.value.message
