"""U-ViT and UniDiffuser give the authors' numbers on formula-filled weights."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from everyway.contracts import Context, Query
from everyway.guidance import combine, guided
from everyway.layouts import uvit as uvit_layouts
from everyway.nets.uvit import UViT
from everyway.systems import uvit
from everyway.tasks import TEXT_TO_IMAGE, times_for
from formula import FOLDER, compare, fill, filled, golden, normal
from guided import CLOCKS, MODES, NAMES, NOISES, SHAPES, unidiffuser_of

UVIT = ["cond", "t2i", "t2i_mlptime_noconv", "uncond"] + [
    f"uncond_{kind}"
    for kind in (
        "depth5", "mlptime", "noconv", "noskip", "noskip_noconv_mlptime", "patch4", "qkvbias"
    )
]  # fmt: skip
UNIDIFFUSER = ["v0", "v0_img12", "v0_img4", "v0_mlptime", "v1", "v1_mlptime_qkvbias"]
OURS = {"img": "image", "clip_img": "image_embed", "text": "text"}


@pytest.mark.parametrize(
    "key, shape, first, total",
    [
        ("pos_embed", (1, 257, 512), -0.0372169, -70.244799),
        ("mid_block.attn.qkv.weight", (1536, 512), -0.0585489, -42.680335),
        ("norm.weight", (512,), 0.9743692, 511.114115),
        ("final_layer.weight", (3, 3, 3, 3), 0.0856371, 1.054173),
        ("input:sampler:x_T", (2, 4, 4, 4), 0.7511100, None),
    ],
)
def test_fingerprint_of_the_filler(key, shape, first, total):
    values = normal(key, shape) if key.startswith("input:") else filled(key, shape)
    assert float(values.flatten()[0]) == pytest.approx(first, abs=1e-6)
    if total is not None:  # where randn is not vectorised, every value has a rounding of its own
        scalar = torch.backends.cpu.get_cpu_capability() == "DEFAULT"
        bound = 1e-5 + scalar * 2e-9 * values.numel()
        assert float(values.double().sum()) == pytest.approx(total, abs=bound)


def uvit_of(config: dict) -> UViT:
    options = dict(
        size=config["img_size"],
        patch=config["patch_size"],
        channels=config["in_chans"],
        dim=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config["qkv_bias"],
        time_mlp=config["mlp_time_embed"],
        conv=config["conv"],
        skip="concat" if config["skip"] else "none",
    )
    if config.get("num_classes", -1) > 0:
        options["classes"] = config["num_classes"]
    if "clip_dim" in config:
        options["context"] = (config["num_clip_token"], config["clip_dim"])
    return fill(UViT(uvit.network(**options)), uvit_layouts.KEYMAP)


def time(taus) -> torch.Tensor:
    return torch.tensor(taus, dtype=torch.float64) / 1000


def state(entry: dict) -> torch.Tensor:
    return normal(entry["key"], tuple(entry["shape"]))


@contextmanager
def stages(network: UViT, arrays: dict):
    """Every block's output against the authors': statistics, and the ends of the first sample."""
    found = []

    def record(block, inputs, x: torch.Tensor) -> None:
        whole = x.double()
        metadata = torch.stack([whole.mean(), whole.std(correction=0), whole.abs().max()])
        found.append(torch.cat([metadata, whole[0, 0, :4], whole[0, -1, :4]]))

    blocks = [*network.ins, network.mid, *network.outs, network.norm]
    handles = [block.register_forward_hook(record) for block in blocks]
    yield
    for handle in handles:
        handle.remove()
    expected = torch.from_numpy(arrays["stage"]).double()
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=1e-5)


def uvit_answer(case: str, folder=FOLDER):
    meta, arrays = golden(case, folder)
    inputs, contexts = meta["inputs"], {}
    if "y" in inputs:
        contexts["label"] = Context(tokens=torch.tensor(inputs["y"]))
    if "context" in inputs:
        contexts["text"] = Context(tokens=state(inputs["context"]))
    network = uvit_of(meta["config"])
    with torch.inference_mode(), stages(network, arrays):
        states = {"image": state(inputs["x"])}
        out = network(states, {"image": time(inputs["timesteps"])}, contexts)
    return meta, arrays, network, out["image"]


@pytest.mark.parametrize("case", UVIT)
def test_uvit(case):
    meta, arrays, network, out = uvit_answer(f"tiny_uvit_{case}")
    assert sum(p.numel() for p in network.parameters()) == meta["params"]
    compare(arrays, "eps", out, meta["outputs"]["eps"]["stride"], atol=1e-5)


@pytest.mark.parametrize("case", UNIDIFFUSER)
def test_unidiffuser(case):
    meta, arrays = golden(f"tiny_unidiffuser_{case}")
    inputs = meta["inputs"]
    network = unidiffuser_of(meta["config"], version=int(case[1]))
    assert sum(p.numel() for p in network.parameters()) == meta["params"]
    contexts = {}
    if "data_type" in inputs:
        contexts["data_type"] = Context(tokens=torch.tensor(inputs["data_type"]))
    with torch.inference_mode(), stages(network, arrays):
        out = network(
            {ours: state(inputs[theirs]) for theirs, ours in OURS.items()},
            {"image": time(inputs["t_img"]), "text": time(inputs["t_text"])},
            contexts,
        )
    for theirs, ours in OURS.items():
        compare(arrays, theirs, out[ours], meta["outputs"][theirs]["stride"], atol=1e-5)


@pytest.fixture(scope="module", params=[0, 1])
def guided_case(request):
    meta, arrays = golden(f"guided_unidiffuser_v{request.param}")
    tiny, _ = golden(f"tiny_unidiffuser_v{request.param}")
    return meta, arrays, unidiffuser_of(tiny["config"], request.param)


def test_guided_noise_of_every_mode(guided_case):
    """The authors' scale s is our w = s + 1; noise estimates combine as clean ones do."""
    meta, arrays, network = guided_case
    tested = 0
    for case, metadata in meta["cases"].items():
        mode = case.split("_s")[0]
        if mode not in MODES:
            continue  # t2i_empty has its own test below
        task, data_type = MODES[mode], metadata["calls"][0].get("data_type")
        contexts = {"data_type": Context(tokens=torch.tensor(data_type))} if data_type else {}

        def raw(queries, contexts=contexts):
            return [network(q.states, q.times, contexts, keep=q.keep) for q in queries]

        def absent(name, shape):
            return normal(f"input:guided:{NOISES[name]}", SHAPES[name])

        ask = guided(raw, task, CLOCKS, 1.0 + metadata["scale"], absent)
        states = {k: normal(f"input:guided:{n}", SHAPES[k]) for k, n in NAMES.items()}
        keep = tuple(k for k, clock in CLOCKS.items() if clock in task.generated)
        states |= {k: absent(k, v) for k, v in SHAPES.items() if _absent(task, k)}
        times = times_for(task, torch.full((2,), 0.4375, dtype=torch.float64))
        with torch.inference_mode():
            (out,) = ask([Query(states=states, times=times, keep=keep)])
        found = torch.cat([out[k].flatten(1) for k in keep], 1)
        compare(arrays, case, found, meta["outputs"][case]["stride"], atol=6e-5)
        tested += 1
    assert tested >= 5


