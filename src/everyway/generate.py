"""Runs a request on a model.  A request becomes a Plan: a tuple of stages, one sampling loop each.

Variation, the Gibbs chain and interpolation are plans, not special cases of the sampler.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from everyway import __version__
from everyway.checkpoints import store
from everyway.contracts import Bundle, Query
from everyway.guidance import guided
from everyway.request import GenerateRequest, read_image
from everyway.sampling.loop import Progress, absent_states, final, sample
from everyway.sampling.noise import PerSampleNoise
from everyway.sampling.solvers import SAMPLERS
from everyway.system import System
from everyway.systems import builder
from everyway.tasks import (
    IMAGE_TO_TEXT,
    TASKS,
    TEXT_TO_IMAGE,
    Task,
    given_noisy,
    named_task,
    times_for,
)

SHIPPED = Path(__file__).parent / "shipped"
BATCH = 16  # samples in flight; results stream out batch by batch


class ModelError(ValueError):
    """A model that cannot be found or loaded; the message says how to mend it."""


@dataclass(frozen=True)
class Preview:
    """Where a run is: step of steps in stage of stages (all counted from 1)."""

    stage: int
    stages: int
    step: int
    steps: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One thing made.  seed: of this sample alone.  facts: what reproduces and explains it.

    index: among all results.  part: among those of this sample (a chain, an interpolation).
    """

    index: int
    part: int
    seed: int
    image: Image.Image | None
    text: str | None
    facts: dict[str, Any]


