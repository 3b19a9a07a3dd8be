"""Where modules lie: which tier is chosen for how much memory, and that none changes a result."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

from everyway import library, placement
from everyway.codecs.image_vae import ImageVAE
from everyway.generate import load
from everyway.placement import CPU, Placement, memory_for
from everyway.system import System

GPU = torch.device("cuda")
GB = 10**9
CODECS = {"image": 0.17 * GB, "image_embed": 0.18 * GB, "text": 0.5 * GB}  # of UniDiffuser in bf16


@pytest.mark.parametrize(
    ("free", "chosen"),
    [(24, "full"), (3.6, "full"), (3.5, "offload"), (3.2, "offload"), (3.1, "low"), (1, "low")],
)
def test_the_first_that_fits_is_chosen(free, chosen):
    """Network 1.9, codecs 0.85 together and 0.5 at most, 0.8 to work in: 3.55 and 3.2 GB."""
    assert memory_for(free * GB, 1.9 * GB, CODECS, 0.8 * GB) == chosen


def test_a_network_without_codecs_fits_or_does_not():
    assert memory_for(2 * GB, 1 * GB, {}, GB) == "full"
    assert memory_for(2 * GB - 1, 1 * GB, {}, GB) == "low"


@pytest.mark.parametrize(("free", "chosen"), [(10**9, "full"), (10**6, "low")])
def test_auto_asks_the_device_and_an_override_does_not(monkeypatch, free, chosen):
    monkeypatch.setattr(library, "free_memory", lambda device: free)
    made = load("nano", "cpu")
    assert made.system.placement.memory == chosen
    assert made.note.endswith(f"({free / 1e9:.1f} GB free): --memory {chosen}")
    assert load("nano", "cpu", memory="offload").system.placement.memory == "offload"


class Part(nn.Module):
    """Says where it is sent, for want of such a device."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def to(self, device):
        self.log.append(f"{self.name} to {torch.device(device).type}")
        return self


@pytest.mark.parametrize(
    ("memory", "network", "codec"),
    [
        ("full", [], []),
        ("offload", ["network to cuda"], ["codec to cuda", "codec to cpu"]),
        ("low", ["network to cuda"], ["network to cpu", "codec to cuda", "codec to cpu"]),
    ],
)
def test_what_goes_where(memory, network, codec):
    log: list[str] = []
    parts = {name: Part(name, log) for name in ("network", "codec")}
    placed = Placement(device=GPU, memory=memory)
    for name, expected in (("network", network), ("codec", codec)):
        log.clear()
        with placed.on_device(parts[name], parts["network"]):
            assert "codec to cpu" not in log
        assert log == expected
    with pytest.raises(KeyError), placed.on_device(parts["codec"], parts["network"]):
        raise KeyError
    assert log[-len(codec) :] == codec  # it leaves also when it fails


@pytest.mark.parametrize("memory", ["offload", "low"])
def test_threads_wait_for_their_turn(memory):
    """While a module is on the device no other thread moves it away, nor another one beside it."""
    where: dict[str, str] = {}
    log: list[bool] = []

    class Moving(Part):
        def to(self, device):
            where[self.name] = torch.device(device).type
            return self

    parts = [Moving(name, []) for name in ("network", "image", "text")]
    placed = Placement(device=GPU, memory=memory)

    def work(part: nn.Module) -> None:
        for _ in range(20):
            with placed.on_device(part, parts[0]):
                time.sleep(1e-4)
                there = {name for name, kind in where.items() if kind == "cuda"}
                beside = there - {part.name} - ({"network"} if memory == "offload" else set())
                log.append(where[part.name] == "cuda" and not beside)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, parts * 2))
    assert len(log) == 120 and all(log)


def test_threads_share_a_model():
    """Each with requests of its own, which come out as they do alone."""
    model, texts = load("nano", "cpu"), ["a red ring top on blue", "a green square right on black"]
    asked = [
        {"kind": "text-to-image", "text": texts[k % 2], "seed": k, "steps": 2} for k in range(6)
    ]

    def drawn(settings) -> bytes:
        return model.generate(**settings)[0].image.tobytes()

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(drawn, asked))
    assert together == [drawn(settings) for settings in asked]


def test_a_placement_is_copied():
    assert copy.deepcopy(Placement(device=GPU, memory="low")).memory == "low"


def test_weights_that_were_moved_while_sampling_are_ordinary_ones():
    part = nn.Linear(2, 2)
    placed = Placement(device=torch.device("meta"), memory="low")
    with torch.inference_mode(), placed.on_device(part, part):
        pass
    assert part.weight.is_meta and not part.weight.is_inference()


def test_homes():
    homes = {
        memory: [Placement(device=GPU, memory=memory).home(n) for n in ("network", "image")]
        for memory in ("full", "offload", "low")
    }
    assert homes == {"full": [GPU, GPU], "offload": [GPU, CPU], "low": [CPU, CPU]}


def test_no_tier_changes_a_result(tmp_path):
    made = []
    for memory in ("full", "offload", "low"):
        model = load("mini", "cpu", memory=memory)
        (drawn,) = model.generate(kind="text-to-image", text="a fox on blue", steps=2)
        drawn.image.save(tmp_path / "a.png")
        (read,) = model.generate(kind="image-to-text", images=(str(tmp_path / "a.png"),), steps=2)
        made.append((drawn.image.tobytes(), read.text))
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("kind", ["text-to-image", "image-to-text", "joint", "image-to-image"])
def test_states_are_where_the_network_is(monkeypatch, tmp_path, kind):
    """On a device whose tensors cannot be mixed with others, nor looked at."""
    seen = []

    def decode(self, states):
        seen.extend(state.device.type for state in states.values())
        return {"image": torch.zeros(1, 3, 2, 2), "text": [""]}

    monkeypatch.setattr(System, "decode", decode)
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    picture = (str(tmp_path / "red.png"),)
    given = {
        "text-to-image": {"text": "a red ring top on blue", "given_noise": {"text": 0.5}},
        "image-to-text": {"images": picture},
        "image-to-image": {"images": picture, "strength": 0.5},
    }
    monkeypatch.setattr(library, "_device", torch.device)  # which refuses one without numbers
    model = load("nano", "meta", "fp32")
    assert model.system.device.type == "meta"
    model.generate(kind=kind, steps=3, guidance=1.0, **given.get(kind, {}))
    assert set(seen) == {"meta"}


def test_low_decodes_row_by_row():
    system, codec = load("nano", "cpu").system, ImageVAE()
    image = replace(system.modalities["image"], codec=codec)
    assert not codec.autoencoder.use_slicing
    library._spare(replace(system, modalities={**system.modalities, "image": image}))
    assert codec.autoencoder.use_slicing and codec.autoencoder.use_tiling


def test_memory_is_read_where_the_system_tells(monkeypatch, tmp_path):
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  2048 kB\nMemAvailable: 3 kB\n")
    assert placement._line_of(str(tmp_path / "status"), "VmHWM") == 2048 * 1024
    assert placement._line_of(str(tmp_path / "status"), "VmSwap") is None
    monkeypatch.setattr(placement, "_line_of", lambda path, name: None)
    assert placement.peak_memory(CPU) is None and placement.free_memory(CPU) > 10**18
