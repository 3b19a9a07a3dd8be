"""The preset mini-versatile: what it stores, what it reads, and how its variations are scored."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from everyway import library
from everyway.checkpoints import codec_folder
from everyway.codecs.patches import PatchContext
from everyway.data.lattice import Lattice, draw
from everyway.data.sample import Scene, SceneObject, to_tensor
from everyway.data.styles import STYLES
from everyway.generate import Model, load
from everyway.metrics import report
from everyway.systems.versatile import PLAN
from everyway.train.config import resolve
from everyway.train.sources import Data


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return resolve("mini-versatile").model.system(Data("lattice-whole", 0))


def test_it_shares_the_codecs_of_mini_and_is_small(system, tmp_path):
    library.save(tmp_path / "model", system, {"name": "mini-versatile", "history": []})
    names = {path.name.partition("-")[0] for path in (tmp_path / "model").glob("*.safetensors")}
    assert names == {f"network.{part}" for part in system.network.components}
    assert sum(p.numel() for p in system.network.parameters()) < 4_000_000
    read = load(str(tmp_path / "model"), device="cpu").system
    mini = load("mini", device="cpu").system
    picture = torch.rand(1, 3, 96, 96) * 2 - 1
    codecs = [m.codecs["image"] for m in (read, mini)]
    assert torch.equal(*(codec.encode(picture) for codec in codecs))


def test_korean_is_read_and_english_written(system):
    english, korean = Lattice(seed=3).sample(0).captions
    for make in (lambda text: system.encode({"text": [text]})["text"],
                 lambda text: system.contexts({"text": [text]})["text"].tokens):  # fmt: skip
        assert torch.equal(make(korean), make(english))
    assert system.modalities["text"].codec.decode(system.encode({"text": [korean]})["text"]) == [
        english
    ]


def test_its_nulls_are_no_picture_and_no_words(system):
    assert [*system.conditions["image"].nulls] == ["zeros"]
    empty = system.conditions["text"].null().context().tokens
    assert torch.equal(empty, system.conditions["text"].codec.encode([""]))
    assert set(system.tasks) == set(PLAN["all"])


def test_every_flow_makes_what_it_should(system):
    model = Model(name="fresh", hash="", system=system, metadata={"image_size": 96})
    picture, text = Image.fromarray(Lattice(seed=3).sample(0).image), "a large fox on the left"
    given = {"image": {"image": picture}, "text": {"text": text}}
    for name in PLAN["all"]:
        source = name.split("-")[0]
        (made,) = model.generate(kind=name, steps=1, **given[source])
        assert (made.image is None) == (name in ("image-to-text", "text-variation"))


@pytest.mark.parametrize("count", [1, 2])
def test_a_variation_is_right_wherever_it_puts_things(system, count, monkeypatch):
    """What is drawn is the picture itself, or the same things elsewhere, or other things."""
    data = Lattice(seed=5, count=count)
    samples = [data.sample(k) for k in range(3)]
    truths = [Scene.from_json(s.record) for s in samples]
    ask = report._Asker(
        Model(name="none", hash="", system=system, metadata={}), report.JUDGES["lattice"], 0, {},
        lambda done: None,
    )  # fmt: skip

    def scored(drawn):
        made = [SimpleNamespace(image=Image.fromarray(draw(scene))) for scene in drawn]
        monkeypatch.setattr(ask, "_make", lambda **given: made)
        seen = report.summarise(ask.i2i(samples, truths))
        return seen["all_correct"]["value"], sum(ask.moved) / len(ask.moved)

    assert scored(truths) == (1.0, 0.0)
    assert scored([elsewhere(scene) for scene in truths]) == (1.0, 1.0)
    assert scored([data.scene(100 + k) for k in range(3)])[0] == 0.0


def test_a_variation_of_a_styled_picture_is_asked_for_its_style(system, monkeypatch):
    """Whatever the style, the scene is read; and whether the style is the picture's is told."""
    judge = report.JUDGES["lattice-styled"]
    data = judge.unseen(seed=5, count=1)
    samples = [data.sample(k) for k in range(2)]
    ask = report._Asker(
        Model(name="none", hash="", system=system, metadata={}), judge, 0, {}, lambda done: None
    )
    turned = {style: [*STYLES][k - 1] for k, style in enumerate(STYLES)}

    def kept(styles):
        made = [data.renderings(k)[style] for k, style in enumerate(styles)]
        drawn = [SimpleNamespace(image=Image.fromarray(picture)) for picture in made]
        monkeypatch.setattr(ask, "_make", lambda **given: drawn)
        seen = report.summarise(ask.i2i(samples, [data.scene(k) for k in range(2)]))
        return seen["all_correct"]["value"], dict(ask.distances())["style"]["value"]

    own = [sample.raw["style"] for sample in samples]
    assert kept(own) == (1.0, 1.0)
    assert kept([turned[style] for style in own]) == (1.0, 0.0)


def elsewhere(scene: Scene) -> Scene:
    if len(scene.objects) == 2:
        return Scene(
            objects=scene.objects[::-1], relation=scene.relation, background=scene.background
        )
    (only,) = scene.objects
    place = "left" if only.place != "left" else "right"
    moved = SceneObject(name=only.name, size=only.size, place=place)
    return Scene(objects=(moved,), background=scene.background)


def test_a_context_is_as_wide_as_its_layers(system):
    picture = to_tensor([Lattice(seed=3).sample(0).image])
    made = system.contexts({"image": picture, "text": ["a fox"]})
    for name, context in made.items():
        assert context.tokens.shape[2] == system.network.config.contexts[name]


def test_a_picture_is_seen_in_patches_where_the_folder_of_codecs_has_them(tmp_path):
    """Then it has nulls of empty pictures, and what is stored and read back is the same."""
    mini = load("mini", device="cpu").system
    for name in ("image", "text"):
        own = mini.config["codec_config"][name]
        codec_folder.write(tmp_path / "codecs", name, mini.codecs[name], own, {})
    seen = PatchContext()
    seen.fit(to_tensor([draw(Lattice(seed=3).scene(k)) for k in range(20)]))
    codec_folder.write(tmp_path / "codecs", "image_condition", seen, {"kind": "PatchContext"}, {})
    settings = {"codecs": str(tmp_path / "codecs"), "data": "lattice-styled"}
    styled = resolve("mini-versatile", settings).model.system(Data("lattice-styled", 0))
    assert [*styled.conditions["image"].nulls] == ["zeros", "black", "grey"]
    picture = to_tensor([Lattice(seed=3).sample(0).image])
    tokens = styled.contexts({"image": picture})["image"].tokens
    assert tokens.shape[1:] == (144, styled.network.config.contexts["image"])
    for null in styled.conditions["image"].nulls.values():
        assert null.context().tokens.shape == tokens.shape
    library.save(tmp_path / "model", styled, {"name": "styled", "history": []})
    read = load(str(tmp_path / "model"), device="cpu").system
    assert torch.equal(read.contexts({"image": picture})["image"].tokens, tokens)
