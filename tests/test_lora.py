"""LoRA: taught on any network, kept in a file that PEFT reads, added to a model that stays."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everyway import library, lora
from everyway.contracts import Context
from everyway.generate import load
from everyway.nets.token_transformer import TokenTransformer, TokenTransformerConfig
from everyway.process.intervals import named
from everyway.process.training_times import Uniform
from everyway.request import GenerateRequest, RequestError, read_lora
from everyway.systems import ediffi
from everyway.systems.ensemble import ensemble
from everyway.train import samples, train
from everyway.train.config import ConfigError, resolve
from everyway.train.state import metadata_of

PROMPT = "a red circle left on blue"
ASKED = {"multi-flow": 0.3, "experts": 0.3, "U-Net": 0.9}
"""Of networks whose layers are not all asked at one time: the least share that is."""
FACTS = {"rank": 2, "alpha": 4.0, "base": "nano"}


def written(path: Path, network: torch.nn.Module, base_hash: str, seed: int = 0) -> Path:
    """A LoRA of a network, of random numbers throughout."""
    path.parent.mkdir(exist_ok=True)
    taught = copy.deepcopy(network)
    lora.add(taught, FACTS["rank"], FACTS["alpha"], lora.linear_layers(network), seed)
    own = {k: v for k, v in taught.state_dict().items() if lora.is_matrix(k)}
    noise = torch.Generator().manual_seed(seed)
    for value in own.values():
        value.copy_(0.1 * torch.randn(value.shape, generator=noise))
    lora.write(path, own, {**FACTS, "base_hash": base_hash})
    return path


@pytest.fixture(scope="module")
def file(nano, tmp_path_factory):
    """A LoRA of nano."""
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    return written(path, nano.system.network, nano.hash)


def answers(network: torch.nn.Module, system) -> dict[str, torch.Tensor]:
    """What a network says of random states."""
    noise = torch.Generator().manual_seed(1)
    states = {k: torch.randn(shape, generator=noise) for k, shape in system.shapes(2).items()}
    times = {clock: torch.tensor([0.3, 0.7]).double() for clock in {*system.clocks.values()}}
    nulls = system.null_contexts(2)
    return network(states, times, nulls if system.mixes else system.weighed({}, nulls, {}))


def picture(model, **settings) -> bytes:
    (result,) = model.generate(text=PROMPT, kind="text-to-image", steps=2, **settings)
    return result.image.tobytes()


def test_peft_reads_the_file(nano, file):
    """With its own wrapper and its own names, and answers the same."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    network, system = nano.system.network, nano.system
    config = LoraConfig(r=2, lora_alpha=4, target_modules=lora.linear_layers(network))
    theirs = get_peft_model(copy.deepcopy(network), config)
    found = set_peft_model_state_dict(theirs, load_file(file))
    assert not found.unexpected_keys
    assert not [name for name in found.missing_keys if "lora_" in name]
    ours = lora.adapted(network, [(lora.lora_of(file.read_bytes(), "it"), 1.0)])
    one, other, bare = (answers(n, system) for n in (theirs.base_model.model, ours, network))
    for name in bare:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5)
        assert (other[name] - bare[name]).abs().max() > 0.01


def test_weights_add_up_and_the_network_is_shared_and_untouched(nano, file):
    network, system = nano.system.network, nano.system
    before = {k: v.clone() for k, v in network.state_dict().items()}
    own = lora.lora_of(file.read_bytes(), "it")
    once, halves = (lora.adapted(network, [(own, w)] * n) for w, n in ((1.0, 1), (0.5, 2)))
    one, two = answers(once, system), answers(halves, system)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
    held = {id(p) for p in network.parameters()}
    assert held <= {id(p) for p in once.parameters()}  # no weight is in memory twice
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)


