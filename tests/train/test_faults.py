"""What goes wrong in a training is told with its cause, and nothing that was saved is lost."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from everyway.train import devices, samples, train
from everyway.train.config import ConfigError
from everyway.train.faults import fault_of
from everyway.train.learner import Learner
from everyway.train.state import StateError, formers, metadata_of
from everyway.train.systems import SystemLearner

NANO = dict(cache=32, batch=4, log_every=1, warmup=2, cooldown=0, precision="fp32", device="cpu")


def trained(out, steps: int, **settings):
    return train("nano", **{**NANO, **settings}, steps=steps, out=str(out))


class Two(Learner):
    """Two linear layers; the loss is the root of a square, which has no slope at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 1)

    def forward(self, batch):
        loss = self.second(self.first(batch)).square().sqrt().mean()
        return loss, {"all": loss}


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch):
    monkeypatch.setattr(samples, "COUNT", 1)


@pytest.fixture(scope="module")
def run_of_two(tmp_path_factory):
    """The folder of a run of two steps, whose losses the next ones are compared with."""
    out = tmp_path_factory.mktemp("two")
    trained(out, 2, keep=3, save_every_s=0)
    return out


def test_the_layer_is_named_on_the_way_there_and_on_the_way_back():
    two, some = Two(), torch.ones(3, 2)
    for parameter in two.second.parameters():
        nn.init.zeros_(parameter)
    assert fault_of(two, [some], torch.enable_grad) == "second got a gradient that is not finite"
    two.first.weight.data[0, 0] = torch.inf
    assert fault_of(two, [some], torch.enable_grad) == "first made numbers that are not finite"
    assert fault_of(two, [some * torch.nan], torch.enable_grad) == (
        "first was given numbers that are not finite"
    )
    nn.init.ones_(two.first.weight)
    nn.init.ones_(two.second.weight)
    assert fault_of(two, [some], torch.enable_grad) == ""


def test_a_training_that_diverges_names_the_layer_and_the_state_to_go_back_to(
    run_of_two, monkeypatch
):
    state, draw = run_of_two / "state.safetensors", SystemLearner.batch
    before = state.read_bytes()

    def torn(self, share):
        if share.step == 3:
            self.network.outs[0].fc1.weight.data[0, 0] = torch.inf
        return draw(self, share)

    monkeypatch.setattr(SystemLearner, "batch", torn)
    said = r"by step 4: network.outs.0.fc1 made numbers .*/state.safetensors, of step 2, stays"
    with pytest.raises(StateError, match=said):
        trained(run_of_two, 6, keep=3)
    assert state.read_bytes() == before


def test_the_last_states_are_kept_and_can_be_gone_back_to(tmp_path):
    path = tmp_path / "state.safetensors"
    trained(tmp_path, 4, keep=9, save_every_s=0)
    assert [p.name for p in formers(path)] == [f"state-{n:07d}.safetensors" for n in (1, 2, 3)]
    trained(tmp_path, 5, keep=3, save_every_s=0)
    assert [p.name for p in formers(path)] == [f"state-{n:07d}.safetensors" for n in (3, 4)]
    assert metadata_of(path)["step"] == 5
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(StateError, match="damaged.*; copy state-0000004.safetensors over it to go"):
        trained(tmp_path, 5, keep=3)
    path.write_bytes(formers(path)[0].read_bytes())
    trained(tmp_path, 5, keep=3, save_every_s=0)
    rows = [json.loads(row) for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]  # none of them twice


@contextmanager
def no_file_above(size: int):
    """As on a disk with so much room."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


@pytest.mark.parametrize(("room", "what"), [(100_000, "state"), (5_000, "log.jsonl")])
def test_without_room_it_stops_in_one_line_and_goes_on_when_there_is(run_of_two, room, what, capfd):
    before, log = (run_of_two / "state.safetensors").read_bytes(), run_of_two / "log.jsonl"
    log.write_text(100 * log.read_text())
    with no_file_above(room), pytest.raises(StateError, match=f"{what}.* File too large"):
        trained(run_of_two, 4, keep=3, save_every_s=0)
    assert (run_of_two / "state.safetensors").read_bytes() == before
    assert "Traceback" not in capfd.readouterr().err


def test_other_trackers_are_told_only_if_asked(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="tracker is 'nobody'; choose one of .*wandb"):
        trained(tmp_path, 1, tracker="nobody")
    monkeypatch.setattr(devices.tracking, "get_available_trackers", lambda: [])
    with pytest.raises(ConfigError, match="the tracker wandb is not installed: pip install wandb"):
        trained(tmp_path, 1, tracker="wandb")
    told = []

    class Wandb(devices.tracking.GeneralTracker):
        name, requires_logging_directory, main_process_only = "wandb", False, True
        tracker = None

        def __init__(self, run_name, **settings):
            super().__init__()
            told.append((run_name, settings))

        def store_init_configuration(self, values):
            told.append(values)

        def log(self, values, step, **_):
            told.append((step, values))

        def log_images(self, values, step, **_):
            told.append((step, {k: v.shape for k, v in values.items()}))

        def finish(self):
            told.append("finished")

    monkeypatch.setitem(devices.tracking.LOGGER_TYPE_TO_CLASS, "wandb", Wandb)
    monkeypatch.setattr(devices.tracking, "get_available_trackers", lambda: ["wandb"])
    trained(tmp_path, 2, tracker="wandb", sample_every=2)
    assert told[0] == ("everyway", {"name": tmp_path.name}) and told[-1] == "finished"
    assert told[1]["optim.lr"] == 5e-3 and told[1]["run.tracker"] == "wandb"
    assert [step for step, _ in told[2:-1]] == [1, 2, 2]
    assert {*told[2][1]} == {"loss/image", "loss/image_embed", "loss/text"}
    assert np.prod(told[4][1]["samples"]) > 1_000


def test_tensorboard_has_losses_and_samples(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(tmp_path, 2, sample_every=2)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss/image")] == [1, 2]
    assert [event.step for event in board.Images("samples")] == [2]
