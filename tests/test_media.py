"""Raw data of any name goes in, is made, shown and saved, by its medium."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from everyway.apps.files import Folder
from everyway.contracts import Context
from everyway.generate import Model, Preview, Result
from everyway.media import MEDIA, medium
from everyway.process.gaussian import X0, GaussianProcess
from everyway.process.schedules import CosineVP
from everyway.request import GenerateRequest, RequestError
from everyway.system import Condition, Modality, Null, System
from everyway.tasks import GENERATE, GIVEN, Task

SIDE = 8


class Mean(nn.Module):
    """Estimates every state as what the contexts and given states add up to."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, states, times, contexts, keep=()):
        conditioning = sum(c.tokens.mean((1, 2)) for c in contexts.values())
        if "wave" not in keep and "wave" in states:
            conditioning = conditioning + states["wave"].flatten(1).mean(1)
        ones = {name: torch.ones_like(states[name]) for name in keep}
        return {
            k: self.one * conditioning.reshape(-1, *[1] * (v.ndim - 1)) * v for k, v in ones.items()
        }


class Plain:
    """A state that is its raw data."""

    def encode(self, raw: Tensor) -> Tensor:
        return raw

    def decode(self, state: Tensor) -> Tensor:
        return state


class Letters:
    """The number of letters, in tenths."""

    def encode(self, raw: list[str]) -> Tensor:
        return torch.tensor([len(text) / 10 for text in raw]).reshape(-1, 1, 1)


@pytest.fixture(scope="module")
def toy() -> Model:
    """Depth maps, waves and marks under two texts: nothing that has a name of its own here."""
    process = GaussianProcess(schedule=CosineVP(), parameterisation=X0)
    shapes = {"depth": (3, SIDE, SIDE), "wave": (5,), "marks": (2, 2)}
    null = {"none": Null(make=lambda: Context(tokens=torch.zeros(1, 1, 1)))}
    conditioning = {"style": 1.0, "subject": 1.0}
    every = Task(name="all", roles=dict.fromkeys(shapes, GENERATE), contexts=conditioning)
    drawn = {"depth": GENERATE, "wave": GIVEN, "marks": GENERATE}
    system = System(
        name="toy",
        network=Mean(),
        modalities={
            name: Modality(name=name, clock=name, shape=shape, process=process, codec=Plain())
            for name, shape in shapes.items()
        },
        conditions={
            name: Condition(name=name, source=name, codec=Letters(), nulls=null)
            for name in conditioning
        },
        tasks={"all": every, "wave-to-depth": Task(name="wave-to-depth", roles=drawn)},
        media={"depth": "image", "style": "text", "subject": "text"},
    )
    return Model(name="toy", hash="0", system=system, metadata={"image_size": SIDE})


TEXTS = {"style": "ink", "subject": "fox"}


def test_all_outputs_are_there_by_name(toy, tmp_path):
    events = list(toy.run(_jobs(toy, kind="all", given=TEXTS)))
    result = events[-1]
    assert isinstance(result, Result) and result.outputs.keys() == {"depth", "wave", "marks"}
    assert isinstance(result.outputs["depth"], Image.Image)
    np.testing.assert_allclose(result.outputs["wave"], np.full(5, 0.6), atol=2e-3)
    assert result.image is None and result.text is None
    frames = [toy.frame(e.progress)[0] for e in events if isinstance(e, Preview)]
    assert all(frame.keys() == result.outputs.keys() for frame in frames)
    result.save(tmp_path / "depth.png")
    result.save(tmp_path / "wave.npy")
    result.save(tmp_path / "a.marks.npy")
    assert np.load(tmp_path / "a.marks.npy").shape == (2, 2)
    with Image.open(tmp_path / "depth.png") as saved:
        assert saved.tobytes() == result.outputs["depth"].tobytes() and "everyway" in saved.text
    assert np.array_equal(np.load(tmp_path / "wave.npy"), result.outputs["wave"])