def tokens():
    """A token transformer, and what asks it."""
    config = TokenTransformerConfig(
        codes=32, side=4, dim=32, depth=2, heads=2, condition="text", text_length=3, text_dim=8
    )
    ids, text = torch.arange(32).reshape(2, 16), Context(tokens=torch.ones(2, 3, 8))
    times = {"image": torch.tensor([0.3, 0.7]).double()}
    return TokenTransformer(config), lambda net: net({"image": ids}, times, {"text": text})


def of_system(system):
    """The network of a system, without a layer that is zero, and what asks it."""
    network = copy.deepcopy(system.network)
    for weights in network.parameters():
        if not weights.any():
            torch.nn.init.normal_(weights, std=0.05)
    return network, lambda net: answers(net, system)


BACKBONES = {
    "U-ViT": lambda nano: of_system(nano.system),
    "token transformer": lambda nano: tokens(),
    "multi-flow": lambda nano: of_system(load("mini-versatile", device="cpu").system),
    "U-Net": lambda nano: of_system(ediffi.build(ediffi.nano(("a", "red", "ring")))),
    "experts": lambda nano: of_system(ensemble(nano.system, named("edges-2"), Uniform())),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_every_network_takes_one(name, nano, tmp_path):
    """Alone it is trained, every layer that is asked learns, and all that is made moves."""
    network, ask = BACKBONES[name](nano)
    network.requires_grad_(True)
    layers, before = lora.linear_layers(network), ask(network)
    file = written(tmp_path / "it.safetensors", network, "")
    own = lora.lora_of(file.read_bytes(), "it")
    assert {*own.layers} == {*layers}
    after = ask(lora.adapted(network, [(own, 1.0)]))
    assert all((after[k] - before[k]).abs().max() > 1e-3 for k in before)
    lora.add(network, 2, 4.0, layers, 0)
    sum(made.square().sum() for made in ask(network).values()).backward()
    trained = {k: p for k, p in network.named_parameters() if p.requires_grad}
    assert all(lora.is_matrix(k) for k in trained) and len(trained) == 2 * len(layers)
    slopes = (p.grad for k, p in trained.items() if "lora_B" in k)
    learns = [slope for slope in slopes if slope is not None and slope.any()]
    assert len(learns) >= ASKED.get(name, 1.0) * len(layers)


def test_a_request_adds_it_in_every_direction(nano, file):
    plain, key = picture(nano), str(file)
    assert picture(nano, lora={key: 0.0}) == plain == picture(nano)
    strong = picture(nano, lora=file)
    assert strong != plain
    assert picture(nano, lora={key: 1.0}) == strong == picture(nano, lora=f"{key}:1")
    assert picture(nano, lora={key: 0.5}) not in (plain, strong)
    shown = nano.generate(kind="joint", steps=2, seed=5)[0].image
    texts = [
        nano.generate(kind="image-to-text", image=shown, steps=2, **given)[0].text
        for given in ({}, {"lora": {key: 4.0}})
    ]
    assert texts[0] != texts[1]
    assert picture(nano) == plain


def test_files_and_weights_as_people_give_them():
    given = ["a.safetensors", "runs/b:0.5", "c:-1"]
    request = GenerateRequest(kind="joint", lora=given)
    assert request.lora == {"a.safetensors": 1.0, "runs/b": 0.5, "c": -1.0}
    assert GenerateRequest(**json.loads(request.model_dump_json())) == request
    with pytest.raises(RequestError, match="less than or equal to 10"):
        GenerateRequest(kind="joint", lora="a:11")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a:0.7", "b", "a:0.3"], "'a' is given 2 times; give it once"),
        (["a:1e9"], "less than or equal to 10"),
        (["a:nan"], "greater than or equal to -10"),
    ],
)
def test_weights_that_cannot_be(given, said):
    with pytest.raises(RequestError, match=said):
        GenerateRequest(kind="joint", lora=given)
    assert GenerateRequest(kind="joint", lora=["a:5e-1", ""]).lora == {"a": 0.5, "": 1.0}