Carry = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One sampling loop.  Its given states are taken from what former stages made.

    prepare: may change what is carried before the loop (interpolation does).
    shown: whether this stage's states become results.
    """

    task: Task
    prepare: Callable[[Carry, Model, GenerateRequest], Carry] | None = None
    shown: bool = True


def plan(request: GenerateRequest) -> tuple[Stage, ...]:
    """The stages of a request."""
    kind = request.kind
    if kind in TASKS:
        task = TASKS[kind]
        noisy = {c: given_noisy(v) for c, v in request.given_noise.items()}
        wrong = set(noisy) - set(task.given)
        if wrong:
            raise ModelError(f"--given-noise {sorted(wrong)}: {kind} is given {[*task.given]}")
        return (Stage(task=task.replace(**noisy)),)
    back, forth = Stage(task=IMAGE_TO_TEXT), Stage(task=TEXT_TO_IMAGE)
    quiet_back, quiet_forth = (Stage(task=s.task, shown=False) for s in (back, forth))
    if kind == "vary-image":
        return (quiet_back, forth)
    if kind == "vary-text":
        return (quiet_forth, back)
    if kind == "chain":
        return (forth, back) * request.rounds
    if kind == "interpolate":
        return (quiet_back, Stage(task=TEXT_TO_IMAGE, prepare=between))
    raise ModelError(f"request kind {kind!r} is unknown")


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A loaded system and the facts of its folder."""

    name: str
    hash: str
    system: System
    facts: Mapping[str, Any] = field(default_factory=dict)

    def generate(self, request: GenerateRequest | None = None, **settings) -> list[Result]:
        """All results of a request (or of the keyword settings of one)."""
        request = request or GenerateRequest(**settings)
        return [r for r in self.run(request) if isinstance(r, Result)]

    def run(self, request: GenerateRequest) -> Iterator[Preview | Result]:
        """Previews while it works, results as they are done."""
        stages = plan(request)
        raw = self._raw(request)
        count = request.frames if request.kind == "interpolate" else request.n
        for start in range(0, count, BATCH):
            rows = range(start, min(count, start + BATCH))
            if request.kind == "interpolate":
                rows = range(count)  # the frames belong together
            yield from self._batch(request, stages, raw, rows)
            if request.kind == "interpolate":
                return

    def each(
        self,
        task: str,
        seeds: Sequence[int],
        *,
        text: Sequence[str] | None = None,
        image: Sequence[Image.Image] | None = None,
        steps: int = 25,
        guidance: float = 2.5,
        sampler: str = "dpm++2m",
        batch: int = BATCH,
    ) -> list[Result]:
        """One result a seed, each with its own text or picture: many conditions at once.

        Result k is what `generate` gives for that condition and seed.
        """
        chosen, size = named_task(task), self.image_size
        out: list[Result] = []
        for start in range(0, len(seeds), batch):
            cut = slice(start, start + batch)
            raw: dict[str, Any] = {} if text is None else {"text": list(text[cut])}
            if image is not None:
                raw["image"] = torch.stack([_to_tensor(i, size) for i in image[cut]])
            noise, began = PerSampleNoise(list(seeds[cut])), time.monotonic()
            run = self._sample(chosen, self._encoded(raw), noise, steps, guidance, sampler)
            last = final(run)
            facts = self._record(chosen, time.monotonic() - began, last.calls)
            out += self._results(last.states, seeds[cut], start, facts)
        return out

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that this model reads."""
        return int(self.facts.get("image_size", 64))

    def _raw(self, request: GenerateRequest) -> dict[str, Any]:
        raw: dict[str, Any] = {}
        if request.images:
            size = self.image_size
            raw["image"] = torch.stack([_to_tensor(read_image(p), size) for p in request.images])
        if request.text is not None:
            raw["text"] = [request.text]
        return raw

    def _batch(self, request, stages, raw, rows: range) -> Iterator[Preview | Result]:
        together = request.kind == "interpolate"  # its frames share one seed and two pictures
        seeds = [request.seed + (0 if together else k) for k in rows]
        carried = self._encoded(raw)
        if not together:
            carried = {k: v.expand(len(rows), *v.shape[1:]) for k, v in carried.items()}
        began, shown, noise = time.monotonic(), 0, PerSampleNoise(seeds)
        for number, stage in enumerate(stages):
            if stage.prepare:
                carried = stage.prepare(carried, self, request)
            size = next(iter(carried.values())).shape[0] if carried else len(rows)
            if size != len(noise.seeds):
                noise = PerSampleNoise(seeds[:size])
            how = (request.steps, request.guidance, request.sampler)
            for progress in self._sample(stage.task, carried, noise, *how):
                yield Preview(number + 1, len(stages), progress.step, progress.steps)
            generated = [m.name for c in stage.task.generated for m in self.system.on(c)]
            carried = carried | {name: progress.states[name] for name in generated}
            if not stage.shown:
                continue
            facts = self._record(stage.task, time.monotonic() - began, progress.calls)
            made = self._results({name: carried[name] for name in generated}, seeds, 0, facts)
            for k, row in enumerate(rows):
                part = row if together else shown
                yield replace(made[k], index=row * self._shown(stages) + shown, part=part)
            shown += 1

    @staticmethod
    def _shown(stages: tuple[Stage, ...]) -> int:
        return sum(stage.shown for stage in stages)

    def _encoded(self, raw: Mapping[str, Any]) -> Carry:
        """Row by row, so that a condition's state does not depend on its batch."""
        count = max((len(v) for v in raw.values()), default=0)
        rows = [self.system.encode({k: v[i : i + 1] for k, v in raw.items()}) for i in range(count)]
        return {k: torch.cat([row[k] for row in rows]) for k in rows[0]} if rows else {}

    def _sample(
        self, task: Task, carried: Carry, noise, steps: int, guidance: float, sampler: str
    ) -> Iterator[Progress]:
        """The sampling loop of one stage."""
        system, shapes = self.system, self.system.shapes(len(noise.seeds))
        states = {
            name: carried[name]
            for name, m in system.modalities.items()
            if task.roles[m.clock].kind == "given"
        }
        for name, m in system.modalities.items():
            if f"start.{name}" in carried and m.clock in task.generated:
                states[name] = carried[f"start.{name}"]
        absent = absent_states(system.processes, noise)
        return sample(
            guided(system.denoiser(), task, system.clocks, guidance, absent),
            processes=system.processes,
            clocks=system.clocks,
            task=task,
            states=states,
            shapes=shapes,
            noise=noise,
            steps=steps,
            sampler=sampler,
        )

    def _results(self, made: Bundle, seeds: Sequence[int], first: int, facts: dict) -> list[Result]:
        decoded = self._decode(made)
        return [
            Result(
                index=first + k,
                part=0,
                seed=seed,
                image=_to_image(decoded["image"][k]) if "image" in decoded else None,
                text=decoded["text"][k] if "text" in decoded else None,
                facts=facts,
            )
            for k, seed in enumerate(seeds)
        ]

    def _decode(self, made: Bundle) -> dict[str, Any]:
        """Row by row, so that a sample's pixels and words do not depend on its batch."""
        size = next(iter(made.values())).shape[0]
        rows = [self.system.decode({k: v[i : i + 1] for k, v in made.items()}) for i in range(size)]
        return {clock: [row[clock][0] for row in rows] for clock in rows[0]}

    def _record(self, task: Task, seconds: float, forwards: int) -> dict[str, Any]:
        return {
            "model": self.name,
            "model_hash": self.hash,
            "task": task.name,
            "seconds": round(seconds, 3),
            "forwards": forwards,
            "everyway": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def between(carried: Carry, model: Model, request: GenerateRequest) -> Carry:
    """Interpolation of two pictures: their captions' latents and their start noises, on the sphere.

    The start noise of a picture is the deterministic flow run backwards, from data to t = 1, under
    its caption (Bao et al. 2023, arXiv 2303.06555; Song et al. 2021, arXiv 2010.02502).
    """
    system = model.system
    steps = max(request.steps, 25)
    states = {m.name: carried[m.name] for m in system.on("image")}
    text = {m.name: carried[m.name] for m in system.on("text")}
    denoise = system.denoiser()
    grid = torch.linspace(1e-3, 1.0, steps + 1, dtype=torch.float64)
    for t, s in zip(grid[:-1], grid[1:]):
        times = times_for(TEXT_TO_IMAGE, t.repeat(2))
        query = Query(states=states | text, times=times, keep=tuple(states))
        clean = denoise([query])[0]
        states = {k: _flow(system, k, v, clean[k], t, s) for k, v in states.items()}
    weights = torch.linspace(0, 1, request.frames)
    out = {k: slerp(v[0], v[1], weights) for k, v in text.items()}
    return out | {f"start.{k}": slerp(v[0], v[1], weights) for k, v in states.items()}


def _flow(system: System, name: str, x_t, clean, t, s) -> torch.Tensor:
    """One deterministic (DDIM) step between any two times, in either direction."""
    schedule = system.processes[name].schedule
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    eps = (x_t - alpha_t * clean) / sigma_t
    return (alpha_s * clean + sigma_s * eps).float()


def slerp(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation of two states at weights (F,) -> (F, ...)."""
    cosine = torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm()).clamp_min(1e-12)
    angle = torch.arccos(cosine.clamp(-1, 1))
    w = weights.reshape(-1, *([1] * a.ndim))
    if angle.sin().abs() < 1e-4:
        return (1 - w) * a + w * b
    return (torch.sin((1 - w) * angle) * a + torch.sin(w * angle) * b) / angle.sin()


def shipped() -> list[str]:
    """Names of the models inside the package."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))


def load(name_or_path: str = "default", device: str = "auto") -> Model:
    """A shipped model's name or a model folder; "default" is the best model that is shipped.

    Raises ModelError (unknown model) or StoreError (damaged files), one clear line each.
    """
    if name_or_path == "default" and shipped():
        name_or_path = "mini" if "mini" in shipped() else shipped()[0]
    folder = SHIPPED / name_or_path
    if not (folder / "config.json").is_file():
        folder = Path(name_or_path)
    if not (folder / "config.json").is_file():
        names = ", ".join(shipped()) or "none is shipped"
        raise ModelError(f"there is no model {name_or_path!r}; shipped: {names}; or give a folder")
    config, tensors, facts = store.load(folder)
    system = builder(config["system"])(config["config"])
    _fill(system, tensors, folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    system.network.to(device).eval()
    return Model(name=folder.name, hash=store.fingerprint(folder), system=system, facts=facts)


def _fill(system: System, tensors: Mapping[str, Mapping[str, torch.Tensor]], folder: Path) -> None:
    modules = {"network": system.network} | {
        n: m.codec for n, m in system.modalities.items() if isinstance(m.codec, torch.nn.Module)
    }
    for name, module in modules.items():
        try:
            module.load_state_dict({k: v.float() for k, v in tensors[name].items()})
        except (KeyError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise ModelError(f"{folder} does not fit its config ({name}: {first})") from None
        module.eval().requires_grad_(False)


def _to_tensor(image: Image.Image, size: int) -> torch.Tensor:
    """Square centre crop, resized: (3, size, size) in [-1, 1]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return pixels.float() / 127.5 - 1


def _to_image(pixels: torch.Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> an 8-bit RGB picture."""
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())


def samplers() -> tuple[str, ...]:
    """The names that `sampler` takes."""
    return tuple(SAMPLERS)
