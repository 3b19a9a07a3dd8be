"""Ten-step guided trajectories of UniDiffuser against the authors' scripts, in all five modes.

Network, guidance, task, solver and loop together.  The scripts' scale s = 7 is our w = 8; the
solver is fed 0.05 x the guided noise, because an untrained network at that scale is chaotic.
"""

from __future__ import annotations

import pytest
import torch

from everyway.guidance import guided
from everyway.process.gaussian import EPS, GaussianProcess
from everyway.process.schedules import DiscreteVP
from everyway.sampling.loop import absent_states, final, sample
from formula import compare, golden, normal
from guided import CLOCKS, MODES, NAMES, NOISES, SHAPES, unidiffuser_of

CASES = ["traj_unidiffuser_v1"]
CONDITION = {"image": "cond_z", "image_embed": "cond_clip", "text": "cond_text"}
PROCESSES = dict.fromkeys(SHAPES, GaussianProcess(schedule=DiscreteVP(), parameterisation=EPS))
STEPS, SCALE, DAMPING = 10, 7.0, 0.05


class FixedNoise:
    """Every absent state is the same draw at every evaluation."""

    def normal(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return normal(f"input:guided:{NOISES[name.removeprefix('absent:')]}", shape)


def states_of(task) -> dict[str, torch.Tensor]:
    """The start of every generated stream and the condition of every given one."""
    keys = {"generate": NAMES, "given": CONDITION}
    kinds = {name: task.roles[clock].kind for name, clock in CLOCKS.items()}
    return {
        name: normal(f"input:guided:{keys[kind][name]}", SHAPES[name])
        for name, kind in kinds.items()
        if kind in keys
    }


@pytest.fixture(scope="module", params=CASES)
def case(request):
    meta, arrays = golden(request.param)
    version = int(request.param[-1])
    return meta, arrays, unidiffuser_of(meta["config"], version)


@pytest.mark.parametrize("mode", MODES)
def test_trajectory(case, mode):
    meta, arrays, network = case
    task, noise = MODES[mode], FixedNoise()
    asked = []

    def denoise(queries):
        made = []
        for query in queries:
            asked.append(query)
            raw = network(query.states, query.times, query.contexts, keep=query.keep)
            clean = {
                k: PROCESSES[k].to_clean(DAMPING * v, query.states[k], query.times[CLOCKS[k]])
                for k, v in raw.items()
            }
            made.append(clean)
        return made

    with torch.inference_mode():
        run = sample(
            guided(denoise, task, CLOCKS, 1 + SCALE, absent_states(PROCESSES, noise)),
            processes=PROCESSES,
            clocks=CLOCKS,
            task=task,
            states=states_of(task),
            shapes=SHAPES,
            noise=noise,
            steps=STEPS,
            sampler="dpm++fast",
        )
        last = final(run)
    assert last.calls == len(asked) == meta["modes"][mode]["nnet_calls"]
    found = torch.cat([last.states[k].flatten(1) for k in CLOCKS if k in last.states], 1)
    compare(arrays, mode, found, meta["outputs"][mode]["stride"], atol=2e-4)
