"""A system of three modalities and two conditions of one kind, in one file: trained, saved, loaded,
and all that it makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from everyway.apps import cli
from everyway.generate import load
from everyway.guidance import guided
from everyway.sampling.loop import absent_states, final, sample
from everyway.sampling.noise import PerSampleNoise
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
def trained(tmp_path_factory):
    """The run folder of its training, from the command line."""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SYSTEMS, "toy", "toy_system")
        words = ["train", "toy", "--out", str(folder), "--set", "sample_every=350", "--quiet"]
        assert cli.main(words) == 0
        yield folder


@pytest.fixture(scope="module")
def model(trained):
    return load(trained, device="cpu")


def draw(system, task, given, batch, paths=None, weights=None):
    """What a task makes of raw data, decoded."""
    task = system.tasks[task].along(paths or {})
    noise, nulls = PerSampleNoise([*range(batch)]), system.null_contexts(batch)
    conditioning = system.contexts(given)
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
            contexts=system.weighed(conditioning, nulls, weights or task.contexts),
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


def test_it_is_loaded_as_it_was_saved(model, tmp_path):
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", device="cpu")
    assert set(model.system.components) == {"network"} and again.hash == model.hash
    for name, value in model.system.network.state_dict().items():
        assert torch.equal(value, again.system.network.state_dict()[name])


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


def test_its_name_is_an_entry_point(tmp_path):
    package = tmp_path / "toy-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[everyway.systems]\ntoy = toy_system\n")
    code = "from everyway.systems import SYSTEMS; print(SYSTEMS['toy'])"
    path = os.pathsep.join([str(tmp_path), *sys.path])
    conditioning = {"env": os.environ | {"PYTHONPATH": path}, "capture_output": True, "text": True}
    assert subprocess.run([sys.executable, "-c", code], **conditioning).stdout == "toy_system\n"


def test_the_command_line_tells_of_it_and_makes_all_that_it_makes(trained, run, tmp_path):
    assert (trained / "samples/0000350.png").is_file()
    assert "tunes, of the system's own" in (trained / "model/README.md").read_text()
    tasks = json.loads(run("models", trained, "--json")[1])["tasks"]
    assert (tasks["everything"], tasks["name"]) == (["subject", "style"], ["image"])
    conditioning = ["--given", "subject=red", "--given", "style=loud", "--model", trained]
    code, out, err = run("generate", "everything", *conditioning, "-n", 8, "--json")
    made = json.loads(out)["results"]
    assert sum(row["text"] == "red loud" for row in made) >= 7
    tunes = [(tmp_path / "out" / row["sound"]).read_text() for row in made]
    assert sum(tune == "3 3 3 3\n" for tune in tunes) >= 7
    first = tmp_path / "out" / made[0]["image"]
    code, out, err = run("generate", "name", "--image", first, "--model", trained)
    assert code == 0 and out.startswith("red ")
    code, out, err = run("generate", "image", "--given", "subject=blue", "--model", trained)
    assert code == 0 and "out/00008.png  seed 0" in out
    assert "bit for bit" in run("replay", first)[1]


def test_what_it_is_not_given_or_does_not_know_is_one_line(trained, run):
    said = {
        ("generate", "everything", "--given", "subject=red"): "everything needs style; give it",
        ("generate", "everythin"): "task 'everythin' is unknown; did you mean 'everything'?",
        ("generate", "name", "--given", "sond=a"): "input 'sond' is unknown; did you mean 'sound'?",
        ("train", "toy", "--data", "shapes"): "the data has no sound, which toy is made of",
        ("train", "toy", "--data", "tune"): "data 'tune' is unknown",
    }
    for words, line in said.items():
        own = ["--out", "odd"] if words[0] == "train" else ["--model", trained]
        code, _, err = run(*words, *own)
        assert code == 2 and line in err and err.count("\n") == 1, err
