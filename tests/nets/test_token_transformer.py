"""The token transformer gives the authors' and diffusers' numbers in the published layouts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Transformer2DModel
from torch import Tensor

from everyway.checkpoints.tensor_files import LayoutError, check
from everyway.contracts import Context
from everyway.layouts import vq_network as layouts
from everyway.layouts.keymap import Table, to_ours, to_theirs
from everyway.layouts.vq_diffusion import join, parted
from everyway.layouts.vq_network import DIFFUSERS_KEYMAP, keymap
from everyway.nets.token_transformer import (
    AdaNorm,
    TokenTransformer,
    TokenTransformerConfig,
    gelu2,
    step_of,
    step_sinusoid,
)
from everyway.process.mask_replace import MaskReplace
from everyway.systems.vq_diffusion import PRESETS, preset_of
from formula import filled, normal
from published_vq import is_derived

FOLDER = Path(__file__).parents[1] / "golden" / "vq"
LAYOUTS = json.loads((FOLDER / "layouts.json").read_text(encoding="utf-8"))
ATOL = 1e-5  # measured: 2.2e-6 at most for tiny networks

_TINY = TokenTransformerConfig(codes=32, side=8, dim=64, depth=2, heads=4)
TEXT = replace(_TINY, condition="text", text_length=7, text_dim=48)
UNCOND = replace(_TINY, table_side=16, mlp="conv")
CLASS = replace(UNCOND, condition="class", labels=10)


def empty(config: TokenTransformerConfig) -> TokenTransformer:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return TokenTransformer(config)


def made(config: TokenTransformerConfig) -> TokenTransformer:
    """The network with every tensor filled under its authors' name, held once."""
    network = empty(config)
    theirs = to_theirs(network.state_dict(), keymap(config))
    weights = {k: filled(k, tuple(v.shape)) for k, v in theirs.items()}
    network.load_state_dict(to_ours(weights, keymap(config)), assign=True)
    return network.eval()


def time(steps: list[int], of: int = 100) -> Tensor:
    return (torch.tensor(steps, dtype=torch.float64) + 1) / of


def logits(network: TokenTransformer, tokens: Tensor, steps: list[int], **contexts) -> Tensor:
    conditioning = {k: Context(tokens=v) for k, v in contexts.items()}
    with torch.inference_mode():
        out = network({"image": tokens}, {"image": time(steps)}, conditioning)
    return out["image"]


@pytest.fixture(scope="module")
def tiny() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "tiny_transformers.npz") as file:
        return dict(file)


def compare(arrays: dict, key: str, found: Tensor, atol: float = ATOL) -> None:
    """`found` against a golden that is whole or taken with a stride."""
    found = found.detach().numpy()
    if key in arrays:
        return np.testing.assert_allclose(found, arrays[key], rtol=0, atol=atol)
    found = found.ravel()[:: int(arrays[f"{key}.stride"])]
    np.testing.assert_allclose(found, arrays[f"{key}.sub"], rtol=0, atol=atol)


TEXT_TOKENS = normal("input:c.text.cond", (2, 7, 48))


@pytest.mark.parametrize("steps", [[0, 0], [99, 99], [13, 71]])
def test_text(tiny, steps):
    out = logits(made(TEXT), torch.tensor(tiny["text.x"]), steps, text=TEXT_TOKENS)
    assert out.shape == (2, 64, 32)
    compare(tiny, f"text.t{steps[0]}_{steps[1]}.logits", out.mT)  # the authors' classes are axis 1
    if steps == [13, 71]:
        clean = MaskReplace(classes=32).to_clean(out, torch.tensor(tiny["text.x"]), time(steps))
        compare(tiny, "text.t13_71.predict_start", clean.mT)


def test_inside_the_text_network(tiny):
    network, step = made(TEXT), torch.tensor([13, 71])
    x, block = network.embed(torch.tensor(tiny["text.x"])), network.blocks[0]
    compare(tiny, "text.content_emb", x)
    compare(tiny, "text.t13_71.block0.ln1", block.norm_attn(x, step))
    compare(tiny, "text.t13_71.block0.out", block(x, step, TEXT_TOKENS))