def test_of_another_model_it_is_refused_in_one_line(nano, file, tmp_path):
    other = written(tmp_path / "other.safetensors", nano.system.network, "0123456789ab")
    with pytest.raises(lora.LoRAError, match=r"is a LoRA of nano \(0123456789ab\), and this model"):
        picture(nano, lora=other)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(lora.LoRAError, match="damaged or truncated"):
        picture(nano, lora=torn)
    torn.write_text("no LoRA")
    with pytest.raises(lora.LoRAError, match="give the lora.safetensors of a training"):
        picture(nano, lora=torn)
    with pytest.raises(RequestError, match="there is no LoRA at"):
        picture(nano, lora=tmp_path / "nowhere")


def test_a_picture_made_with_it_is_made_again(run, file, tmp_path):
    words = ("generate", "image", "--text", PROMPT, "--model", "nano", "--steps", 2)
    assert run(*words, "--lora", f"{file}:0.8")[0] == 0
    own = tmp_path / "moved.safetensors"
    own.write_bytes(file.read_bytes())
    code, out, _ = run("replay", "out/00000.png", "--lora", own)
    assert (code, "bit for bit" in out) == (0, True)
    own.write_bytes(file.read_bytes()[:-1] + b"x")
    code, _, err = run("replay", "out/00000.png", "--lora", own)
    assert code == 2 and "is not the LoRA that it was made with any more" in err
    own.unlink()
    code, _, err = run("replay", "out/00000.png", "--lora", own)
    assert code == 2 and "is gone; give --lora PATH" in err


# -- training -----------------------------------------------------------------------------------

