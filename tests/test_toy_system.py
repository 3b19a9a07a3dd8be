"""A system of three modalities and two conditions of one kind, in one file: trained, saved, loaded,
and all that it makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import toy_system
from everyway import library, objective
from everyway.contracts import flat
from everyway.generate import load
from everyway.guidance import guided
from everyway.process.times import uniform_times
from everyway.sampling.loop import absent_states, final, sample
from everyway.sampling.noise import PerSampleNoise, StreamNoise
from everyway.systems import SYSTEMS
from everyway.tasks import FIRST, LAST

KINDS = [(subject, style) for subject in ("red", "blue") for style in ("soft", "loud")]
LOOKS = {"red": (1.0, -1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}
SOUNDS = {"soft": [0, 0, 0, 0], "loud": [3, 3, 3, 3]}


def raw(kinds):
    """What the data holds: the picture shows the subject, the sound the style, the text both."""
    pictures = [torch.tensor(LOOKS[subject])[:, None, None].expand(3, 4, 4) for subject, _ in kinds]
    return {
        "image": torch.stack(pictures),
        "text": [" ".join(kind) for kind in kinds],
        "sound": [SOUNDS[style] for _, style in kinds],
        "subject": [subject for subject, _ in kinds],
        "style": [style for _, style in kinds],
    }


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    system = toy_system.build({"dim": 48})
    optimiser = torch.optim.AdamW(system.network.parameters(), lr=3e-3)
    for step in range(350):
        noise = StreamNoise(torch.Generator().manual_seed(step))
        chosen = torch.randint(4, (48,), generator=noise.generator).tolist()
        data = raw([KINDS[k] for k in chosen])
        x0 = system.encode({k: v for k, v in data.items() if k in system.modalities})
        told = system.contexts(data)
        contexts = objective.contexts_of(system, x0 | flat(told), noise, drop=0.2, samples=48)
        times = uniform_times(noise, toy_system.ALL, 48)
        loss = objective.total(system, objective.losses(system, x0, times, noise, contexts))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return system


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """Saved as a model folder and loaded again."""
    folder = tmp_path_factory.mktemp("toy") / "model"
    held, SYSTEMS["toy"] = dict(SYSTEMS), "toy_system"
    try:
        library.save(folder, trained, {"image_size": 4})
        yield load(str(folder), device="cpu")
    finally:
        SYSTEMS.clear()
        SYSTEMS.update(held)


def draw(system, task, given, batch, paths=None, weights=None):
    """What a task makes of raw data, decoded."""
    task = system.tasks[task].along(paths or {})
    noise, nulls = PerSampleNoise([*range(batch)]), system.null_contexts(batch)
    told = system.contexts(given)
    last = final(
        sample(
            guided(
                system.denoiser(),
                task,
                system.clocks,
                system.guidance,
                absent_states(system.processes, noise),
                null_contexts=nulls,
                processes=system.processes,
            ),
            processes=system.processes,
            clocks=system.clocks,
            task=task,
            states=system.encode({k: v for k, v in given.items() if k in task.given}),
            shapes=system.shapes(batch),
            noise=noise,
            steps=system.steps,
            contexts=system.weighed(told, nulls, weights or task.contexts),
        )
    )
    return system.decode(last.states)


def right(made, kinds, share=0.85):
    """Whether most of what was made is of its kind."""
    wanted = raw(kinds)
    if "image" in made:
        gaps = (made["image"] - wanted["image"]).abs().flatten(1).mean(1)
        assert float((gaps < 0.5).double().mean()) >= share, gaps
    for name in {"text", "sound"} & made.keys():
        same = [a == b for a, b in zip(made[name], wanted[name])]
        assert sum(same) >= share * len(kinds), (name, made[name])


def test_it_is_loaded_as_it_was(trained, model):
    for name, value in trained.network.state_dict().items():
        assert torch.equal(value, model.system.network.state_dict()[name])
    assert set(model.system.components) == {"network"}


def test_both_conditions_bear_on_everything_that_is_made(model):
    kinds = KINDS * 4
    given = {k: v for k, v in raw(kinds).items() if k in ("subject", "style")}
    made = draw(model.system, "everything", given, len(kinds))
    assert set(made) == {"image", "text", "sound"}
    right(made, kinds)


def test_one_of_the_conditions_alone(model):
    """The other one is its null: the subject is as asked, the style is not."""
    kinds = [("red", "soft")] * 16
    given = {"subject": ["red"] * 16}
    made = draw(model.system, "everything", given, 16, weights={"subject": 1.0})
    right({"image": made["image"]}, kinds)
    assert len({tuple(notes) for notes in made["sound"]}) > 1


def test_a_task_may_leave_clocks_out(model):
    """The network is shown the picture alone, and no text or sound."""
    made = draw(model.system, "image", {"subject": ["blue"] * 8}, 8)
    assert set(made) == {"image"} and made["image"].shape == (8, 3, 4, 4)


def test_what_is_given_is_named(model):
    kinds = KINDS * 4
    made = draw(model.system, "name", {"image": raw(kinds)["image"]}, len(kinds))
    words = [text.split()[:1] for text in made["text"]]
    assert sum(w == [subject] for w, (subject, _) in zip(words, kinds)) >= 13


@pytest.mark.parametrize("paths", [{"text": FIRST, "image": LAST}, {"sound": LAST}], ids=str)
def test_one_modality_before_the_others(model, paths):
    """Without conditions what is made still belongs together."""
    made = draw(model.system, "freely", {}, 16, paths)
    shown = [
        "red" if picture[0].mean() > picture[2].mean() else "blue" for picture in made["image"]
    ]
    assert sum(text.startswith(look) for text, look in zip(made["text"], shown)) >= 13


# -- from the command line ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def everyway(tmp_path_factory):
    """Runs the command where a package has the toy system among its entry points."""
    folder = tmp_path_factory.mktemp("installed")
    package = folder / "toy-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[everyway.systems]\ntoy = toy_system\n")
    path = os.pathsep.join([str(folder), str(Path(__file__).parent), *sys.path])

    def call(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "everyway.apps.cli", *words],
            cwd=folder, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    call.folder = folder
    return call


def test_the_command_line_trains_it_lists_it_and_makes_all_that_it_makes(everyway):
    everyway("train", "toy", "--set", "sample_every=350", "--quiet")
    model = everyway.folder / "runs/toy/model"
    assert (everyway.folder / "runs/toy/samples/0000350.png").is_file()
    assert "tunes, of the system's own" in (model / "README.md").read_text()
    facts = json.loads(everyway("models", "runs/toy"))
    assert facts["tasks"]["everything"] == ["subject", "style"]
    assert facts["tasks"]["name"] == ["image"]
    told = ["--given", "subject=red", "--given", "style=loud", "--json", "-n", "8"]
    made = json.loads(everyway("generate", "everything", "--model", "runs/toy", *told))["results"]
    assert sum(row["text"] == "red loud" for row in made) >= 7
    tunes = [(everyway.folder / "out" / row["sound"]).read_text() for row in made]
    assert sum(tune == "3 3 3 3\n" for tune in tunes) >= 7
    first = str(everyway.folder / "out" / made[0]["image"])
    line = everyway("generate", "name", "--image", first, "--model", "runs/toy", "--out", "named")
    assert line.startswith("red ")
    assert "bit for bit" in everyway("replay", first)
    everyway("generate", "image", "--given", "subject=blue", "--model", "runs/toy", "--out", "blue")
