"""Blends of pictures, texts and embeddings: what shares, mixes, masks and focus do to a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from everyway.codecs.plain import Pixels, Words
from everyway.contracts import Context, Query
from everyway.controls.blend import (
    alternating,
    attention_level,
    layer_level_drawn,
    model_level,
    shares,
    side_by_side,
    token_level,
)
from everyway.errors import UsageError
from everyway.generate import Model
from everyway.nets.tokens import ContextTokens, Patches, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.process.config import gaussian
from everyway.request import RequestError
from everyway.sampling.noise import PerSampleNoise
from everyway.system import Condition, Modality, System, dropped
from everyway.systems import versatile
from everyway.tasks import drawing

SIDE = 16
WORDS = ("red", "blue", "soft", "loud")


@pytest.fixture(scope="module")
def model():
    """A nano Versatile Diffusion with random weights."""
    torch.manual_seed(3)
    small = replace(versatile.nano(WORDS), sampler="ddim", guidance=3.0, steps=2)
    system = versatile.build(small)
    for parameter in system.network.eval().parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Model(name="nano", hash="0", system=system, metadata={"image_size": SIDE})


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


A, B = picture(1), picture(2)


def made(model, kind, *contexts, **settings) -> np.ndarray | str:
    """What becomes of these contexts, a picture as numbers."""
    (result,) = model.generate(kind=kind, contexts=contexts, **settings)
    return np.asarray(result.image).astype(int) if kind == "image" else result.text


def same(a, b) -> bool:
    return bool((a == b).all()) if isinstance(a, np.ndarray) else a == b


# -- shares, turns and tokens -----------------------------------------------------------------


def test_weights_become_shares():
    assert shares({"a": 3, "b": 7, "c": 0}) == {"a": 0.3, "b": 0.7}
    with pytest.raises(UsageError, match="weights of a, b are all 0"):
        shares({"a": 0, "b": 0.0})


@pytest.mark.parametrize(
    "weights",
    [{"a": 0.7, "b": 0.3}, {"a": 1, "b": 1, "c": 2}, {"a": 1, "b": 0}, {"a": 0.05, "b": 1}],
)
def test_turns_are_as_many_as_the_shares_say_at_every_point(weights):
    turns, own = alternating(weights, 60), shares(weights)
    for count in range(1, 61):
        for name in weights:
            assert abs(turns[:count].count(name) - own.get(name, 0) * count) < 1.001
    for name, share in own.items():
        assert abs(turns.count(name) - 60 * share) < 0.5 + 1e-6


def query(t: float = 0.5, batch: int = 2) -> Query:
    generator = torch.Generator().manual_seed(0)
    contexts = {
        name: Context(tokens=torch.randn(batch, n, d, generator=generator))
        for name, (n, d) in {"text": (10, 16), "image": (16, 48), "image:2": (16, 48)}.items()
    }
    times = {"image": torch.full((batch,), t, dtype=torch.float64)}
    state = torch.randn(batch, 3, SIDE, SIDE, generator=generator)
    return Query(states={"image": state}, times=times, contexts=contexts, keep=("image",))


def test_a_turn_lasts_from_its_own_time_down_to_the_next():
    turns = [("text",), ("image:2",), ("image",), ("text",)]
    change = model_level(turns, "image")
    own = query().contexts
    for t, name in (
        (1.0, "text"),
        (0.8, "text"),
        (0.75, "image:2"),
        (0.5 + 1e-9, "image"),
        (0.0, "text"),
    ):
        asked = change(query(t)).contexts
        assert list(asked) == [name.partition(":")[0]]
        assert torch.equal(asked[name.partition(":")[0]].tokens, own[name].tokens)


def test_several_contexts_can_have_one_turn_and_others_stay():
    both = query()
    style = Context(tokens=torch.ones(2, 1, 4))
    asked = model_level([("text", "image:2"), ("image",)], "image")(
        Query(**{**vars(both), "contexts": both.contexts | {"style": style}})
    )
    assert set(asked.contexts) == {"style", "image"}
    assert asked.contexts["style"] is style


def test_tokens_of_one_kind_stand_side_by_side():
    own = query().contexts
    weights = {"text": 3 / 7, "image": 1.0, "image:2": 0.86}
    asked = token_level(weights)(query()).contexts
    tokens = torch.cat([own["image"].tokens, 0.86 * own["image:2"].tokens], 1)
    assert torch.equal(asked["image"].tokens, tokens)
    assert asked["image"].weight.tolist() == pytest.approx([0.7, 0.7])
    assert asked["text"].weight.tolist() == pytest.approx([0.3, 0.3])
    one = token_level({"image": 2.0, "image:2": 1.0})(query()).contexts
    assert one["image"].weight is None and torch.equal(
        one["image"].tokens[:, :16], own["image"].tokens
    )
    masked = [
        (Context(tokens=torch.ones(1, 2, 3), mask=torch.tensor([[True, False]])), 1.0),
        (Context(tokens=torch.ones(1, 1, 3)), 0.5),
    ]
    assert side_by_side(masked).mask.tolist() == [[True, False, True]]
    with pytest.raises(UsageError, match="plain tokens"):
        side_by_side([(Context(tokens=torch.tensor([3])), 1.0)] * 2)


# -- what the network makes of them -----------------------------------------------------------


@torch.no_grad()
def answer(model, asked: Query) -> Tensor:
    return model.system.network(asked.states, asked.times, asked.contexts)["image"]


def test_a_share_of_one_is_the_context_alone(model):
    alone = query()
    alone = Query(**{**vars(alone), "contexts": {"image": alone.contexts["image"]}})
    weights = {"text": 0.0, "image": 1.0, "image:2": 0.0}
    layers, noise = model.system.network.context_layers, PerSampleNoise([1, 2])
    for change in (
        attention_level(weights),
        layer_level_drawn(weights, layers, noise),
        token_level(weights),
    ):
        assert torch.equal(answer(model, change(query())), answer(model, alone))


def test_layers_see_one_context_each_as_often_as_its_share(model):
    layers, noise = model.system.network.context_layers, PerSampleNoise([*range(400)])
    asked = layer_level_drawn({"text": 0.25, "image": 0.75}, layers, noise)(query(batch=400))
    seen = {n: asked.contexts[n].weight for n in ("text", "image")}
    assert torch.equal(seen["text"] + seen["image"], torch.ones(400, layers, dtype=torch.float64))
    assert float(seen["text"].mean()) == pytest.approx(0.25, abs=0.03)
    few = layer_level_drawn({"text": 0.25, "image": 0.75}, layers, PerSampleNoise([7]))
    assert torch.equal(few(query(batch=1)).contexts["text"].weight, seen["text"][7:8])


# -- requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("mix", ["attention", "layer", "model", "tokens"])
def test_rates_of_zero_and_one_are_the_single_contexts(model, kind, mix):
    image, text = {"image": A}, {"text": "red soft"}
    only_image, only_text = made(model, kind, image), made(model, kind, text)
    first = made(model, kind, image | {"weight": 1}, text | {"weight": 0}, mix=mix)
    last = made(model, kind, image | {"weight": 0}, text | {"weight": 1}, mix=mix)
    assert same(first, only_image) and same(last, only_text)
    if kind == "image":
        between = made(model, kind, image, text, mix=mix)
        assert not same(between, only_image) and not same(between, only_text)
        again = made(model, kind, image, text, mix=mix)
        assert same(between, again)


def test_the_flow_of_one_text_is_text_to_image(model):
    (plain,) = model.generate(kind="text-to-image", text="blue loud", seed=4)
    assert same(made(model, "image", {"text": "blue loud"}, seed=4), np.asarray(plain.image))
    half = made(model, "image", {"text": "blue loud", "weight": 0.5}, seed=4)
    nothing_said = made(model, "image", {"text": "blue loud", "weight": 0}, seed=4)
    assert same(nothing_said, made(model, "image", {"text": "soft", "weight": 0}, seed=4))
    assert not same(half, np.asarray(plain.image)) and not same(half, nothing_said)


def test_shares_are_what_counts_and_the_order_does_not(model):
    a, b, text = {"image": A}, {"image": B}, {"text": "red"}
    one = made(model, "image", a | {"weight": 0.2}, b | {"weight": 0.3}, text | {"weight": 0.5})
    other = made(model, "image", text | {"weight": 5}, b | {"weight": 3}, a | {"weight": 2})
    assert np.abs(one - other).max() <= 1
    twice = made(model, "image", a, a)
    assert np.abs(twice - made(model, "image", a)).max() <= 1


def test_an_embedding_stands_in_for_what_it_embeds(model):
    conditions, text = model.system.conditions, {"text": "red soft"}
    pixels = torch.from_numpy(np.array(A)).permute(2, 0, 1)[None] / 127.5 - 1
    tokens = conditions["image"].codec.encode(pixels)
    blended = made(model, "image", {"image": A}, text)
    for embedding in (tokens[0], tokens[0].numpy()):
        given = {"embedding": embedding, "condition": "image"}
        assert np.abs(made(model, "image", given, text) - blended).max() <= 1
    words = {"embedding": conditions["text"].codec.encode(["red soft"])[0], "condition": "text"}
    assert same(made(model, "text", words), made(model, "text", text))
    with pytest.raises(RequestError, match="is 3 x 5 numbers; image takes N x 48"):
        made(model, "image", {"embedding": np.zeros((3, 5)), "condition": "image"})


def test_a_mask_shows_the_bright_part_alone(model):
    dark, bright = (Image.new("L", (SIDE, SIDE), value) for value in (0, 255))
    half = bright.copy()
    half.paste(0, (0, 0, SIDE // 2, SIDE))
    whole = made(model, "image", {"image": A})
    assert same(made(model, "image", {"image": A, "mask": bright}), whole)
    assert same(
        made(model, "image", {"image": A, "mask": dark}),
        made(model, "image", {"image": A, "weight": 0}),
    )
    other = A.copy()
    other.paste(B.crop((0, 0, SIDE // 2, SIDE)), (0, 0))  # what the mask hides is of no matter
    seen = made(model, "image", {"image": A, "mask": half})
    assert same(made(model, "image", {"image": other, "mask": half}), seen)
    assert not same(seen, whole) and not same(made(model, "image", {"image": other}), whole)


def test_focus_is_of_each_picture(model):
    plain = made(model, "image", {"image": A}, {"image": B})
    neutral = made(model, "image", {"image": A, "focus": 0.5}, {"image": B})
    first = made(model, "image", {"image": A, "focus": "semantic"}, {"image": B})
    second = made(model, "image", {"image": A}, {"image": B, "focus": "style"})
    assert same(plain, neutral)
    assert not same(first, plain) and not same(second, plain) and not same(first, second)


def test_colours_go_to_those_of_the_picture(model):
    drawn = [made(model, "image", {"image": A}, colours=rate) for rate in (0.0, 0.5, 1.0)]
    means = [np.asarray(x).mean((0, 1)) for x in (*drawn, A)]
    apart = [np.abs(mean - means[-1]).max() for mean in means[:-1]]
    assert apart[2] < 3 < apart[1] < apart[0]


def test_a_picture_is_both_where_it_starts_and_what_it_is_made_of(model):
    """Fidelity: a partly noised start, with contexts."""
    settings = {
        "kind": "image-to-image",
        "images": [A],
        "contexts": [{"image": A}, {"text": "red"}],
    }
    near, far = (model.generate(**settings, strength=s)[0].image for s in (0.25, 1.0))
    near, far = (np.abs(np.asarray(x).astype(int) - np.asarray(A)).mean() for x in (near, far))
    assert near < far


@pytest.mark.parametrize("mix", ["attention", "layer", "model", "tokens"])
def test_a_result_does_not_depend_on_its_batch(model, mix):
    contexts = [{"image": A, "weight": 0.4}, {"text": "red"}, {"image": B, "weight": 0.7}]
    together = model.generate(kind="image", contexts=contexts, mix=mix, n=3, seed=5)
    (alone,) = model.generate(kind="image", contexts=contexts, mix=mix, seed=6)
    assert np.array_equal(np.asarray(together[1].image), np.asarray(alone.image))


def test_a_record_has_what_was_blended(model):
    (result,) = model.generate(
        kind="image", contexts=[{"image": A, "weight": 0.7}, {"text": "red"}]
    )
    kept = result.row["request"]["contexts"]
    assert [c["weight"] for c in kept] == [0.7, 1.0] and kept[1]["text"] == "red"
    assert kept[0]["image"] in result.inputs and result.request.mix == "attention"


def test_a_picture_is_varied_and_edited(model):
    """Variation is a flow of its own; an edit tells, changes and draws."""
    (varied,) = model.generate(kind="vary-image", image=A, seed=2)
    assert varied.metadata["task"] == "image-variation"
    assert same(np.asarray(varied.image), made(model, "image", {"image": A}, seed=2))
    edits = {"text": "red"}, {"negative": "blue"}
    drawn = [model.generate(kind="edit-image", image=A, seed=2, **edit) for edit in edits]
    pictures = [np.asarray(results[0].image) for results in drawn]
    assert all(len(results) == 1 for results in drawn) and not same(*pictures)
    jobs = model.generate(kind="edit-image", image=[A, A], text=["loud", "red"], seed=1)
    assert same(np.asarray(jobs[1].image), pictures[0])


# -- other systems, and what cannot be --------------------------------------------------------


@pytest.fixture(scope="module")
def tokens_only():
    """A transformer of tokens that reads one text, and has a null of its own for it."""
    layout = (
        TimeToken(clock="image"),
        ContextTokens(name="text", length=2, dim=8, null=True),
        Patches(name="image", channels=3, size=SIDE, patch=4),
    )
    torch.manual_seed(4)
    process, pixels = gaussian("cosine"), Pixels(size=SIDE)
    image = Modality(
        name="image", clock="image", shape=(3, SIDE, SIDE), process=process, codec=pixels
    )
    words = Words(vocabulary=WORDS, length=2, dim=8)
    text = Condition(name="text", source="text", codec=words, nulls={"learned": dropped(2, 8)})
    network = UViT(UViTConfig(layout=layout, dim=32, depth=2, heads=2, init="unit"))
    system = System(
        name="tokens",
        network=network.eval(),
        modalities={"image": image},
        tasks=drawing("text"),
        conditions={"text": text},
    )
    return Model(name="tokens", hash="0", system=system, metadata={"image_size": SIDE})


def test_a_system_of_one_condition_mixes_texts_step_by_step(tokens_only):
    model, fox, cup = tokens_only, {"text": "red soft"}, {"text": "blue loud"}
    settings = {"steps": 4, "seed": 3}
    (alone,) = model.generate(kind="text-to-image", text=fox["text"], **settings)
    alone = np.asarray(alone.image)
    assert same(made(model, "image", fox, **settings), alone)
    assert same(made(model, "image", fox, cup | {"weight": 0}, **settings), alone)
    assert not same(made(model, "image", fox, cup, **settings), alone)
    assert same(made(model, "image", fox, fox, **settings), alone)
    half = made(model, "image", fox | {"weight": 0.5}, **settings)
    assert not same(half, alone)
    with pytest.raises(
        RequestError, match="mixes contexts step by step; give mix model, not layer"
    ):
        made(model, "image", fox, cup, mix="layer")
    with pytest.raises(RequestError, match="'image' is unknown; choose one of text"):
        made(model, "image", {"image": A})


def test_what_cannot_be_is_told(model, nano):
    blended = {"kind": "image", "contexts": [{"image": A}, {"text": "red"}]}
    with pytest.raises(RequestError, match="this model makes no image out of contexts"):
        nano.generate(**blended)
    with pytest.raises(RequestError, match="'sound' is unknown; choose one of image, text"):
        made(model, "image", {"embedding": np.zeros((2, 8)), "condition": "sound"})
    with pytest.raises(RequestError, match="no patches in its text"):
        made(model, "image", {"embedding": np.zeros((2, 16)), "condition": "text", "focus": 0.1})
    with pytest.raises(RequestError, match="give both the same shape"):
        made(model, "image", {"image": A, "mask": Image.new("L", (4, 9))})
    with pytest.raises(RequestError, match="makes no sound out of contexts"):
        made(model, "sound", {"image": A})
