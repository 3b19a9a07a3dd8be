"""Shared by all tests: one thread, and one nano model trained once."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nano_run(tmp_path_factory):
    """(metadata, folder) of a nano UniDiffuser trained on shapes for a minute."""
    from everyway.train.config import resolve
    from everyway.train.loop import train

    out = tmp_path_factory.mktemp("nano")
    overrides = {"steps": "250", "cache": "2000", "batch": "64", "log_every": "50"}
    metadata = train(resolve("nano", overrides, out=str(out)))
    return metadata, out / "model"


@pytest.fixture(scope="session")
def nano():
    """The shipped nano model."""
    from everyway.generate import load

    return load("nano")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder -> (exit code, stdout, stderr)."""
    from everyway.apps import cli

    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = cli.main([str(w) for w in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same weights, alone or among others."""
    torch.manual_seed(0)
