"""One plain training loop for the small parts (codecs, recogniser): minutes in, EMA weights out.

Ctrl-C keeps everything, as in the loop of systems.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from everyway.train.ema import EMA
from everyway.train.state import TrainState
from everyway.train.stopping import polite_stop

Report = Callable[[str], None]
say: Report = partial(print, flush=True)


def fit(
    module: nn.Module,
    loss_at: Callable[[int], Tensor],
    state_file: Path,
    *,
    minutes: float,
    lr: float,
    weight_decay: float = 0.01,
    warmup: int = 50,
    cooldown: float = 0.4,
    ema: float = 0.998,
    save_every_s: float = 60.0,
    report: Report = say,
) -> dict[str, float]:
    """Trains `module` in place until it has had `minutes` in all, then leaves its EMA in it.

    loss_at: step -> the loss of that step's own batch, so that a resumed run draws what an
    uninterrupted one would have drawn.  Run it again to go on from `state_file`.
    Returns steps, minutes and the mean loss of the last hundred steps.  After Ctrl-C it saves, and
    raises KeyboardInterrupt.
    """
    wanted = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(wanted, lr, betas=(0.9, 0.99), weight_decay=weight_decay)
    state = TrainState(module, optimiser, EMA(module, ema))
    if state_file.exists():
        state.restore(state_file)
    module.train()
    saved, mean = time.monotonic(), math.nan
    with polite_stop() as asked:
        while not asked and (done := state.seconds / (60 * minutes)) < 1:
            began = time.monotonic()
            rate = min(1.0, (state.step + 1) / warmup) * min(1.0, max(0.02, (1 - done) / cooldown))
            for group in optimiser.param_groups:
                group["lr"] = lr * rate
            loss = loss_at(state.step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(wanted, 1.0)
            optimiser.step()
            state.ema.update(module, state.step)
            state.step += 1
            state.seconds += time.monotonic() - began
            mean = loss.item() if math.isnan(mean) else 0.99 * mean + 0.01 * loss.item()
            if state.step % 50 == 0:
                report(f"{done:6.1%}  step {state.step}  loss {mean:.4f}")
            if time.monotonic() - saved > save_every_s:
                state.save(state_file, json.dumps({"minutes": minutes, "lr": lr}))
                saved = time.monotonic()
        state.save(state_file, json.dumps({"minutes": minutes, "lr": lr}))
    if asked:
        raise KeyboardInterrupt
    module.load_state_dict(state.ema.weights)
    module.eval()
    return {"steps": state.step, "minutes": round(state.seconds / 60, 1), "loss": round(mean, 4)}
