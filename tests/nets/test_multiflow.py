"""The multi-flow network: the authors' numbers, mixing, and what each flow takes."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from everyway.contracts import Context
from everyway.nets.multiflow import MultiFlow, MultiFlowConfig, Vectors, layer_level, shares
from everyway.systems.versatile import FOUR_FLOW
from formula import normal
from published_versatile import (
    SMALL,
    TINY,
    arrays,
    compare,
    context,
    fill,
    fill_in_place,
    given,
    time,
)

ATOL = 2e-5
TIMES = {"image": time([13, 801]), "text": time([13, 801])}
IMAGE = {"image": context("c_image")}
TEXT = {"text": context("c_text")}


@pytest.fixture(scope="module")
def network():
    return fill(MultiFlow(TINY))


@pytest.fixture(scope="module")
def small():
    return fill(MultiFlow(SMALL))


@torch.no_grad()
def made(network, contexts, name="image"):
    out = network({name: given(f"x_{name}")}, TIMES, contexts)
    assert out.keys() == {name}
    return out[name]


def weighed(**weights):
    """Contexts in this order, "image2" being a second one of its kind."""
    sources = {"text": "c_text", "image": "c_image", "image2": "c_image2"}
    return {
        name.replace("image2", "image:2"): context(sources[name], weight=torch.full((2,), float(w)))
        for name, w in weights.items()
    }


# -- flows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", ["image", "text"])
@pytest.mark.parametrize("c", ["image", "text"])
def test_the_four_flows_are_the_authors(network, x, c):
    file = arrays("a_tiny_four_flow")
    compare(file, f"{x}_from_{c}", made(network, {"image": IMAGE, "text": TEXT}[c], x), ATOL)


def test_the_layers_on_the_way_are_the_authors(network):
    file, parts = arrays("a_tiny_four_flow"), network.parts
    with torch.no_grad():
        embedded = parts["time"](torch.tensor([13.0, 801.0]))
        compare(file, "emb", embedded, ATOL)
        for x, c in (("image", "text"), ("text", "image")):
            first = parts[f"{x}_data"][0](given(f"x_{x}"))
            compare(file, f"{x}_probe_d0", first, ATOL)
            second = parts[f"{x}_data"][1](first, embedded)
            compare(file, f"{x}_probe_d1", second, ATOL)
            third = parts[f"{c}_context"][0](second, context(f"c_{c}"))
            compare(file, f"{x}_from_{c}_probe_c0", third, ATOL)


def test_a_state_is_made_by_its_own_layers_and_several_at_once(network):
    with torch.no_grad():
        both = network({"image": given("x_image"), "text": given("x_text")}, TIMES, TEXT)
    assert torch.equal(both["image"], made(network, TEXT))
    assert torch.equal(both["text"], made(network, TEXT, "text"))
    with torch.no_grad():
        one = network({"image": given("x_image"), "text": given("x_text")}, TIMES, TEXT, ("text",))
    assert one.keys() == {"text"}


# -- mixing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("r", ["0", "0.25", "0.5", "0.7", "1"])
def test_two_contexts_mixed_at_every_layer(network, r):
    rest = f"{1 - float(r):g}"
    mixed = made(network, weighed(text=r, image=rest))
    compare(arrays("b_tiny_mixing_head"), f"attn_text{r}_image{rest}", mixed, ATOL)


def test_weights_are_made_to_sum_to_one_whatever_their_order(network):
    file = arrays("b_tiny_mixing_head")
    mixed = made(network, weighed(image=3, text=7))
    compare(file, "attn_image3_text7_unnormalised", mixed, ATOL)


def test_three_contexts_of_which_two_are_of_one_kind(network):
    mixed = made(network, weighed(text=0.2, image=0.5, image2=0.3))
    compare(arrays("b_tiny_mixing_head"), "attn3_text0.2_image0.5_image2_0.3", mixed, ATOL)


def test_several_pictures_as_one_context(network):
    file = arrays("b_tiny_mixing_head")
    tokens = torch.cat([given("c_image"), 0.86 * given("c_image2")], 1)
    one = {"image": replace(context("c_image"), tokens=tokens)}
    compare(file, "single_concatimages_1_0.86", made(network, one), ATOL)
    share = torch.full((2,), 0.7)
    both = weighed(text=0.3) | {"image": replace(one["image"], weight=share)}
    compare(file, "attn_text0.3_concatimages_1_0.86__0.7", made(network, both), ATOL)


@pytest.mark.parametrize("r", ["0.25", "0.7"])
def test_a_text_is_made_of_several_contexts_too(network, r):
    rest = f"{1 - float(r):g}"
    mixed = made(network, weighed(text=r, image=rest), "text")
    file = arrays("b_tiny_mixing_legacy_text_target")
    compare(file, f"text_target_mixed_text{r}_image{rest}", mixed, ATOL)


@pytest.mark.parametrize(("r", "seed"), [("0.25", 0), ("0.25", 7), ("0.7", 0), ("0.7", 7)])
def test_one_context_drawn_for_every_layer(network, r, seed):
    file = arrays("b_tiny_mixing_head")
    uniforms = torch.from_numpy(file[f"layer_seed{seed}__uniforms16"]).expand(2, -1)
    drawn = layer_level(weighed(text=r, image=1 - float(r)), uniforms)
    chosen = drawn["image"].weight[0].long()  # 0 is the first, the text
    assert chosen.tolist() == file[f"layer_text{r}_seed{seed}__choices"].tolist()
    compare(file, f"layer_text{r}_seed{seed}", made(network, drawn), ATOL)


def test_one_of_three_drawn_for_every_layer(network):
    file = arrays("b_tiny_mixing_head")
    contexts = weighed(text=0.2, image=0.5, image2=0.3)
    choices = torch.from_numpy(file["layer3_choices"]).long()
    edges = torch.tensor([0.0, 0.2, 0.7])  # a draw just above the edge before it
    drawn = layer_level(contexts, (edges[choices] + 0.01).expand(2, -1))
    compare(file, "layer3_text0.2_image0.5_image2_0.3_seed3", made(network, drawn), ATOL)


def test_samples_of_one_batch_are_mixed_by_their_own_weights(small):
    uniforms = torch.rand(2, small.context_layers, dtype=torch.float64)
    several = layer_level(weighed(text=0.5, image=0.5), uniforms)
    whole = made(small, several)
    for k in range(2):
        cut = slice(k, k + 1)
        states = {"image": given("x_image")[cut]}
        alone = {name: c.rows(cut) for name, c in several.items()}
        with torch.no_grad():
            one = small(states, {"image": TIMES["image"][cut]}, alone)["image"]
        torch.testing.assert_close(one, whole[cut], rtol=0, atol=ATOL)


def test_a_draw_follows_the_weights():
    uniforms = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64).expand(2, -1)
    drawn = layer_level(weighed(text=1, image=3), uniforms)
    assert drawn["text"].weight.mean(1).tolist() == pytest.approx([0.25, 0.25])
    assert torch.equal(drawn["text"].weight + drawn["image"].weight, torch.ones(2, 1000).double())


def test_a_context_without_weight_is_not_run(small):
    ran = []
    hooks = [
        small.parts[f"{kind}_context"][0].register_forward_hook(
            lambda *_, kind=kind: ran.append(kind)
        )
        for kind in ("image", "text")
    ]
    mixed = made(small, weighed(text=1, image=0))
    for hook in hooks:
        hook.remove()
    assert ran == ["text"]
    assert torch.equal(mixed, made(small, TEXT))


def test_weights_of_nothing_are_refused(small):
    with pytest.raises(ValueError, match="weights of text, image are all 0"):
        shares(weighed(text=0, image=0))
    with pytest.raises(ValueError, match="given image, text.*here it is nothing"):
        made(small, {})
    with pytest.raises(ValueError, match="here it is sound"):
        made(small, {"sound": context("c_text")})


# -- what a flow takes ------------------------------------------------------------------------


def test_a_flow_needs_its_own_layers_alone(small):
    needed = small.needed({"image": TIMES["image"]}, weighed(text=1, image2=1))
    assert needed == ["time", "image_data", "text_context", "image_context"]
    alone = small.needed({"text": TIMES["text"]}, IMAGE)
    assert alone == ["time", "text_data", "image_context"]
    idle = small.components.keys() - set(alone)
    bare = fill(MultiFlow(SMALL))
    for name in idle:
        bare.parts[name].to("meta")
    assert torch.equal(made(bare, IMAGE, "text"), made(small, IMAGE, "text"))


def test_another_modality_is_another_set_of_layers(small):
    sound = Vectors(name="sound", shape=(3, 6))
    data, contexts = (*SMALL.data, sound), {**SMALL.contexts, "sound": 48}
    more = MultiFlow(replace(SMALL, data=data, contexts=contexts))
    added = more.components.keys() - small.components.keys()
    assert added == {"sound_data", "sound_context"}
    assert {name.split(".")[1] for name in more.take(small)} == added
    more.eval()
    assert torch.equal(made(more, IMAGE), made(small, IMAGE))
    x = {"sound": torch.randn(2, 3, 6)}
    with torch.no_grad():
        heard = more(x, {"sound": TIMES["text"]}, IMAGE | {"sound": context("c_text")})["sound"]
    assert heard.shape == (2, 3, 6)


def test_parameters_are_counted_for_all_flows_and_for_networks_of_their_own():
    with torch.device("meta"):
        network = MultiFlow(FOUR_FLOW)
    report = network.parameters_report()
    assert report.components == {
        "time": 2_050_560,
        "image_data": 590_231_044,
        "text_data": 1_439_558_528,
        "image_context": 267_239_360,
        "text_context": 267_239_360,
    }
    assert report.total == 2_566_318_852
    assert report.flows["image", "text"] == 859_520_964  # as Stable Diffusion v1.4's network
    assert report.separate == 2 * (859_520_964 + 1_708_848_448)
    assert network.context_layers == 16


def test_a_config_comes_back_from_plain_data():
    assert MultiFlowConfig.from_json(json.loads(json.dumps(TINY.to_json()))) == TINY


def test_gradients_reach_what_a_flow_takes_and_nothing_else():
    copy = fill(MultiFlow(SMALL, gradient_checkpointing=True)).train()
    states, times = {"image": given("x_image")}, {"image": TIMES["image"]}
    copy(states, times, TEXT)["image"].square().mean().backward()
    learnt = {
        name
        for name, part in copy.parts.items()
        if any(p.grad is not None for p in part.parameters())
    }
    assert learnt == set(copy.needed(times, TEXT))
    plain = fill(MultiFlow(SMALL)).train()
    plain(states, times, TEXT)["image"].square().mean().backward()
    for a, b in zip(copy.parameters(), plain.parameters()):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_the_released_size_is_the_authors():
    """Of a flow alone, whose layers are all that lies in memory: 3.4 GB."""
    with torch.device("meta"):
        network = MultiFlow(FOUR_FLOW).eval()
    for name in ("time", "image_data", "text_context"):
        network.parts[name].to_empty(device="cpu")
    fill_in_place(network)
    file = arrays("c_real_image_from_text")
    text = {"text": Context(tokens=normal("input:real_c_text", (1, 77, 768)))}
    for side in (32, 64):
        x = normal(f"input:real_x_image{side}", (1, 4, side, side))
        made = network({"image": x}, {"image": time([481])}, text)["image"]
        compare(file, f"t2i_{side}", made, 2e-4)