def test_a_folder_keeps_every_output(toy, tmp_path):
    """Beside a picture that is there already, and with their names in the line."""
    (tmp_path / "00000.wave.npy").write_bytes(b"mine")
    asked = toy.settled(GenerateRequest(kind="all", given=TEXTS, steps=2, guidance=1.0))
    folder = Folder(tmp_path)
    rows = [folder.save(result, asked) for result in toy.generate(asked) + toy.generate(asked)]
    assert [rows[0][name] for name in ("depth", "wave", "marks")] == [
        "00001.depth.png", "00001.wave.npy", "00001.marks.npy"
    ]  # fmt: skip
    assert rows[1]["wave"] == "00002.wave.npy" and (tmp_path / "00002.depth.png").is_file()
    assert (tmp_path / "00000.wave.npy").read_bytes() == b"mine"


def _jobs(model: Model, **settings):
    from everyway.job import jobs

    return jobs({"steps": 5, "guidance": 1.0, **settings}, model.system)


def test_numbers_are_given_as_a_file_or_an_array(toy, tmp_path):
    wave = np.linspace(0, 1, 5, dtype=np.float32)
    np.save(tmp_path / "wave.npy", wave)
    held = io.BytesIO()
    np.save(held, wave)
    forms = [str(tmp_path / "wave.npy"), tmp_path / "wave.npy", held.getvalue(), wave]
    forms.append(torch.from_numpy(wave))
    made = [
        toy.generate(kind="wave-to-depth", given={"wave": form}, steps=5, guidance=1.0)[0].outputs
        for form in forms
    ]
    assert len({m["marks"].tobytes() for m in made}) == 1
    np.testing.assert_allclose(made[0]["marks"], np.full((2, 2), 0.5), atol=2e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"given": {"style": "ink"}}, "all needs subject; give it"),
        ({"given": TEXTS | {"text": "a"}}, "input 'text' is unknown; .*depth"),
        ({"given": TEXTS | {"style": " "}}, "the text is empty"),
        ({"given": TEXTS | {"style": 3}}, "style is 3; give a text"),
        ({"kind": "al", "given": TEXTS}, "task 'al' is unknown; did you mean 'all'?"),
        ({"kind": "wave-to-depth", "given": {"wave": b"no"}}, "wave holds no array of numbers"),
        ({"kind": "wave-to-depth", "given": {"wave": "none.npy"}}, "no file at 'none.npy'"),
    ],
)
def test_what_an_input_cannot_be_is_told(toy, settings, said):
    with pytest.raises(RequestError, match=said) as caught:
        toy.generate(**{"kind": "all", "steps": 2, **settings})
    assert "\n" not in str(caught.value)


def test_every_medium_there_and_back(tmp_path):
    """What is read is what a codec's answer shows, and is previewed."""
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    values = {"image": picture, "text": "여우", "label": 3, "numbers": np.ones((2, 3), np.float32)}
    assert values.keys() == MEDIA.keys()
    row = {"seed": 0, "facts": {"model_hash": "", "model": ""}}
    row["request"] = dict.fromkeys(("text", "steps", "sampler", "guidance"), "") | {"kind": ""}
    for name, value in values.items():
        kind = medium(name, {})
        read = kind.read(value, name)
        raw = kind.tensor([read], 8)[0]
        shown = kind.show(raw)
        assert np.array_equal(np.asarray(shown), np.asarray(value)), name
        assert isinstance(kind.preview(shown), (str, Image.Image))
        path = tmp_path / f"{name}{kind.suffix}"
        kind.write(path, shown, row)
        if kind.in_file:
            again = kind.read(path.read_bytes(), name)
            assert np.array_equal(np.asarray(again), np.asarray(value))
    assert medium("sound", {}) is MEDIA["numbers"] and medium("a", {"a": "text"}) is MEDIA["text"]


@pytest.mark.parametrize(
    ("name", "given"),
    [("label", -1), ("label", True), ("label", ""), ("label", 1.5), ("text", 1), ("image", 1)],
)
def test_what_is_none_of_a_medium_is_told(name, given):
    with pytest.raises(RequestError):
        MEDIA[name].read(given, name)