def test_class(tiny):
    network, tokens, label = made(CLASS), torch.tensor(tiny["class.x"]), torch.tensor([3, 7])
    compare(tiny, "class.t5_80.logits", logits(network, tokens, [5, 80], label=label).mT)
    x = network.embed(tokens)
    compare(tiny, "class.content_emb", x)
    compare(tiny, "class.block0.ln2_y3_7", network.blocks[0].norm_mlp(x, label))


def test_a_label_outside_the_table_has_its_mean(tiny):
    network, tokens = made(CLASS), torch.tensor(tiny["class.x"])
    assert network.null_label == 10
    null = torch.tensor([10, 10])
    compare(tiny, "class.null_mean.t5_80.logits", logits(network, tokens, [5, 80], label=null).mT)
    lost = Context(tokens=torch.tensor([3, 7]), dropped=torch.tensor([True, True]))
    times = {"image": time([5, 80])}
    assert torch.equal(
        network({"image": tokens}, times, {"label": lost})["image"],
        logits(network, tokens, [5, 80], label=null),
    )


def test_every_sample_has_its_own_label_or_mean(tiny):
    network, tokens = made(CLASS), torch.tensor(tiny["class.x"])
    for label, keys in (([3, 10], ("", "null_mean.")), ([10, 7], ("null_mean.", ""))):
        out = logits(network, tokens, [5, 80], label=torch.tensor(label)).mT.numpy()
        for row, key in enumerate(keys):
            golden = tiny[f"class.{key}t5_80.logits"][row]
            np.testing.assert_allclose(out[row], golden, rtol=0, atol=ATOL)


def test_unconditional(tiny):
    out = logits(made(UNCOND), torch.tensor(tiny["uncond.x"]), [5, 80])
    compare(tiny, "uncond.t5_80.logits", out.mT)


def test_pieces(tiny):
    step = torch.tensor([5, 80])
    norm = AdaNorm(64, 100, table=False)
    norm.scale_shift.weight.data = filled("adaln_abs.linear.weight", (128, 64))
    norm.scale_shift.bias.data = filled("adaln_abs.linear.bias", (128,))
    compare(tiny, "adaln_abs.t5_80", norm(normal("input:c.abs.x", (2, 9, 64)), step))
    compare(tiny, "sinusoidal.t5_80", step_sinusoid(step, 100, 64), atol=1e-6)
    compare(tiny, "gelu2", gelu2(normal("input:c.gelu", (32,))), atol=1e-6)


