"""The command line's things, and what is told of each: weights, focus, masks and embeddings."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from everyway.generate import Model
from everyway.systems import versatile


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A nano Versatile Diffusion with random weights, beside two pictures, a mask and tokens."""
    out = tmp_path_factory.mktemp("contexts")
    torch.manual_seed(0)
    system = versatile.build(versatile.nano(("red", "blue", "soft")))
    for parameter in system.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model = Model(name="nano", hash="0", system=system, metadata={"image_size": 16})
    model.save_pretrained(out / "model")
    for k, name in enumerate(("a", "b")):
        pixels = np.random.default_rng(k).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out / f"{name}.png")
    Image.new("L", (16, 16), 255).save(out / "all.png")
    np.save(out / "e.npy", np.ones((16, 48), np.float32))
    return out


@pytest.fixture
def asked(run, folder):
    """Words after `generate` -> the request of the one result, and its picture or text."""

    def ask(*words):
        words = [str(folder / w) if w.endswith(".png") else w for w in words]
        code, out, err = run(
            "generate", *words, "--model", folder / "model", "--steps", 2, "--json", "--quiet"
        )
        assert code == 0, err
        (row,) = json.loads(out)["results"]
        return row["request"], row

    return ask


def test_what_is_told_is_of_the_thing_before_it(asked, folder):
    request, _ = asked(
        *("image", "--image", "a.png", "--weight", ".7", "--image-mask", "all.png"),
        *("--text", "red", "--weight", ".3", "--focus", "style", "--image", "b.png"),
    )
    first, text, second = request["contexts"]
    assert (first["weight"], first["focus"]) == (0.7, 1.0)  # the focus is the picture's before it
    assert first["mask"] == str(folder / "all.png")
    assert (text["text"], text["weight"]) == ("red", 0.3)
    assert (second["weight"], second["focus"], second["mask"]) == (1.0, 0.5, None)
    assert (request["kind"], request["mix"]) == ("image", "attention")


def test_texts_too_are_made_of_contexts_and_of_embeddings(asked, folder):
    things = ("--text", "red", "--embedding", f"image={folder / 'e.npy'}", "--mix", "layer")
    request, row = asked("text", *things)
    assert request["mix"] == "layer" and isinstance(row["text"], str)
    assert request["contexts"][1]["condition"] == "image"


def test_a_start_and_contexts(asked):
    words = ("--image", "a.png", "--strength", ".5", "--image", "b.png", "--text", "red")
    request, _ = asked("image", *words, "--colours", "1")
    assert request["kind"] == "image-to-image" and len(request["images"]) == 1
    assert len(request["contexts"]) == 2 and request["colours"] == 1.0
    request, _ = asked("image", *words[:4], "--text", "red")
    assert request["text"] == "red" and not request["contexts"]


def test_an_edit_is_a_kind_of_its_own(asked):
    request, _ = asked("edit-image", "--image", "a.png", "--text", "red", "--negative", "blue")
    assert (request["kind"], request["negative"]) == ("edit-image", "blue")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weight", "1"], "--weight is of the --image, --text or --embedding before it"),
        (["--text", "red", "--focus", "style"], "--focus is of the --image or --embedding before"),
        (["--image", "a.png", "--weight", "heavy"], "contexts.0.weight='heavy'"),
        (["--embedding", "e.npy"], "'e.npy' is not NAME=VALUE"),
        (["--image", "a.png", "--text", "red"], "makes no image out of contexts"),
    ],
)
def test_a_mistake_is_one_line(run, folder, words, said):
    """The last one is of a model without contexts."""
    words = [str(folder / w) if w.endswith(".png") else w for w in words]
    code, _, err = run("generate", "image", *words, "--model", "nano")
    assert code == 2 and said in err and len(err.splitlines()) == 1