def _absent(task, name: str) -> bool:
    return task.roles[CLOCKS[name]].kind == "absent"


def test_guidance_by_an_empty_prompt(guided_case):
    """The other published form: the null branch reads an encoded empty prompt at time 0."""
    meta, arrays, network = guided_case
    shape = tuple(meta["inputs"]["empty_context"]["shape"])
    empty = torch.nn.functional.linear(
        normal("input:guided:empty_context", shape),
        filled("encode_prefix.weight", (16, 24)),
        filled("encode_prefix.bias", (16,)),
    ).expand(2, -1, -1)
    states = {k: normal(f"input:guided:{n}", SHAPES[k]) for k, n in NAMES.items()}
    times = times_for(TEXT_TO_IMAGE, torch.full((2,), 0.4375, dtype=torch.float64))
    keep = ("image", "image_embed")
    for case in (c for c in meta["cases"] if c.startswith("t2i_empty")):
        data_type = meta["cases"][case]["calls"][0].get("data_type")
        contexts = {"data_type": Context(tokens=torch.tensor(data_type))} if data_type else {}
        with torch.inference_mode():
            conditioning = network(states, times, contexts, keep=keep)
            null = network(states | {"text": empty}, times, contexts, keep=keep)
        out = combine(conditioning, null, 1.0 + meta["cases"][case]["scale"])
        found = torch.cat([out[k].flatten(1) for k in keep], 1)
        compare(arrays, case, found, meta["outputs"][case]["stride"], atol=6e-5)


def test_kept_outputs_are_the_same_numbers():
    meta, _ = golden("tiny_unidiffuser_v1")
    network = unidiffuser_of(meta["config"], 1)
    states = {ours: state(meta["inputs"][theirs]) for theirs, ours in OURS.items()}
    times = {"image": time([300.0, 2.5]), "text": time([0.0, 900.0])}
    with torch.inference_mode():
        every = network(states, times)
        text = network(states, times, keep=("text",))
    assert list(text) == ["text"] and torch.equal(text["text"], every["text"])


def test_checkpointing_gives_the_same_gradients():
    meta, _ = golden("tiny_uvit_uncond")
    grads = []
    for gradient_checkpointing in (False, True):
        network = uvit_of(meta["config"])
        network.gradient_checkpointing = gradient_checkpointing
        states = {"image": state(meta["inputs"]["x"])}
        network(states, {"image": time([10.0, 500.0])})["image"].square().mean().backward()
        grads.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
