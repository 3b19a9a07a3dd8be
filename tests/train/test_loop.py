"""The trainer: it learns, it resumes exactly, and it refuses what it cannot honour."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from safetensors.torch import load_file

from everyway.train import devices, muon, train
from everyway.train.config import ConfigError, resolve
from everyway.train.learner import Share
from everyway.train.loop import rate_factor
from everyway.train.state import StateError, metadata_of

SMALL = {"cache": "128", "batch": "8", "log_every": "2", "warmup": "2"}


def _small(out, steps):
    return resolve("nano", SMALL | {"steps": str(steps)}, out=str(out))


def _interrupt_at(step, number=signal.SIGINT):
    """A progress callback that does what Ctrl-C does, once `step` is reached."""

    def progress(p):
        if p.step == step:
            signal.raise_signal(number)

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
    clocks = {"sha256"}  # over the seconds, among all else
    assert all(torch.equal(a[k], b[k]) for k in a.keys() - clocks)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_save_as_an_interrupt_does(tmp_path, number):
    former = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    try:
        metadata = train(_small(tmp_path, 10), progress=_interrupt_at(4, number))
    finally:
        signal.signal(number, former)
    assert metadata["stopped"] and metadata_of(tmp_path / "state.safetensors")["step"] == 4


def test_parts_of_a_batch_one_after_the_other_are_the_batch(tmp_path):
    for parts in (1, 4):
        own = {"steps": "3", "lr": "1e-4", "precision": "fp32", "accumulate": parts}
        train(resolve("nano", SMALL | own, out=str(tmp_path / str(parts))))
    one, four = (load_file(tmp_path / n / "state.safetensors") for n in "14")
    for name in one.keys() - {"sha256"}:
        torch.testing.assert_close(one[name], four[name], rtol=0, atol=1e-5)


def test_a_finished_run_stays_as_it_is(tmp_path):
    first = train(_small(tmp_path, 4))
    assert train(_small(tmp_path, 4))["step"] == first["step"]


def test_a_finished_run_that_is_asked_for_more_goes_on_at_the_full_rate(tmp_path):
    train(_small(tmp_path, 4))
    assert train(_small(tmp_path, 10))["step"] == 10
    assert metadata_of(tmp_path / "state.safetensors")["cooldown_from"] == 8


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

    monkeypatch.setattr("everyway.train.sealed._bytes", full)
    with pytest.raises(StateError, match="No space left"):
        train(_small(tmp_path, 4))
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_it_learns(nano_run):
    metadata, folder = nano_run
    rows = [json.loads(r) for r in (folder.parent / "log.jsonl").read_text().splitlines()]
    assert metadata["step"] == 250
    assert rows[-1]["text"] < 0.75 * rows[0]["text"]
    assert rows[-1]["image"] < 0.7 * rows[0]["image"]


def test_rate_warms_up_holds_and_cools_down():
    config = resolve("nano", {"steps": 100, "warmup": 10, "cooldown": 0.2})
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
    monkeypatch.setattr(devices, "fast", lambda dtype, device: True)
    train(_small(tmp_path, 2))
    assert metadata_of(tmp_path / "state.safetensors")["half"] is True
    for module in (devices, muon):
        monkeypatch.setattr(module, "fast", lambda dtype, device: pytest.fail("measured again"))
    train(_small(tmp_path, 3))


def test_other_circumstances_are_told(tmp_path):
    """Another thread count changes last bits; a resumed run says so."""
    train(_small(tmp_path, 2))
    lines: list[str] = []
    train(_small(tmp_path, 3), note=lines.append)
    assert not [line for line in lines if "last bits" in line]
    torch.set_num_threads(2)
    try:
        train(_small(tmp_path, 4), note=lines.append)
    finally:
        torch.set_num_threads(1)
    assert "threads 1 is now 2: the run goes on, and its last bits differ" in lines[-1]


def test_every_flipped_bit_of_a_state_is_found(tmp_path):
    train(_small(tmp_path, 2))
    path = tmp_path / "state.safetensors"
    data = bytearray(path.read_bytes())
    for place in (200, len(data) // 2, len(data) - 40, len(data) - 1):
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(StateError, match="damaged.* delete it to start this run again"):
            train(_small(tmp_path, 4))
        data[place] ^= 1


def test_samples_and_noise_are_drawn_apart():
    """On one device, from one seed: times do not hang on which samples they are of."""
    cpu = torch.device("cpu")
    share = Share(seed=0, step=3, size=8, rows=slice(2, 6), device=cpu)
    drawn = torch.rand(8, generator=share.generator("samples"))
    other = share.noise().uniform("time:image", (4,))
    assert not torch.isin(other, drawn).any()
    whole = Share(seed=0, step=3, size=8, rows=slice(0, 8), device=cpu)
    assert torch.equal(other, whole.noise().uniform("time:image", (8,))[2:6])


def test_training_is_a_function(tmp_path):
    metadata = train("nano", out=str(tmp_path), steps=2, cache=32, batch=4, lr=1e-3)
    assert (
        metadata["step"] == 2
        and metadata_of(tmp_path / "state.safetensors")["config"]["batch"] == 4
    )
