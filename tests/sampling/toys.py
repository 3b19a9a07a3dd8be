"""Known laws with exact denoisers, shared by the sampling tests."""

from __future__ import annotations

import zlib

import torch

from everyway.contracts import expand_times
from everyway.tasks import GENERATE, Task

ALONE = Task(name="alone", roles={"x": GENERATE})


def gaussian(process, mean: float, std: float):
    """Exact denoiser of x0 ~ N(mean, std^2), elementwise, one modality x on clock x."""

    def denoise(queries):
        out = []
        for query in queries:
            x = query.states["x"]
            alpha, sigma = process.schedule.alpha_sigma(query.times["x"])
            alpha, sigma = expand_times(alpha, x), expand_times(sigma, x)
            gain = std**2 * alpha / (alpha**2 * std**2 + sigma**2)
            out.append({"x": (mean + gain * (x - alpha * mean)).to(x.dtype)})
        return out

    return denoise


def flow_map(schedule, mean: float, std: float, x, t: float, s: float):
    """The exact probability flow of that law from time t to time s."""
    (a, p), (b, q) = ([float(v) for v in schedule.alpha_sigma(u)] for u in (t, s))
    spread = ((b**2 * std**2 + q**2) / (a**2 * std**2 + p**2)) ** 0.5
    return b * mean + spread * (x - a * mean)


def finite(processes, points, clocks=None):
    """Exact denoiser of a uniform draw from `points`: modality -> (N, D) rows that belong together.

    Given (t = 0) and absent (t = 1) modalities are the same formula at those times.
    """
    clocks = clocks or {name: name for name in points}

    def denoise(queries):
        out = []
        for query in queries:
            logits = 0.0
            for name, x in query.states.items():
                alpha, sigma = processes[name].schedule.alpha_sigma(query.times[clocks[name]])
                alpha, sigma = alpha[:, None, None], sigma[:, None, None].clamp(min=1e-6)
                gap = x.double()[:, None] - alpha * points[name].double()  # (B, N, D)
                logits = logits - 0.5 * (gap / sigma).square().sum(-1)
            weights = logits.softmax(-1)  # (B, N)
            keep = query.keep or tuple(points)
            out.append({n: (weights @ points[n].double()).to(query.states[n].dtype) for n in keep})
        return out

    return denoise


def filled(key: str, *shape: int):
    """The normal draw that the golden files are made from."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return torch.randn(shape, generator=generator)
