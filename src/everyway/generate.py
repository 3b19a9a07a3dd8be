"""Runs a request on a model: every stage of its plan, from raw data to results."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everyway import __version__, library
from everyway.contracts import Bundle, Contexts, Denoise, contexts_in, flat, placed
from everyway.controls.masks import free_places, pinned
from everyway.data.sample import to_tensor
from everyway.guidance import branches, guided, is_off
from everyway.objective import corrupt
from everyway.plan import Carry, Stage, plan
from everyway.request import GenerateRequest, RequestError, known, read_image
from everyway.sampling.loop import Progress, absent_states, final, sample
from everyway.sampling.noise import PerSampleNoise
from everyway.sampling.solvers import Sampler, named_sampler
from everyway.sampling.token_kernels import Truncated, purity
from everyway.system import System
from everyway.tasks import Task, times_for

BATCH = 16  # samples in flight; results stream out batch by batch


@dataclass(frozen=True)
class Preview:
    """Where a run is: step of steps in stage of stages (all counted from 1).

    progress: the states and clean estimates there, which `Model.frame` can show.
    """

    stage: int
    stages: int
    step: int
    steps: int
    progress: Progress = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One thing made.  seed: of this sample alone.  facts: what reproduces and explains it.

    index: among all results, in the order in which they are made.
    part: among those of this sample (a chain, an interpolation).
    """

    index: int
    part: int
    seed: int
    image: Image.Image | None
    text: str | None
    facts: dict[str, Any]


