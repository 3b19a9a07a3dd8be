"""Samples are parted among the processes of a launcher: none is made twice, none is left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from everyway import launched
from everyway.apps.cli.making import shared_out
from everyway.request import GenerateRequest

PROMPTS = "a red circle left on blue\na green ring top on white\na black cross bottom on red\n"
WORDS = ["generate", "image", "--prompts", "prompts.txt", "-n", "3", "--model", "nano"]
WORDS += ["--steps", "2", "--out", "out"]


def made(out: Path) -> list[tuple[str, int]]:
    """(prompt, seed) of every result, whose picture is there."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len({row["image"] for row in rows}) == len(rows)
    assert all((out / row["image"]).is_file() for row in rows)
    return sorted((row["request"]["text"], row["seed"]) for row in rows)


WHOLE = sorted((text, seed) for text in PROMPTS.splitlines() for seed in range(3))


@pytest.mark.parametrize("processes", [1, 2, 3, 7, 20])
def test_every_sample_is_of_one_process(processes):
    texts = {"a": 5, "b": 1, "c": 4}
    requests = [
        GenerateRequest(kind="text-to-image", text=t, n=n, seed=7) for t, n in texts.items()
    ]
    parts = [shared_out(requests, rank, processes) for rank in range(processes)]
    samples = [(r.text, r.seed + k) for part in parts for r in part for k in range(r.n)]
    assert samples == [(r.text, r.seed + k) for r in requests for k in range(r.n)]
    sizes = [sum(r.n for r in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_each_process_makes_its_share_and_what_is_lost_is_made_again(run, monkeypatch):
    def process(rank: int) -> None:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        assert (launched.rank(), launched.processes()) == (rank, 2)
        assert run(*WORDS)[0] == 0

    Path("prompts.txt").write_text(PROMPTS)
    process(0)
    assert len(made(Path("out"))) == 4
    process(1)
    assert made(Path("out")) == WHOLE
    rows = Path("out/results.jsonl").read_text().splitlines(keepends=True)
    Path("out/results.jsonl").write_text("".join(rows[1:7]) + rows[7][:50])  # killed
    process(1)
    process(0)
    assert made(Path("out")) == WHOLE


@pytest.mark.slow
def test_under_torchrun_two_processes_make_all_of_it_once(tmp_path):
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29721"]
    done = subprocess.run(
        [sys.executable, *torchrun, "-m", "everyway.apps.cli", *WORDS],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert made(tmp_path / "out") == WHOLE