def _real_contexts(name: str) -> dict[str, Tensor]:
    if PRESETS[name].condition == "none":
        return {}
    text = normal(f"input:d.{name}.cond", (1, 77, 512))
    return {"text": text / text.norm(dim=-1, keepdim=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ffhq", "coco", "ithq"])
def test_real_size(name):
    with np.load(FOLDER / f"real_{name}.npz") as file:
        arrays = dict(file)
    tokens = torch.tensor(arrays["x"]).long()
    network = made(replace(PRESETS[name], learned_null=False))
    out = logits(network, tokens, arrays["t"].tolist(), **_real_contexts(name))
    compare(arrays, "logits", out.mT)
    for place, key in ((0, "pos0"), (-1, "poslast")):
        golden = arrays[f"logits_{key}_first64"]
        np.testing.assert_allclose(out[0, place, :64], golden, rtol=0, atol=ATOL)
    assert np.array_equal(out.argmax(-1).numpy(), arrays["argmax"])
    found = [out.double().mean(), out.double().std(correction=0), out.abs().max()]
    np.testing.assert_allclose(np.array(found), arrays["logits.stats"], rtol=0, atol=ATOL)


PARAMETERS = {
    "coco": 388_780_871,
    "cc": 388_780_871,
    "cub200": 388_780_871,
    "human": 388_780_871,
    "coco_learnable": 388_820_295,
    "cc_learnable": 388_820_295,
    "ithq": 1_359_314_048,
    "imagenet": 518_025_678,
    "imagenet_learnable": 518_037_966,
    "ffhq": 411_185_664,
    "small": 35_936_647,
}


def test_published_sizes():
    found = {k: sum(p.numel() for p in empty(c).parameters()) for k, c in PRESETS.items()}
    assert found == PARAMETERS
    assert round(found["small"] / 2**20) == 34 and found["coco"] // 2**20 == 370  # as in the paper


PUBLISHED = {
    "author_coco_text_base": "coco",
    "author_cub200_text_base": "cub200",
    "author_coco_learnable": "coco_learnable",
    "author_ithq_learnable": "ithq",
    "author_imagenet_class": "imagenet",
    "author_imagenet_learnable_class1001": "imagenet_learnable",
    "author_ffhq_uncond": "ffhq",
}


def layout(name: str) -> dict[str, tuple[int, ...]]:
    """A stored layout, `{n}` in a name standing for 0 .. n - 1."""
    shapes = {}
    for template, shape in LAYOUTS[name].items():
        found = re.search(r"\{(\d+)\}", template)
        for i in range(int(found[1])) if found else [None]:
            shapes[template if i is None else template.replace(found[0], str(i))] = tuple(shape)
    return shapes


def agree(network: TokenTransformer, theirs: dict, table: Table) -> None:
    """Names and shapes are the same, both ways."""
    ours = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    check(to_ours(theirs, table), ours)
    check(to_theirs(ours, table), theirs)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_layout(name):
    """Every tensor of a whole file is a weight of ours, derived, or of another part."""
    found = PUBLISHED[name]
    config, file = PRESETS[found], layout(name)
    parts = parted(file)
    assert join(parts) == file
    assert bool(parts["text_states"]) == (config.condition == "text") and not parts["image"]
    weights = {k: v for k, v in parts["network"].items() if not is_derived(k)}
    agree(empty(config), weights, keymap(config))
    derived = {k: v for k, v in parts["network"].items() if k not in weights}
    own = layouts.derived(config.to_json())
    assert derived == {k: tuple(v.shape) for k, v in own.items()}
    assert preset_of(config.to_json()) == ("coco" if config == PRESETS["coco"] else found)


def test_the_layout_of_diffusers():
    theirs = layout("diffusers_ithq_transformer") | layout("diffusers_ithq_learned_cf")
    agree(empty(PRESETS["ithq"]), theirs, DIFFUSERS_KEYMAP)


def test_parts_of_a_file():
    file = {"content_codec.enc.quant_conv.bias": 1, "transformer.log_at": 2}
    assert parted(file) == {
        "image": {"enc.quant_conv.bias": 1},
        "text_states": {},
        "network": {"log_at": 2},
    }
    with pytest.raises(LayoutError, match="optimizer is of no part"):
        parted({"optimizer": 1})
    own = layouts.derived(TEXT.to_json())
    mask = own["transformer.blocks.1.attn2.mask"].read()
    assert mask.shape == (1, 1, 64, 64) and mask[0, 0, 3, :5].tolist() == [1, 1, 1, 1, 0]
    assert not any("mask" in name for name in layouts.derived(UNCOND.to_json()))


def test_diffusers_network_gives_the_same():
    """Measured on random weights: 1.2e-7 of the largest value."""
    theirs = Transformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=3,
        cross_attention_dim=48,
        attention_bias=True,
        sample_size=8,
        num_vector_embeds=33,
        num_embeds_ada_norm=100,
        activation_fn="geglu-approximate",
        norm_type="ada_norm",
    ).eval()
    generator = torch.Generator().manual_seed(0)
    for p in theirs.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (p.shape[-1] ** -0.5)
    ours = TokenTransformer(replace(TEXT, depth=3)).eval()
    ours.load_state_dict(to_ours(theirs.state_dict(), DIFFUSERS_KEYMAP))
    tokens = torch.randint(33, (2, 64), generator=generator)
    text = torch.randn(2, 7, 48, generator=generator)
    for step in (0, 42, 99):
        with torch.inference_mode():
            expected = theirs(tokens, text, timestep=torch.tensor(step)).sample  # (B, K, L)
        found = logits(ours, tokens, [step, step], text=text).log_softmax(-1).mT
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("config", [TEXT, CLASS, UNCOND], ids=["text", "class", "none"])
def test_checkpointing_gives_the_same_gradients(config):
    contexts = {
        "text": Context(tokens=TEXT_TOKENS),
        "label": Context(tokens=torch.tensor([3, 10])),
    }
    grads, calls = [], []
    for gradient_checkpointing in (False, True):
        network = made(config).train()
        network.gradient_checkpointing = gradient_checkpointing
        network.blocks[0].mlp.register_forward_pre_hook(
            lambda *_, c=gradient_checkpointing: calls.append(c)
        )
        tokens = torch.arange(128).view(2, 64) % 33
        out = network({"image": tokens}, {"image": time([5, 80])}, contexts)["image"]
        out.square().mean().backward()
        grads.append([p.grad for p in network.parameters()])
    assert calls == [False, True, True]  # once more on the way back
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    assert sum(bool(g.any()) for g in grads[0]) == len(grads[0])


@pytest.mark.parametrize("config", [TEXT, CLASS, UNCOND], ids=["text", "class", "none"])
def test_a_sample_does_not_depend_on_its_batch(config):
    network, tokens, steps = made(config), torch.arange(192).view(3, 64) * 7 % 33, [0, 40, 99]
    conditioning = {
        "text": torch.cat([TEXT_TOKENS, -TEXT_TOKENS[:1]]),
        "label": torch.tensor([10, 2, 9]),
    }
    batch = logits(network, tokens, steps, **conditioning)
    for i in range(3):
        row = {k: v[i : i + 1] for k, v in conditioning.items()}
        alone = logits(network, tokens[i : i + 1], steps[i : i + 1], **row)
        torch.testing.assert_close(alone[0], batch[i], rtol=0, atol=ATOL)


def test_learned_null():
    torch.manual_seed(0)
    network = TokenTransformer(replace(TEXT, learned_null=True))
    assert network.null.shape == (7, 48) and abs(float(network.null.detach().std()) - 1) < 0.15
    lost = Context(tokens=torch.zeros(3, 7, 48), dropped=torch.ones(3, dtype=torch.bool))
    assert abs(float(network.head.weight.detach().std()) - 0.02) < 0.002
    tokens = torch.zeros(3, 64, dtype=torch.int64)
    out = network({"image": tokens}, {"image": time([0, 0, 0])}, {"text": lost})
    out["image"].square().sum().backward()
    assert network.null.grad.abs().sum() > 0
    learned = TokenTransformer(replace(CLASS, labels=11, learned_null=True))
    assert learned.null_label == 10  # a row of the table
    with pytest.raises(ValueError, match="no null of its own"):
        made(TEXT)({"image": tokens}, {"image": time([0, 0, 0])}, {"text": lost})


def test_times_are_the_papers_steps():
    for steps in (10, 50, 100):
        every = torch.arange(steps)
        assert torch.equal(step_of((every.double() + 1) / steps, steps), every)
    assert step_of(torch.zeros(1, dtype=torch.float64), 100).tolist() == [0]


def test_outputs_are_named_and_kept():
    network = made(replace(UNCOND, name="sketch"))
    states = {"sketch": torch.zeros(1, 64, dtype=torch.int64)}
    times = {"sketch": time([9])}
    assert network(states, times, keep=("text",)) == {}
    assert list(network(states, times, keep=("sketch",))) == ["sketch"]


def test_config_survives_json():
    for config in (*PRESETS.values(), TEXT, CLASS):
        data = json.loads(json.dumps(config.to_json()))
        assert TokenTransformerConfig.from_json(data) == config


@pytest.mark.parametrize(
    "option",
    [
        {"heads": 3},
        {"mlp": "odd"},
        {"time": "odd"},
        {"condition": "class"},
        {"labels": 3},
        {"learned_null": True},
        {"table_side": 4},
    ],
)
def test_a_bad_config_is_one_clear_line(option):
    with pytest.raises(ValueError) as caught:
        replace(_TINY, **option)
    assert "\n" not in str(caught.value)


def test_bad_inputs_are_one_clear_line():
    network = made(TEXT)
    with pytest.raises(ValueError, match="'text' is missing"):
        logits(network, torch.zeros(1, 64, dtype=torch.int64), [0])
    with pytest.raises(ValueError, match="63 tokens were given; give 64"):
        logits(network, torch.zeros(1, 63, dtype=torch.int64), [0], text=TEXT_TOKENS[:1])