def sampler_of(request: GenerateRequest) -> Sampler:
    """The sampler that a settled request names, with the settings it gives for it."""
    chosen = named_sampler(request.sampler)
    if request.sampler != "purity":
        return chosen
    weight = 1.0 if request.purity_weight is None else request.purity_weight
    return replace(chosen, tokens=purity(weight, request.tokens_per_step))


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A loaded system and the facts of its folder.

    told: what `load` was told, as plain data.  note: what it made of it, in one line.
    """

    name: str
    hash: str
    system: System
    facts: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @staticmethod
    def from_pretrained(
        path_or_hub_id: str | Path, device: str = "auto", dtype: str = "auto", memory: str = "auto"
    ) -> Model:
        """`load` by its other name."""
        return load(path_or_hub_id, device, dtype, memory)

    def save_pretrained(self, folder: str | Path) -> None:
        """A model folder with its card; weights as they are kept, so load in fp32 to keep all."""
        library.save(Path(folder), self.system, self.facts)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """The folder of `save_pretrained` onto the hub; returns its address there."""
        return library.push(repo_id, self.system, self.facts, private)

    def generate(self, request: GenerateRequest | None = None, **settings) -> list[Result]:
        """All results of a request (or of the keyword settings of one).

        Raises RequestError for both at once, and for what is no request.
        """
        if request is None:
            request = GenerateRequest(**settings)
        elif settings:
            raise RequestError(f"a request has its own {', '.join(settings)}; give it alone")
        return [r for r in self.run(request) if isinstance(r, Result)]

    def settled(self, request: GenerateRequest) -> GenerateRequest:
        """The request with this system's own settings where it leaves them open."""
        if not isinstance(request, GenerateRequest):
            raise RequestError(
                f"{request!r:.40} is no GenerateRequest; give settings by name, as in "
                'generate(kind="text-to-image", text="a red circle")'
            )
        settings = ("steps", "guidance", "sampler", "truncation")
        own = {n: getattr(self.system, n) for n in settings}
        settled = request.model_copy(
            update={n: v for n, v in own.items() if getattr(request, n) is None}
        )
        settled.needs_purity(settled.sampler)
        conditions = self.system.conditions.values()
        nulls = [name for c in conditions for name in c.nulls]
        for asks in (c.null_of for c in conditions if c.null_of):
            if settled.text and not settled.null:
                settled = settled.model_copy(update={"null": asks(settled.text)})
        odd = sorted(settled.thresholds.keys() - self.system.modalities.keys())
        if odd or settled.thresholds.keys() & self.system.tokens.keys():
            drawn = sorted(self.system.modalities.keys() - self.system.tokens.keys())
            raise RequestError(f"thresholds are of {', '.join(drawn) or 'no state'} here")
        if settled.null and not nulls:
            raise RequestError(f"this model knows no null; leave out null={settled.null}")
        if settled.null:
            known("null", settled.null, nulls)
        return settled

    def run(self, request: GenerateRequest) -> Iterator[Preview | Result]:
        """Previews while it works, results as they are done."""
        request = self.settled(request)
        stages = plan(request, self.system.tasks)
        raw = self._raw(request)
        together = request.kind == "interpolate"  # its frames belong together
        count, made = request.frames if together else request.n, 0
        size = count if together else BATCH
        for start in range(0, count, size):
            rows = range(start, min(count, start + size))
            for event in self._batch(request, stages, raw, rows):
                if isinstance(event, Result):
                    event, made = replace(event, index=made), made + 1
                yield event

    def each(
        self,
        task: str,
        seeds: Sequence[int],
        *,
        text: Sequence[str] | None = None,
        image: Sequence[Image.Image | str | Path] | None = None,
        settings: Mapping[str, Any] | None = None,
        batch: int = BATCH,
    ) -> list[Result]:
        """One result a seed, each with its own text or picture: many conditions at once.

        image: pictures or their paths.  settings: of a GenerateRequest (steps, guidance, ...).
        Result k is what `generate` gives for that condition and seed.
        Raises RequestError as `generate` does, where there is not one condition a seed, and for a
        task of several stages (a chain, a variation).
        """
        requests = [self.settled(r) for r in _requests(task, seeds, text, image, settings or {})]
        size, out = self.image_size, list[Result]()
        for start in range(0, len(seeds), batch):
            cut, request = slice(start, start + batch), requests[start]
            stages = plan(request, self.system.tasks)
            if len(stages) > 1:
                raise RequestError(f"each is for one task, {task} is several; use generate")
            (stage,) = stages
            raw: dict[str, Any] = {} if text is None else {"text": list(text[cut])}
            if request.label is not None:
                raw["label"] = [request.label] * len(seeds[cut])
            if image is not None:
                raw["image"] = torch.stack([_to_tensor(_picture(i), size) for i in image[cut]])
            noise, began = PerSampleNoise(list(seeds[cut])), time.monotonic()
            last = final(self._sample(stage, self._encoded(raw), noise, request))
            facts = self._record(stage.task, time.monotonic() - began, last.calls)
            out += self._results(self.system, last.states, seeds[cut], start, facts)
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
        if request.label is not None:
            raw["label"] = [request.label]
        return raw

    def frame(self, progress: Progress, row: int = 0) -> tuple[Image.Image, Tensor | None]:
        """(what a run's picture will be, how sure each token is) at a Preview's progress.

        Tokens that are still masked are shown as their likeliest.  The second is (side, side) in
        [0, 1], 0 where a token is masked, or None for pictures that are not made of tokens.
        """
        certainty, shown = None, {}
        for name, clean in progress.clean.items():
            process, cut = self.system.modalities[name].process, slice(row, row + 1)
            shown[name], sure = process.preview(clean[cut], progress.states[name][cut])
            if sure is not None and self.system.clocks[name] == "image":
                certainty = sure[0].reshape(isqrt(sure.shape[1]), -1)
        return to_image(self.system.decode(shown)["image"][0]), certainty

    def _batch(self, request, stages, raw, rows: range) -> Iterator[Preview | Result]:
        together = request.kind == "interpolate"  # its frames share one seed and two pictures
        seeds = [request.seed + (0 if together else k) for k in rows]
        carried = self._encoded(raw)
        if not together:
            carried = self._expanded(carried, len(rows))
        began, shown, calls, noise = time.monotonic(), 0, 0, PerSampleNoise(seeds)
        for number, stage in enumerate(stages):
            system = self._of(stage)
            if system is not self.system:
                carried = carried | self._expanded(self._encoded(raw, system), len(rows))
            if stage.prepare:
                carried = stage.prepare(carried, system, request)
            size = next(iter(carried.values())).shape[0] if carried else len(rows)
            if size != len(noise.seeds):
                noise = PerSampleNoise(seeds[:size])
            for progress in self._sample(stage, carried, noise, request):
                yield Preview(number + 1, len(stages), progress.step, progress.steps, progress)
            generated = [m.name for c in stage.task.generated for m in system.on(c)]
            carried = carried | {name: progress.states[name] for name in generated}
            calls += progress.calls
            if not stage.shown:
                continue
            facts = self._record(stage.task, time.monotonic() - began, calls)
            drawn = {name: carried[name] for name in generated}
            made = self._results(system, drawn, seeds, 0, facts)
            for k, row in enumerate(rows):
                yield replace(made[k], part=row if together else shown)
            shown += 1

    def _of(self, stage: Stage) -> System:
        """The system that a stage runs on."""
        return self.system.systems[stage.system] if stage.system else self.system

    @staticmethod
    def _expanded(carried: Carry, batch: int) -> Carry:
        return {k: v.expand(batch, *v.shape[1:]) for k, v in carried.items()}

    def _encoded(self, raw: Mapping[str, Any], system: System | None = None) -> Carry:
        """Row by row, so that a condition's state does not depend on its batch."""
        system = system or self.system
        count = max((len(v) for v in raw.values()), default=0)
        rows = []
        for i in range(count):
            one = {k: v[i : i + 1] for k, v in raw.items() if k in system.raws}
            rows.append(system.encode(one) | flat(system.contexts(one)))
        names = rows[0] if rows else ()
        return {k: torch.cat([row[k] for row in rows]).to(system.device) for k in names}

    def _sample(
        self, stage: Stage, carried: Carry, noise: PerSampleNoise, request: GenerateRequest
    ) -> Iterator[Progress]:
        """The sampling loop of one stage."""
        system, task, batch = self._of(stage), stage.task, len(noise.seeds)
        roles = {
            n: task.roles[m.clock] for n, m in system.modalities.items() if m.clock in task.roles
        }
        generated = [n for n, role in roles.items() if role.kind == "generate"]
        states = {n: carried[n] for n, role in roles.items() if role.kind == "given"}
        states |= {n: carried[f"start.{n}"] for n in generated if f"start.{n}" in carried}
        known = {n: carried[n] for n in generated if n in carried}
        steps, begin = request.steps, stage.begin
        if begin < 1:  # from what is carried, with as many of the steps as the way is long
            t = torch.full((batch,), begin, dtype=torch.float64)
            reached = system.existing(dict.fromkeys(task.generated, t))
            begin = max(float(t[0]) for t in reached.values())
            steps, times = max(1, round(steps * begin)), times_for(task, torch.full_like(t, begin))
            times = placed(times, system.device)
            states |= corrupt(system, known, times, noise)[0]
        nulls = system.null_contexts(batch, request.null)
        return sample(
            self._denoise(system, task, nulls, noise, request),
            processes=system.processes,
            clocks=system.clocks,
            task=task,
            states=states,
            shapes=system.shapes(batch),
            noise=noise,
            steps=steps,
            sampler=sampler_of(request),
            contexts=system.weighed(contexts_in(carried), nulls, task.contexts),
            thresholds={n: q for n, q in request.thresholds.items() if n in generated},
            t_start=begin,
            device=system.device,
            pin=self._pin(system, known, noise, request) if stage.masked else None,
        )

    def _denoise(
        self,
        system: System,
        task: Task,
        nulls: Contexts,
        noise: PerSampleNoise,
        request: GenerateRequest,
    ) -> Denoise:
        """The system's estimates: guided, then truncated where they are of tokens."""
        lost = [n for b in branches(task) for n in b.without if n not in nulls]
        if lost and not is_off(request.guidance):
            system.conditions[lost[0]].null()  # raises, and says what to do
        made = guided(
            system.denoiser(),
            task,
            system.clocks,
            request.guidance,
            absent_states(system.processes, noise),
            interval=request.guidance_interval,
            null_contexts=nulls,
            processes=system.processes,
        )
        if request.truncation == 1:
            return made
        if not system.tokens:
            raise RequestError("truncation is for models of tokens; leave --truncation out")
        return Truncated(denoise=made, rates=dict.fromkeys(system.tokens, request.truncation))

    def _pin(self, system: System, known: Bundle, noise: PerSampleNoise, request: GenerateRequest):
        """Holds what the mask does not free; states without places are drawn anew."""
        mask = _to_mask(_mask_of(request), self.image_size)
        shapes = {n: system.modalities[n].shape for n in known}
        free = {n: free_places(mask, s) for n, s in shapes.items() if len(s) in (1, 3)}
        return pinned({n: known[n] for n in free}, free, system.processes, noise)

    def _results(
        self, system: System, made: Bundle, seeds: Sequence[int], first: int, facts: dict
    ) -> list[Result]:
        decoded = self._decode(system, made)
        return [
            Result(
                index=first + k,
                part=0,
                seed=seed,
                image=to_image(decoded["image"][k]) if "image" in decoded else None,
                text=decoded["text"][k] if "text" in decoded else None,
                facts=facts,
            )
            for k, seed in enumerate(seeds)
        ]

    def _decode(self, system: System, made: Bundle) -> dict[str, Any]:
        """Row by row, so that a sample's pixels and words do not depend on its batch.

        Raises ModelError for states that are no numbers.
        """
        for name, states in made.items():
            counted = states.is_floating_point() and not states.is_meta
            if counted and not states.isfinite().all():
                raise library.ModelError(
                    f"{self.name} made a state of {name!r} that is not finite; its weights may be "
                    "damaged: get them anew, or try --dtype fp32"
                )
        size = next(iter(made.values())).shape[0]
        rows = [system.decode({k: v[i : i + 1] for k, v in made.items()}) for i in range(size)]
        return {clock: [row[clock][0] for row in rows] for clock in rows[0]}

    def _record(self, task: Task, seconds: float, forwards: int) -> dict[str, Any]:
        return {
            "model": self.name,
            "model_hash": self.hash,
            "task": task.name,
            "seconds": round(seconds, 3),
            "forwards": forwards,
            "loaded": dict(self.told),
            "everyway": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }


