"""Whatever stops a training, nothing of it is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from everyway.checkpoints import store

KILLED = Path(__file__).parent / "killed.py"


def rows(out: Path) -> list[dict]:
    """Those of the log, without the seconds."""
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "seconds"} for x in lines]


@pytest.mark.slow
def test_killed_ten_times_it_ends_as_if_left_alone(tmp_path):
    """SIGKILL at random moments of ten processes, then one that is left to finish."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, KILLED, tmp_path, "0"],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    kills = [int(step) for step in done.stdout.splitlines()[-1].split()]
    assert len(kills) == 10 and len({*kills}) > 2, kills  # some of them after steps were made
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    one, other = (load_file(out / "state.safetensors") for out in (whole, killed))
    assert one.keys() == other.keys()
    clocks = {"sha256"}  # over the seconds, among all else
    assert all(torch.equal(one[name], other[name]) for name in one.keys() - clocks)
    assert store.fingerprint(whole / "model") == store.fingerprint(killed / "model")
    assert rows(whole) == rows(killed)
    assert not list(killed.rglob("*.partial"))
