"""The small loop of codecs and recogniser."""

from __future__ import annotations

import itertools
import signal
from types import SimpleNamespace

import pytest
import torch

from everyway.train import fit as fitting
from everyway.train.fit import fit
from everyway.train.stopping import stoppable


def test_after_an_interrupt_it_goes_on_from_the_last_step(tmp_path, monkeypatch):
    ticks = itertools.count()  # every step takes a second
    monkeypatch.setattr(fitting, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    asked: list[int] = []

    def loss_at(step: int) -> torch.Tensor:
        asked.append(step)
        if len(asked) == 4:
            signal.raise_signal(signal.SIGINT)
        return module(torch.ones(1, 2)).square().mean()

    def once() -> int:
        fit(module, loss_at, tmp_path / "state", minutes=20 / 60, lr=1e-2, report=lambda line: None)
        return 0

    module = torch.nn.Linear(2, 1)
    assert stoppable(once) == 130 and asked == [0, 1, 2, 3]
    again = torch.nn.Linear(2, 1)
    module = again
    assert stoppable(once) == 0 and asked[4] == 4
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # heeded at once again
