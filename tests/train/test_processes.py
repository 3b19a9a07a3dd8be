"""Several processes on one training, however they are launched: the weights of one."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everyway.process import times
from everyway.systems import vq_diffusion
from everyway.train import devices, train
from everyway.train.config import ConfigError, resolve
from everyway.train.learner import Share
from everyway.train.state import metadata_of
from everyway.train.systems import SystemLearner, prepared

SMALL_VQ = str(Path(__file__).parent / "small_vq.py")
NANO = dict(
    cache=64, batch=8, lr=1e-4, log_every=1, warmup=1, cooldown=0, precision="fp32", device="cpu"
)
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
    "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip


def launched(launcher: list[str], *words: object, port: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    flag = "--master-port" if launcher is TORCHRUN else "--main_process_port"
    done = subprocess.run(
        [*launcher, flag, port, *map(str, words)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def nano(out: Path, steps: int) -> list:
    given = [f"--set={k}={v}" for k, v in {**NANO, "steps": steps}.items()]
    return ["-m", "everyway.apps.cli", "train", "nano", "--out", out, "--quiet", *given]


def same(a: Path, b: Path, steps: int) -> None:
    one, other = (load_file(p / "state.safetensors") for p in (a, b))
    assert metadata_of(a / "state.safetensors")["step"] == steps
    assert one.keys() == other.keys()
    for name in one.keys() - {"sha256"}:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=1e-5, msg=name)


def logged(out: Path) -> list[dict[str, float]]:
    """The rows of a log, without the seconds."""
    rows = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_two_processes_train_the_nano_of_one_and_each_goes_on_for_the_other(tmp_path):
    train("nano", **NANO, steps=4, out=str(tmp_path / "one"))
    launched(TORCHRUN, *nano(tmp_path / "two to one", 2), port="29711")
    train("nano", **NANO, steps=2, out=str(tmp_path / "one to two"))
    same(tmp_path / "two to one", tmp_path / "one to two", 2)
    train("nano", **NANO, steps=4, out=str(tmp_path / "two to one"))
    launched(ACCELERATE, *nano(tmp_path / "one to two", 4), port="29712")
    for name in ("two to one", "one to two"):
        same(tmp_path / name, tmp_path / "one", 4)
        assert (tmp_path / name / "model" / "config.json").exists()
        assert len(rows := logged(tmp_path / name)) == 4  # one writes
        for row, alone in zip(rows, logged(tmp_path / "one"), strict=True):
            assert row == pytest.approx(alone, abs=1.5e-5)  # written with five digits


def test_a_history_of_losses_is_that_of_all_processes(tmp_path, monkeypatch):
    """Tokens, whose times are drawn by importance from the losses seen, before and after."""
    monkeypatch.setattr(times, "SEEN", times.SEEN)  # as they are again after the script's changes
    monkeypatch.setattr(vq_diffusion.Training, "system", vq_diffusion.Training.system)
    run = runpy.run_path(SMALL_VQ)["run"]
    one, to_one, to_two = (tmp_path / name for name in ("one", "two to one", "one to two"))
    run(str(one), 8)
    launched(TORCHRUN, SMALL_VQ, to_one, 6, port="29713")
    run(str(to_one), 8)
    run(str(to_two), 6)
    launched(TORCHRUN, SMALL_VQ, to_two, 8, port="29714")
    for out in (to_one, to_two):
        same(out, one, 8)
    counts = load_file(one / "state.safetensors")["memory.importance.counts"]
    assert counts.sum() == 8 * 8 and counts.min() > 0  # the last steps were drawn by importance


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="batch 8 cannot be divided among 3 parts"):
        train("nano", **NANO, accumulate=3, out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_second_process_takes_the_second_gpu(monkeypatch):
    """Two GPUs and two processes, of which this is the second, without either."""
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    set_to, zeros = [], torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)
    monkeypatch.setattr(torch, "zeros", lambda *a, device=None, **k: zeros(*a, **k))
    monkeypatch.setattr("accelerate.state.check_cuda_p2p_ib_support", lambda: True)
    for name, value in {
        "is_initialized": False, "get_rank": 1, "get_world_size": 2, "init_process_group": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.distributed, name, lambda *a, value=value, **k: value)
    try:
        state = devices.joined("auto")
        assert (state.device, state.process_index) == (torch.device("cuda:1"), 1)
        assert set_to == [torch.device("cuda:1")]
        with pytest.raises(ConfigError, match="is one for all processes; leave its number out"):
            devices.joined("cuda:0")
    finally:
        devices.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("preset", ["nano", "mini-vq"])
def test_a_step_lies_where_its_network_lies(preset, tmp_path, monkeypatch):
    """On the meta device, where nothing is read: what is left on the CPU would be told."""
    monkeypatch.setattr(vq_diffusion.Training, "system", runpy.run_path(SMALL_VQ)["system"])
    config = resolve(preset, {**NANO, "data": "shapes", "out": str(tmp_path)})
    system = prepared(config)

    class Zeros:
        complete, lacking = 1.0, {}

        def __len__(self):
            return 4

        def rows(self, index, share):
            if preset == "nano":
                return {k: torch.zeros(shape) for k, shape in system.shapes(len(index)).items()}
            tokens = torch.zeros(len(index), 16, dtype=torch.long)
            return {"image": tokens, "context.text": torch.zeros(len(index), 24, 8)}

    def moved(part):
        if isinstance(part, dict):
            return {name: moved(value) for name, value in part.items()}
        return part.to("meta") if isinstance(part, torch.Tensor) else part

    learner = SystemLearner(system, Zeros(), config).to("meta")
    share = Share(seed=0, step=0, size=8, rows=slice(0, 4), device=torch.device("cpu"))
    loss, _ = learner(tuple(moved(part) for part in learner.batch(share)))
    assert loss.device.type == "meta"
