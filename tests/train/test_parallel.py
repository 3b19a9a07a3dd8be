"""Two processes on one training: started by torchrun, equal weights, one model."""

from __future__ import annotations

import subprocess
import sys

import torch
from safetensors.torch import load_file

from everyway.train.parallel import World, join

SETTINGS = ("steps=3", "cache=64", "batch=8", "log_every=1", "warmup=1", "device=cpu")


def test_one_process_is_a_world_of_one():
    world = join()
    assert world == World() and world.first and world.share(8) == 8 and world.agreed(2.5) == 2.5


def test_a_batch_that_cannot_be_divided_is_refused():
    try:
        World(rank=0, size=3).share(8)
    except ValueError as error:
        assert "cannot be divided" in str(error)
    else:
        raise AssertionError("a batch of 8 was divided among 3")


def test_two_processes_train_one_model(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "everyway.apps.cli", "train", "nano", "--out", str(tmp_path), "--quiet"]
    for setting in SETTINGS:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    state = load_file(tmp_path / "state.safetensors")
    assert all(torch.isfinite(v).all() for v in state.values() if v.is_floating_point())
    assert (tmp_path / "model" / "config.json").exists()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3  # one process writes