TAUGHT = dict(
    init="nano", lora=2, cache=32, batch=8, steps=4, log_every=1, precision="fp32", device="cpu"
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Trainings of a LoRA: `whole` of 4 steps, and `two`, which others go on."""
    out = tmp_path_factory.mktemp("taught")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "COUNT", 1)
        train("nano", **TAUGHT, out=str(out / "whole"))
    train("nano", **{**TAUGHT, "steps": 2, "cooldown": 0}, before_after=False, out=str(out / "two"))
    return out


def test_only_the_lora_is_trained_kept_and_exported(taught, nano):
    state = load_file(taught / "whole" / "state.safetensors")
    names = [k for k in state if k.startswith(("learner.", "ema."))]
    assert names and all(lora.is_matrix(name) for name in names)
    moved = [k for k in state if k.startswith("ema.") and "lora_B" in k and state[k].any()]
    assert len(moved) == len(lora.linear_layers(nano.system.network))
    made = lora.lora_of((taught / "whole" / "lora.safetensors").read_bytes(), "it")
    facts = made.facts.model_dump()
    assert {
        "base": "nano",
        "base_hash": nano.hash,
        "rank": 2,
        "alpha": 2.0,
    }.items() <= facts.items()
    assert {"data": "shapes", "steps": 4, "samples": 32}.items() <= facts.items()
    assert load("nano").hash == nano.hash
    assert not (taught / "whole" / "model").exists()


def test_it_ends_with_samples_before_and_after(taught):
    from PIL import Image

    with Image.open(taught / "whole" / "before-after.png") as sheet:
        assert sheet.width > 200 and sheet.height > 500  # a row a task, and two columns
    assert not (taught / "two" / "before-after.png").exists()


def test_interrupted_it_ends_as_uninterrupted(taught):
    train("nano", **TAUGHT, cooldown=0, before_after=False, out=str(taught / "two"))
    train("nano", **TAUGHT, cooldown=0, before_after=False, out=str(taught / "four"))
    one, other = (load_file(taught / n / "state.safetensors") for n in ("two", "four"))
    assert metadata_of(taught / "two" / "state.safetensors")["step"] == 4
    assert all(torch.equal(one[k], other[k]) for k in one.keys() - {"sha256"})


def test_the_folder_of_its_training_is_a_lora(taught, nano):
    assert picture(nano, lora=taught / "whole") != picture(nano)
    with pytest.raises(library.ModelError, match="holds a LoRA; give --model nano --lora"):
        load(taught / "whole")


def test_some_layers_alone(nano):
    network = nano.system.network
    assert {n.rpartition(".")[2] for n in lora.linear_layers(network, ["attn.qkv"])} == {"qkv"}
    with pytest.raises(lora.LoRAError, match="no linear layer whose name has nowhere"):
        lora.linear_layers(network, ["nowhere"])


@pytest.mark.parametrize(
    ("preset", "settings", "said"),
    [
        ("nano", {"lora": 4}, "a LoRA is of a model; give that as init"),
        ("classifier", {"lora": 4}, "a LoRA is of a model; give that as init"),
        ("nano", {"lora": 4, "init": "nano", "shard": "true"}, "shard is for trainings of all"),
        ("nano", {"lora_alpha": 4}, "lora_alpha=4.0 has no effect on a training without lora"),
    ],
)
def test_what_it_cannot_be_taught_on(preset, settings, said):
    with pytest.raises(ConfigError, match=said):
        resolve(preset, settings)


# -- merging ------------------------------------------------------------------------------------


def shown(model, **settings) -> torch.Tensor:
    (result,) = model.generate(text=PROMPT, kind="text-to-image", steps=4, **settings)
    return torch.frombuffer(bytearray(result.image.tobytes()), dtype=torch.uint8).int()


def test_a_merged_model_draws_as_its_loras_do(nano, file, run, tmp_path):
    other = written(tmp_path / "other" / "lora.safetensors", nano.system.network, nano.hash, 1)
    words = ("convert", "nano", "--lora", f"{file}:0.8", "--lora", f"{other.parent}:-0.5")
    code, out, _ = run(*words, "--out", "merged")
    assert (code, out) == (0, f"merged: nano with {file} times 0.8, {other.parent} times -0.5\n")
    made = load(tmp_path / "merged")
    loras = {str(file): 0.8, str(other.parent): -0.5}
    beside = lora.adapted(
        nano.system.network, [(lora.lora_of(read_lora(f), f), w) for f, w in loras.items()]
    )
    one, two = answers(beside, nano.system), answers(made.system.network, made.system)
    assert all((one[name] - two[name]).abs().max() < 1e-4 for name in one)
    gap = (shown(made) - shown(nano, lora=loras)).abs()
    assert gap.max() <= 2 < (shown(made) - shown(nano)).abs().max()
    rows = [(row["lora"], row["weight"]) for row in made.metadata["merged"]]
    assert rows == [(file.resolve().parent.name, 0.8), ("other", -0.5)]
    card = Path("merged/README.md").read_text()
    assert "the LoRA `other`, times -0.5" in card and "Licence: not stated" in card
    assert "scores" not in made.metadata and load("nano").hash == nano.hash
    with pytest.raises(lora.LoRAError, match="is a LoRA of nano .*, and this model is merged"):
        picture(made, lora=file)


def test_of_experts_all_are_merged_and_none_is_rounded(nano, tmp_path):
    system = ensemble(nano.system, named("edges-2"), Uniform())
    base = replace(library.load("nano"), system=system, hash="0123456789ab")
    own = written(tmp_path / "lora.safetensors", system.network, base.hash)
    loras = [(lora.lora_of(own.read_bytes(), str(own)), 1.0)]
    library.save_merged(tmp_path / "merged", base, loras)
    made = library.load(tmp_path / "merged").system
    one, two = answers(lora.adapted(system.network, loras), system), answers(made.network, made)
    assert all((one[name] - two[name]).abs().max() < 1e-4 for name in one)


def test_what_cannot_be_merged_is_told(run, file):
    code, _, err = run("convert", "mini", "--lora", file, "--out", "merged")
    assert code == 2 and "is a LoRA of nano" in err and not Path("merged").exists()
    code, _, err = run("convert", "nano", "--lora", file, "--to", "authors", "--out", "merged")
    assert code == 2 and "merge first" in err
