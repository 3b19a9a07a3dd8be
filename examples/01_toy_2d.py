"""Every task of a two-stream model from one exact denoiser, against answers known by hand.

The data: five "pictures" (a number) with a "caption" (a number); -2 belongs to two captions.

    python examples/01_toy_2d.py
"""

from __future__ import annotations

import torch

from everyway.process.gaussian import GaussianProcess, V
from everyway.process.schedules import CosineVP
from everyway.sampling.loop import final, sample
from everyway.sampling.noise import PerSampleNoise
from everyway.tasks import TASKS

IMAGE = torch.tensor([-2.0, -2.0, 0.0, 1.0, 2.0], dtype=torch.float64)
TEXT = torch.tensor([-1.0, 0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
POINTS = {"image": IMAGE, "text": TEXT}
PROCESS = GaussianProcess(schedule=CosineVP(), parameterisation=V)
BATCH = 2000


def ideal(queries):
    """E[x_0 | both states at their own times]: a softmax over the five pairs, nothing learned."""
    answers = []
    for query in queries:
        logits = 0.0
        for name, points in POINTS.items():
            alpha, sigma = PROCESS.schedule.alpha_sigma(query.times[name])  # (B,)
            gap = query.states[name].double() - alpha[:, None] * points  # (B, 5)
            logits = logits - 0.5 * (gap / sigma[:, None].clamp(min=1e-6)) ** 2
        weights = logits.softmax(1)
        answers.append({n: (weights @ POINTS[n])[:, None].float() for n in query.keep})
    return answers


def run(task, **given):
    """Samples (B,) of the generated streams, rounded to the nearest data value."""
    states = {name: torch.full((BATCH, 1), value) for name, value in given.items()}
    last = final(
        sample(
            ideal,
            processes={"image": PROCESS, "text": PROCESS},
            clocks={"image": "image", "text": "text"},
            task=TASKS[task],
            states=states,
            shapes={"image": (BATCH, 1), "text": (BATCH, 1)},
            noise=PerSampleNoise([*range(BATCH)]),
            steps=40,
        )
    )
    return {name: x[:, 0].round() for name, x in last.states.items()}


def check(what, hits, expected):
    share = float(hits.double().mean())
    print(f"{what:<40} {share:.3f}   expected {expected:.3f}")
    assert abs(share - expected) < 0.05, what


joint = run("joint")
check("joint: picture -2 with caption 0", (joint["image"] == -2) & (joint["text"] == 0), 1 / 5)
check("joint: picture 2 with caption -1", (joint["image"] == 2) & (joint["text"] == -1), 0.0)
check("text to image: caption -1, picture -2", run("text-to-image", text=-1.0)["image"] == -2, 1.0)
check("text to image: caption 1, picture 2", run("text-to-image", text=1.0)["image"] == 2, 1 / 2)
check("image to text: picture -2, caption 0", run("image-to-text", image=-2.0)["text"] == 0, 1 / 2)
check("image alone: picture -2", run("image")["image"] == -2, 2 / 5)
check("text alone: caption 1", run("text")["text"] == 1, 2 / 5)