def load(
    name_or_path: str | Path = "default",
    device: str = "auto",
    dtype: str = "auto",
    memory: str = "auto",
    parts: Mapping[str, str | Path] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Model:
    """A model ready to run; "default" is the best one that is shipped.

    name_or_path, device, dtype, memory, parts, settings: as in `library.load`, and its errors.
    """
    made = library.load(name_or_path, device, dtype, memory, parts, settings)
    return Model(**vars(made))


def _requests(
    task: str,
    seeds: Sequence[int],
    text: Sequence[str] | None,
    image: Sequence[Any] | None,
    settings: Mapping[str, Any],
) -> list[GenerateRequest]:
    """What `Model.each` is asked for, seed by seed."""
    if own := sorted({"kind", "seed", "n", "text", "images"} & settings.keys()):
        raise RequestError(f"each has no setting {', '.join(own)}; it takes a list with one a seed")
    for what, given in (("texts", text), ("pictures", image)):
        if isinstance(given, (str, Path, Image.Image)):
            raise RequestError(f"each takes a list of {what}, one a seed; put it into a list")
        if given is not None and len(given) != len(seeds):
            raise RequestError(f"{len(seeds)} seeds and {len(given)} {what}; give as many of each")
    if text is not None and not all(isinstance(one, str) for one in text):
        raise RequestError("every text of each is a string; leave text out where there is none")
    images = () if image is None else ("each",)
    return [
        GenerateRequest(
            kind=task,
            seed=seed,
            images=images,
            **({} if text is None else {"text": text[k]}),
            **settings,
        )
        for k, seed in enumerate(seeds)
    ]


def _picture(given: Any) -> Image.Image:
    """A picture, or that of a path; RequestError for anything else."""
    if isinstance(given, (str, Path)):
        return read_image(str(given))
    if not isinstance(given, Image.Image):
        raise RequestError(f"{given!r:.40} is no picture; give one of PIL, or a path")
    return given


def _to_tensor(
    image: Image.Image, size: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Tensor:
    """Square centre crop, resized: (3, size, size) in [-1, 1]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), resample)
    return to_tensor([np.array(image.convert("RGB"))])[0]


def _mask_of(request: GenerateRequest) -> Image.Image:
    """The mask's picture, black where it is transparent, of the same shape as what it masks."""
    mask, picture = read_image(request.mask, "black"), read_image(request.images[0])
    (w, h), (x, y) = mask.size, picture.size
    if abs(w * y - h * x) > 0.02 * w * y:
        raise RequestError(f"the mask is {w}x{h}, the picture {x}x{y}; give both the same shape")
    return mask


def _to_mask(image: Image.Image, size: int) -> Tensor:
    """(1, size, size) bool, True where the picture is bright."""
    return _to_tensor(image, size, Image.Resampling.BOX).mean(0, keepdim=True) > 0


def to_image(pixels: torch.Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> an 8-bit RGB picture."""
    array = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return Image.fromarray(array.permute(1, 2, 0).cpu().numpy())
