"""One request: there and back as JSON, and one clear line for every bad value."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from everyway import request
from everyway.request import GenerateRequest, RequestError, known, read_image

GOOD = {
    "text-to-image": {"text": "a fox on blue", "n": 3, "seed": 2**62 - 3, "guidance": 1 / 3},
    "image-to-text": {"images": ("a.png",), "given_noise": {"image": 0.25}, "steps": 1000},
    "joint": {"sampler": "em-sde", "n": 10_000},
    "image": {"guidance": 0.0, "model": "runs/여우/model"},
    "text": {"seed": 0, "given": {"style": "ink", "number": 3}},
    "class-to-image": {"label": 207},
    "inpaint": {"images": ("a.png",), "mask": "m.png", "text": "a pear", "blend": 4},
    "image-to-image": {
        "images": ("a.png",),
        "strength": 0.5,
        "sampler": "purity",
        "purity_weight": 1.0,
        "tokens_per_step": 5,
    },
    "edit-image": {"images": ("a.png",), "negative": "a pear"},
    "vary-image": {"images": ("그림.png",)},
    "upscale": {"images": ("a.png",), "text": "a fox", "scale": 2.5},
    "vary-text": {"text": "파란 배경의 여우\n"},
    "interpolate": {"images": ("a.png", "b.png"), "frames": 2},
    "chain": {"text": "x" * request.MAX_TEXT, "rounds": 1000},
}


def refused(**settings) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(RequestError) as caught:
        GenerateRequest(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", request.KINDS)
def test_json_there_and_back(kind):
    made = GenerateRequest(kind=kind, **GOOD[kind])
    text = made.model_dump_json()
    assert GenerateRequest(**json.loads(text)) == made
    assert GenerateRequest(**json.loads(json.dumps(made.model_dump()))) == made
    assert GenerateRequest(**json.loads(text)).model_dump_json() == text


def test_a_request_cannot_be_changed():
    made = GenerateRequest(kind="joint")
    with pytest.raises(ValueError):
        made.n = 2
    assert made.n == 1


BAD = {
    "no kind": ({}, "kind"),
    "strange kind": ({"kind": "fly\nhigh"}, "kind='fly\\nhigh': String should match pattern"),
    "kind of a wrong kind": ({"kind": None}, "kind=None"),
    "sampler": ({"sampler": "eulr"}, "did you mean 'euler'?"),
    "sampler of a wrong kind": ({"sampler": 3}, "sampler=3"),
    "n 0": ({"n": 0}, "n=0"),
    "n too large": ({"n": 10_001}, "n=10001"),
    "n not whole": ({"n": 2.5}, "n=2.5"),
    "n not a number": ({"n": "many"}, "n='many'"),
    "n nothing": ({"n": None}, "n=None"),
    "seed": ({"seed": -1}, "seed=-1"),
    "seed too large": ({"seed": 2**62}, "seed=4611686018427387904"),
    "steps": ({"steps": 0}, "steps=0"),
    "steps too many": ({"steps": 1001}, "steps=1001"),
    "guidance": ({"guidance": -0.1}, "guidance=-0.1"),
    "guidance too large": ({"guidance": 100.5}, "guidance=100.5"),
    "guidance nan": ({"guidance": float("nan")}, "guidance=nan"),
    "guidance inf": ({"guidance": float("inf")}, "guidance=inf"),
    "frames": ({"frames": 1}, "frames=1"),
    "rounds": ({"rounds": 0}, "rounds=0"),
    "noise 1": ({"given_noise": {"text": 1.0}}, "given_noise.text=1.0"),
    "noise below 0": ({"given_noise": {"text": -0.1}}, "given_noise.text=-0.1"),
    "noise nan": ({"given_noise": {"text": float("nan")}}, "given_noise.text=nan"),
    "noise of a strange clock": ({"given_noise": {"te\nxt": 2}}, "given_noise"),
    "noise of a wrong kind": ({"given_noise": [0.5]}, "given_noise=[0.5]"),
    "model": ({"model": 3}, "model=3"),
    "text of a wrong kind": ({"text": 5}, "text=5"),
    "text that nothing reads": ({"text": "a pear"}, "joint reads no text; leave the text out"),
    "empty text": ({"text": " \n\t"}, "the text is empty"),
    "long text": ({"text": "x" * 1001}, "1001 characters; at most 1000"),
    "blend": ({"blend": 65}, "blend=65"),
    "blend of nothing": ({"blend": 2}, "a blend goes with the kind inpaint"),
    "given of a wrong kind": ({"given": {"style": 0.5}}, "given.style"),
    "images as one text": ({"images": "a.png"}, "images='a.png'"),
    "images of a wrong kind": ({"images": [3]}, "images.0=3"),
    "images not wanted": ({"images": ["a.png"]}, "joint takes 0 image(s), got 1"),
    "a negative text": ({"negative": "a pear"}, "goes with the kind edit-image"),
    "contexts of two states": ({"contexts": [{"text": "a"}]}, "joint takes no contexts; give"),
    "an empty context": ({"contexts": [{}]}, "give one image, one text or one embedding"),
    "two in a context": ({"contexts": [{"text": "a", "image": "a.png"}]}, "give one image, one"),
    "weight": ({"contexts": [{"text": "a", "weight": -1}]}, "contexts.0.weight=-1"),
    "focus": ({"contexts": [{"image": "a.png", "focus": "sharp"}]}, "contexts.0.focus='sharp'"),
    "focus of a text": ({"contexts": [{"text": "a", "focus": 0.1}]}, "a text has no focus"),
    "mask of a text": ({"contexts": [{"text": "a", "mask": "m.png"}]}, "a mask is of an image"),
    "embedding of what": ({"contexts": [{"embedding": "a.npy"}]}, "the condition that it is for"),
    "text of a context": ({"contexts": [{"text": " "}]}, "the text is empty"),
    "setting of a context": ({"contexts": [{"text": "a", "odd": 1}]}, "there is no setting"),
    "mix of nothing": ({"mix": "layer"}, "a mix is of contexts"),
    "mix": ({"mix": "soup"}, "mix='soup'"),
    "colours": ({"colours": 1.5}, "colours=1.5"),
    "colours of nothing": ({"colours": 1.0}, "colours go to those of a picture"),
    "unknown setting": ({"wings": 2}, "there is no setting 'wings'; kind, text, images"),
    "strange setting": ({"wi\nngs": 2}, "there is no setting"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_one_clear_line(name):
    values, said = BAD[name]
    base = {} if name == "no kind" else {"kind": "joint"}
    assert said in refused(**base | values)


def test_contexts_have_weights_and_names():
    asked = GenerateRequest(
        kind="image",
        contexts=[
            {"image": "a.png", "weight": 0.7, "focus": "style", "mask": "m.png"},
            {"text": "a pear", "weight": 0},
            {"image": "b.png"},
            {"embedding": "e.npy", "condition": "image"},
        ],
    )
    assert asked.weights == {"image": 0.7, "image:2": 1.0, "image:3": 1.0}
    assert asked.focus == {"image": 1.0, "text": 0.5, "image:2": 0.5, "image:3": 0.5}
    assert asked.paths == ("a.png", "m.png", "b.png")
    assert GenerateRequest(**asked.model_dump()) == asked
    alone = GenerateRequest(kind="image", contexts=[{"text": "a", "weight": 0}])
    assert alone.weights == {"text": 0.0}
    for values, said in (
        ([{"text": "a", "weight": 0}] * 2, "all weights are 0"),
        ([{"text": "a", "weight": 2}], "one context alone has a weight of 0 to 1"),
    ):
        assert said in refused(kind="image", contexts=values)
    assert "give it there" in refused(kind="image", text="a", contexts=[{"text": "b"}])


@pytest.mark.parametrize("kind", request.NEEDS_TEXT)
def test_a_text_is_needed(kind):
    assert f"{kind} needs a text" in refused(kind=kind)


@pytest.mark.parametrize("kind, needed", request.NEEDS_IMAGES.items())
def test_the_right_number_of_pictures_is_needed(kind, needed):
    for count in {0, needed + 1}:
        mask = "m.png" if kind == "inpaint" else None
        line = refused(kind=kind, images=("a.png",) * count, mask=mask)
        assert f"{kind} takes {needed} image(s), got {count}" in line


def test_the_names_here_are_those_of_the_parts_below():
    """Written twice, because this module is free of torch."""
    from everyway.sampling.solvers import SAMPLERS
    from everyway.tasks import TASKS

    assert request.SAMPLER_NAMES == tuple(SAMPLERS)
    assert request.KINDS[: len(TASKS)] == tuple(TASKS)
    assert {*request.NEEDS_TEXT, *request.NEEDS_IMAGES} <= set(request.KINDS)


def test_every_kind_has_a_plan():
    from everyway.plan import plan
    from everyway.tasks import GENERATE, TASKS, Task, drawing

    flow = Task(name="of-contexts", roles={"image": GENERATE}, contexts={"image": 1.0})
    tasks = TASKS | drawing("label") | {"of-contexts": flow}
    for kind in {*request.KINDS} - {"upscale"}:  # whose stages are the systems that enlarge
        stages = plan(GenerateRequest(kind=kind, **GOOD[kind]), tasks)
        assert stages and stages[-1].shown


def test_known_names():
    assert known("task", "joint", iter(["image", "joint"])) == "joint"
    with pytest.raises(RequestError, match="task 'moon' is unknown; choose one of image, joint"):
        known("task", "moon", ["image", "joint"])


def test_pictures_are_read_as_rgb(tmp_path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (3, 2), (10, 20, 30, 0)).save(path)
    made = read_image(str(path))
    assert made.mode == "RGB" and made.size == (3, 2) and made.getpixel((0, 0)) == (255, 255, 255)
    assert read_image(path, ground="black").getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("content", [None, b"", b"not a picture", "cut"])
def test_an_unreadable_picture_is_one_line(tmp_path, content):
    path = tmp_path / "bad.png"
    if content == "cut":
        Image.effect_noise((64, 64), 50).save(path)
        content = path.read_bytes()[:500]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestError) as caught:
        read_image(str(path))
    assert "bad.png" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(RequestError, match="there is no picture"):
        read_image(str(tmp_path))
