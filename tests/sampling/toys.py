"""Known distributions with exact denoisers, shared by the sampling tests."""

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
    """The exact probability flow of that distribution from time t to time s."""
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


def picture_and_word(processes, table, points, std: float):
    """Exact denoiser of a word w ~ table over K words, and x | w ~ N(points[w], std^2).

    processes: x Gaussian, word mask-and-replace; each word is one token.  Clocks have their names.
    """

    def denoise(queries):
        out = []
        for query in queries:
            x, word = query.states["x"], query.states["word"]
            alpha, sigma = processes["x"].schedule.alpha_sigma(query.times["x"])
            alpha, sigma = (v[:, None].double() for v in (alpha, sigma))  # (B, 1)
            spread = (alpha**2 * std**2 + sigma**2).sqrt()
            seen = -0.5 * ((x.double() - alpha * points) / spread) ** 2 - spread.log()  # (B, K)
            process = processes["word"]
            stay, replaced, mask = (r[:, None] for r in process.cumulative(query.times["word"]))
            given = (
                replaced + stay * torch.nn.functional.one_hot(word[:, 0], len(table) + 1)[:, :-1]
            )
            given = torch.where(word == process.mask, mask, given)
            log_w = (table.log() + seen + given.log()).log_softmax(-1)  # (B, K)
            gain = std**2 * alpha / spread**2
            means = points + gain * (x.double() - alpha * points)  # of x0 for every word
            clean = {
                "x": (log_w.exp() * means).sum(-1, keepdim=True).float(),
                "word": torch.nn.functional.pad(log_w.float(), (0, 1), value=-70.0)[:, None],
            }
            out.append({name: clean[name] for name in query.keep})
        return out

    return denoise
