"""The trainer: it learns, it resumes exactly, and it refuses what it cannot honour."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from everyway.train import loop, muon
from everyway.train.config import ConfigError, TrainConfig, resolve
from everyway.train.loop import rate_factor, train
from everyway.train.state import StateError

SMALL = {"cache": "128", "batch": "8", "log_every": "2", "warmup": "2"}


def _small(out, steps):
    return resolve("nano", SMALL | {"steps": str(steps)}, out=str(out))


def _interrupt_at(step):
    """A progress callback that does what Ctrl-C does, once `step` is reached."""
    import signal

    def progress(p):
        if p.step == step:
            signal.raise_signal(signal.SIGINT)

    return progress


def test_interrupted_run_equals_uninterrupted(tmp_path):
    whole = train(_small(tmp_path / "a", 10))
    first = train(_small(tmp_path / "b", 10), progress=_interrupt_at(4))
    assert first["stopped"] and first["step"] == 4
    second = train(_small(tmp_path / "b", 10))
    assert whole["step"] == second["step"] == 10
    a = load_file(tmp_path / "a" / "state.safetensors")
    b = load_file(tmp_path / "b" / "state.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_run_stays_as_it_is(tmp_path):
    first = train(_small(tmp_path, 4))
    assert train(_small(tmp_path, 4))["step"] == first["step"]


def test_a_finished_run_that_is_asked_for_more_goes_on_at_the_full_rate(tmp_path):
    train(_small(tmp_path, 4))
    assert train(_small(tmp_path, 10))["step"] == 10
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["facts"])["cooldown_from"] == 8


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    train(_small(tmp_path, 2))
    with pytest.raises(ConfigError, match="another lr"):
        train(resolve("nano", SMALL | {"steps": "2", "lr": "0.5"}, out=str(tmp_path)))


def test_a_damaged_state_is_named(tmp_path):
    train(_small(tmp_path, 2))
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StateError, match="damaged"):
        train(_small(tmp_path, 4))


def test_a_full_disk_leaves_the_former_state(tmp_path, monkeypatch):
    train(_small(tmp_path, 2))
    before = (tmp_path / "state.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("everyway.train.state.save_file", full)
    with pytest.raises(StateError, match="No space left"):
        train(_small(tmp_path, 4))
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_it_learns(nano_run):
    facts, folder = nano_run
    rows = [json.loads(r) for r in (folder.parent / "log.jsonl").read_text().splitlines()]
    assert facts["step"] == 250
    assert rows[-1]["text"] < 0.75 * rows[0]["text"]
    assert rows[-1]["image"] < 0.7 * rows[0]["image"]


def test_rate_warms_up_holds_and_cools_down():
    config = TrainConfig(steps=100, warmup=10, cooldown=0.2)
    assert rate_factor(0, -1, config) == pytest.approx(0.1)
    assert rate_factor(50, -1, config) == 1.0
    assert rate_factor(90, 80, config) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "overrides", [{"stepz": "3"}, {"steps": "many"}, {"lr": "0"}, {"times": "odd"}, {"batch": "0"}]
)
def test_bad_settings_are_one_clear_line(overrides):
    with pytest.raises(ConfigError) as caught:
        resolve("nano", overrides)
    assert "\n" not in str(caught.value)


def test_unknown_preset_lists_the_presets():
    with pytest.raises(ConfigError, match="nano"):
        resolve("nanoo")


def test_a_resumed_run_computes_as_it_began_whatever_it_would_measure_now(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "fast", lambda dtype, device: True)
    train(_small(tmp_path, 2))
    with safe_open(tmp_path / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["facts"])["half"] is True
    for module in (loop, muon):
        monkeypatch.setattr(module, "fast", lambda dtype, device: pytest.fail("measured again"))
    train(_small(tmp_path, 3))
