"""Runs jobs on a model: many at once, every stage of each one's plan, from raw data to results."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from everyway import __version__, library, lora, upscale
from everyway.contracts import Bundle, Contexts, Denoise, contexts_in, flat, kind_of, placed
from everyway.controls.asking import Change, Changed
from everyway.controls.blend import (
    alternating,
    attention_level,
    layer_level_drawn,
    model_level,
    token_level,
)
from everyway.controls.colour import adjusted
from everyway.controls.focus import focused
from everyway.controls.masks import free_places, pinned
from everyway.controls.paint import FORMS, PaintWeight, painting
from everyway.errors import UsageError
from everyway.guidance import branches, guided, is_off
from everyway.job import Blended, Inputs, Job, Sample, batches, jobs, opened, read
from everyway.media import Medium, medium
from everyway.objective import corrupt
from everyway.placement import machine
from everyway.plan import Carry, Stage, cascaded, enlarging, plan
from everyway.record import Row
from everyway.request import MIXES, NO_STAGES, OWN_STAGES, GenerateRequest, RequestError, known
from everyway.sampling.loop import SamplingProgress, absent_states, sample
from everyway.sampling.noise import PerSampleNoise
from everyway.sampling.solvers import Sampler, named_sampler
from everyway.sampling.token_kernels import Truncated, purity
from everyway.system import System
from everyway.tasks import Task, times_for

BATCH = 16  # samples in flight; results stream out batch by batch
ADAPTED = 4  # systems with LoRAs that are kept ready; they share the weights of the model's own
UPSCALER = "upscaler."
"""What the names of another model's stages begin with."""
Noises = dict[tuple[int, int], PerSampleNoise]
"""(rows of a stage, first row of a part) -> the noise of that part."""
log = logging.getLogger("everyway")


@dataclass(frozen=True)
class Preview:
    """Where a run is: step of steps in stage of stages of one batch (all counted from 1).

    done: share of the whole run, in (0, 1].  jobs: for every row of the batch, its job's place.
    system: which of the model's `systems` the stage runs on; "" is its own.
    progress: the states and clean estimates there, which `Model.frame` can show.
    """

    stage: int
    stages: int
    step: int
    steps: int
    done: float
    jobs: tuple[int, ...]
    system: str
    progress: SamplingProgress = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """One thing made.

    index: among all results of the run, in the order in which they are made.
    job: the place of the job that it belongs to.
    part: among those of this sample (a chain, an interpolation).
    seed: of this sample alone.
    outputs: name -> a picture of Pillow, a text, a number or an array, as its medium has it.
    media: name -> medium of each.
    request: settled, of this sample alone.  inputs: name -> digest of what was given.
    metadata: what reproduces and explains it.
    """

    index: int
    job: int
    part: int
    seed: int
    outputs: Mapping[str, Any]
    media: Mapping[str, Medium] = field(repr=False)
    request: GenerateRequest
    inputs: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(repr=False)

    @property
    def image(self) -> Image.Image | None:
        """The picture that it has, if any."""
        return self.outputs.get("image")

    @property
    def text(self) -> str | None:
        """The text that it has, if any."""
        return self.outputs.get("text")

    @property
    def row(self) -> Row:
        """All that is plain data: what a picture carries, and a line of results.jsonl."""
        plain = {k: v for k, v in self.outputs.items() if not self.media[k].in_file}
        own = {"seed": self.seed, "part": self.part, **plain, "facts": dict(self.metadata)}
        return own | {"request": self.request.model_dump(), "inputs": dict(self.inputs)}

    def save(self, path: str | Path) -> None:
        """The output that such a file holds: .png with the record that replays it, .txt, .npy.

        Of several the first, unless the path ends with the name of one, as in a.depth.npy.
        Raises RequestError where there is none, OSError where it cannot be written.
        """
        path = Path(path)
        fitting = [name for name in self.outputs if self.media[name].suffix == path.suffix]
        if not fitting:
            suffixes = dict.fromkeys(self.media[name].suffix for name in self.outputs)
            raise RequestError(
                f"{str(path)!r} cannot hold this result; give a name in {', '.join(suffixes)}"
            )
        ending = path.stem.rpartition(".")[2]
        name = ending if ending in fitting else fitting[0]
        self.media[name].write(path, self.outputs[name], self.row)


def _finished(stage: Stage, rows: Sequence[Sample], pictures: Sequence[Tensor]) -> list[Tensor]:
    """Decoded pictures (3, H, W) with what of a reference's colours is asked for, and with what a
    mask keeps put back."""
    if rows[0].request.colours:
        pictures = [
            adjusted(picture, row.inputs.reference, row.request.colours)
            for row, picture in zip(rows, pictures)
        ]
    if stage.masked:
        pictures = [
            row.inputs.put_back(picture, row.request.blend) for row, picture in zip(rows, pictures)
        ]
    return [*pictures]


def sampler_of(request: GenerateRequest) -> Sampler:
    """The sampler that a settled request names, with the settings it gives for it."""
    chosen = named_sampler(request.sampler)
    if request.sampler != "purity":
        return chosen
    weight = 1.0 if request.purity_weight is None else request.purity_weight
    return replace(chosen, tokens=purity(weight, request.tokens_per_step))


def paint_weight_of(request: GenerateRequest, system: System) -> PaintWeight:
    """That of a settled request on a system."""
    asked = {"value": request.paint_weight, **FORMS[request.paint_form]}
    return PaintWeight(**{**system.paint, **asked})


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A loaded system and the metadata of its folder.

    load_options: what `load` was given, as plain data.  note: what it made of it, in one line.
    formats: of the files that its weights were read from.
    upscaler: another model, whose cascade enlarges pictures of requests that name one.
    adapted: the LoRAs of a request, by digest and weight -> the system with them, of the last few.
    """

    name: str
    hash: str
    system: System
    metadata: Mapping[str, Any] = field(default_factory=dict)
    load_options: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    formats: library.Formats = field(default_factory=dict)
    upscaler: Model | None = field(default=None, repr=False)
    adapted: dict[Any, System] = field(default_factory=dict, repr=False)

    @staticmethod
    def from_pretrained(
        path_or_hub_id: str | Path, device: str = "auto", dtype: str = "auto", memory: str = "auto"
    ) -> Model:
        """`load` by its other name."""
        return load(path_or_hub_id, device, dtype, memory)

    def save_pretrained(self, folder: str | Path) -> None:
        """A model folder with its card; a model that was not changed keeps its bytes and its hash.

        Loaded in half precision, weights of float32 are rounded: load in fp32 to keep all.
        """
        library.save(Path(folder), self.system, self.metadata, self.formats)

    def with_upscaler(self, other: Model) -> Model:
        """This model, whose pictures another one's cascade enlarges where a request asks for one.

        Raises RequestError for a model that has no cascade.
        """
        if not other.enlargers:
            raise RequestError(f"{other.name} enlarges no pictures; give a model with a cascade")
        return replace(self, upscaler=other)

    @property
    def enlargers(self) -> dict[str, System]:
        """What enlarges pictures, in order, by the name that a stage has it by: the stages of the
        system's cascade, or itself where it is one."""
        itself = {"": self.system} if upscale.enlarges(self.system) else {}
        return itself or upscale.stages(self.system)

    def push_to_hub(self, repo_id: str, private: bool = False) -> str:
        """The folder of `save_pretrained` onto the hub; returns its address there."""
        return library.push(repo_id, self.system, self.metadata, self.formats, private)

    def __repr__(self) -> str:
        return f"<Model {self.note or self.name}; {', '.join(self.system.tasks)}>"

    def generate(self, request: Work | None = None, **settings: Any) -> list[Result]:
        """All results of `run`, of jobs or of the keyword settings of a request.

        Among settings pictures may be of Pillow, arrays, tensors, bytes and paths; text, label and
        image (the one of images) may be lists: n samples of each condition, whose seeds run on.
        Raises RequestError for both at once, and for what is no request.
        """
        if request is None:
            request = jobs(settings, self.system)
        elif settings:
            raise RequestError(f"a request has its own {', '.join(settings)}; give it alone")
        return [r for r in self.run(request) if isinstance(r, Result)]

    def run(self, work: Work) -> Iterator[Preview | Result]:
        """Jobs on their way: previews while it works, results as they are done.

        work: a request, whose names are paths then, or a Job; or a list of both.  Samples of equal
        settings share batches, and what is made of each is the same as alone.  To cancel, close the
        iterator or ask it for nothing more: no further step is computed.
        Raises RequestError before the first step.
        """
        samples = [s for k, job in enumerate(self._jobs(work)) for s in self.samples(job, k)]
        index, done, whole = count(), 0, sum(s.rows for s in samples)
        for batch in batches(samples, BATCH):
            rows = sum(s.rows for s in batch)
            for event in self.batch(batch):
                if isinstance(event, Preview):
                    yield replace(event, done=(done + event.done * rows) / whole)
                else:
                    yield replace(event, index=next(index))
            done += rows

    def samples(self, job: Job, number: int = 0) -> Iterator[Sample]:
        """Every sample of a job, which they share the inputs of: settled, read and checked.

        number: the job's place among those of a run.  Raises RequestError for what cannot be made.
        """
        request = self.settled(job.request)
        first, *later = self._stages(request)
        tasks = tuple(stage.task.name for stage in (first, *later))
        inputs = read(replace(job, request=request), self.system, self.image_size)
        needed = {*self._of(first.system).given(first.task)}
        if first.enlarges:
            upscale.larger(inputs.size, self._of(first.system), request.scale)
            needed -= {upscale.LOW_RES}
        if missing := needed - inputs.values.keys() - inputs.contexts.keys():
            raise RequestError(f"{request.kind} needs {', '.join(sorted(missing))}; give it")
        for adapter, _ in inputs.loras:
            adapter.check_base(self.name, self.hash)
        if inputs.canvas:
            painting([inputs.canvas], self._of(first.system), first.task)  # raises now or never
        for note in inputs.notes:
            log.warning(note)
        for k in range(request.n):
            own = request.model_copy(update={"n": 1, "seed": request.seed + k})
            yield Sample(job=number, request=own, inputs=inputs, tasks=tasks)

    def batch(self, batch: Sequence[Sample]) -> Generator[Preview | Result, None, None]:
        """Samples that are `alike`, at most BATCH, together through every stage.

        What is made of each is the same in any batch, so whoever has many jobs at a time (a server)
        chooses what it runs together.
        """
        return self._with_loras(batch[0].inputs)._batch(batch)

    def _batch(self, batch: Sequence[Sample]) -> Generator[Preview | Result, None, None]:
        """Without the LoRAs of its request, which this model has by now."""
        request = batch[0].request
        stages = self._stages(request)
        rows = [sample for sample in batch for _ in range(sample.rows)]
        carried = self._carried(batch, self.system, stages)
        began, shown, calls = time.monotonic(), 0, 0
        noises: Noises = {}
        decoded: dict[str, Any] = {"image": [row.inputs.pixels for row in rows]}
        for number, (stage, after) in enumerate(zip(stages, [*stages[1:], None])):
            system, given, asked = self._of(stage.system), carried, request
            if number and request.language:  # what was made before this stage is in it
                asked = request.model_copy(update={"null": request.language})
            if stage.enlarges:
                given = self._low(stage, rows, decoded["image"])
                asked = request if number == 0 else upscale.request_of(system)
            elif system is not self.system:
                given = carried | self._carried(batch, system, stages)
            if stage.prepare:
                given = stage.prepare(given, system, request)
            made, asks = yield from self._made(stages, number, given, asked, rows, noises)
            calls += asks
            if not stage.enlarges:
                carried, decoded = given | made, {}
            if not stage.shown:
                continue
            decoded |= self._decode(system, made)
            if "image" in decoded:
                decoded["image"] = _finished(stage, rows, decoded["image"])
            if after and after.enlarges:
                continue
            metadata = self._record(stage.task, time.monotonic() - began, calls)
            for k, row in enumerate(rows):
                one = {name: values[k] for name, values in decoded.items()}
                part = k if row.rows > 1 else shown
                yield self._result(row, one, part, metadata)
            shown += 1

    def part(self, request: GenerateRequest, part: int) -> Result:
        """One of the results of a request of one sample; those after it are not made."""
        results = (r for r in self.run(request) if isinstance(r, Result))
        return next(r for r in results if r.part == part)

    def settled(self, request: GenerateRequest) -> GenerateRequest:
        """The request with this system's own settings where it leaves them open.

        Raises RequestError for what this system cannot do.
        """
        settings = ("steps", "guidance", "sampler", "truncation")
        first = self._of(self._stages(request)[0].system)
        own = {n: getattr(first, n) for n in settings}
        settled = request.model_copy(
            update={n: v for n, v in own.items() if getattr(request, n) is None}
        )
        settled.needs_purity(settled.sampler)
        odd = sorted(settled.thresholds.keys() - self.system.modalities.keys())
        if odd or settled.thresholds.keys() & self.system.tokens.keys():
            drawn = sorted(self.system.modalities.keys() - self.system.tokens.keys())
            raise RequestError(f"thresholds are of {', '.join(drawn) or 'no state'} here")
        settled = self._with_paint(settled) if settled.paint else settled
        return self._with_null(self._with_mix(settled))

    def _with_mix(self, request: GenerateRequest) -> GenerateRequest:
        """How its contexts are mixed, where it has several."""
        if len(request.weights) < 2:
            return request
        mixes = MIXES if self.system.mixes else ("model",)
        mix = request.mix or mixes[0]
        if mix not in mixes:
            raise RequestError(f"this model mixes contexts step by step; give mix model, not {mix}")
        return request.model_copy(update={"mix": mix})

    def _with_null(self, request: GenerateRequest) -> GenerateRequest:
        """The null that it names; where its language chooses one, that of its text by default."""
        conditions = self.system.conditions.values()
        chosen_by_language = next((c for c in conditions if c.null_of), None)
        if chosen_by_language is None and request.language:
            raise RequestError("this model has no choice of language; leave --language out")
        if chosen_by_language is not None:
            if request.language:
                known("language", request.language, chosen_by_language.nulls)
            text = request.text
            null = request.null or (chosen_by_language.null_of(text) if text else request.language)
            request = request.model_copy(update={"null": null})
        nulls = [name for condition in conditions for name in condition.nulls]
        if request.null and not nulls:
            raise RequestError(f"this model knows no null; leave out null={request.null}")
        if request.null:
            known("null", request.null, nulls)
        return request

    def _with_paint(self, request: GenerateRequest) -> GenerateRequest:
        """A painted request with this system's own settings where it leaves them open."""
        own = PaintWeight(**self.system.paint)
        (form,) = (n for n, f in FORMS.items() if f == {k: getattr(own, k) for k in f})
        settings = {"paint_weight": own.value, "paint_form": form}
        return request.model_copy(
            update={n: v for n, v in settings.items() if getattr(request, n) is None}
        )

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that this model reads."""
        return int(self.metadata.get("image_size", 64))

    def frame(
        self, progress: SamplingProgress, row: int = 0, system: str = ""
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(a row's outputs, how sure each token of them is) at a Preview's progress, each by name.

        system: the Preview's, whose modalities these are.

        Tokens that are still masked are shown as their likeliest.  Of how sure it is, (side, side)
        or (L,) in [0, 1] and 0 where a token is masked, there is none for outputs without tokens.
        """
        of, shown, certainty = self._of(system), Bundle(), dict[str, Tensor]()
        for name, clean in progress.clean.items():
            own, cut = of.modalities[name], slice(row, row + 1)
            shown[name], sure = own.process.preview(clean[cut], progress.states[name][cut])
            if sure is not None:
                side = isqrt(sure.shape[1])
                square = (side, side) if side**2 == sure.shape[1] else (-1,)
                certainty[own.source] = sure[0].reshape(square)
        return _outputs(of, {k: raw[0] for k, raw in of.decode(shown).items()}), certainty

    def _jobs(self, work: Work) -> list[Job]:
        """RequestError for what is neither a request nor a job."""
        listed = work if isinstance(work, (list, tuple)) else [work]
        for one in listed:
            if not isinstance(one, (GenerateRequest, Job)):
                raise RequestError(
                    f"{one!r:.40} is no GenerateRequest; give settings by name, as in "
                    'generate(kind="text-to-image", text="a red circle")'
                )
        return [one if isinstance(one, Job) else opened(one, self.system) for one in listed]

    def _with_loras(self, inputs: Inputs) -> Model:
        """This model with the LoRAs of a request; its own weights stay as they are."""
        if not inputs.loras:
            return self
        key = tuple((adapter.digest, weight) for adapter, weight in inputs.loras)
        if key not in self.adapted:
            if self.system.placement and self.system.placement.files:
                raise RequestError("a LoRA needs the experts in memory; load with --memory low")
            network = lora.adapted(self.system.network, inputs.loras)
            for former in [*self.adapted][: 1 - ADAPTED]:
                self.adapted.pop(former, None)
            self.adapted[key] = replace(self.system, network=network)
        return replace(self, system=self.adapted[key])

    def _made(
        self,
        stages: Sequence[Stage],
        number: int,
        given: Carry,
        request: GenerateRequest,
        rows: Sequence[Sample],
        noises: Noises,
    ) -> Generator[Preview, None, tuple[Bundle, int]]:
        """What one stage generates, and the calls of the network that it took.

        More rows than BATCH, as of many frames, run in parts, each with the noise that it had in
        the stages before.
        """
        stage = stages[number]
        system = self._of(stage.system)
        size = next(iter(given.values())).shape[0] if given else len(rows)
        free = [s.inputs.free(self.image_size) for s in rows if stage.masked]
        parts, calls = list[Bundle](), 0
        for start in range(0, size, BATCH):
            cut = slice(start, min(start + BATCH, size))
            seeds, jobs = zip(*((s.request.seed, s.job) for s in rows[cut]))
            noise = noises.setdefault((size, start), PerSampleNoise([*seeds]))
            own = {name: value[cut] for name, value in given.items()}
            change = None
            if request.paint and not number:  # the first stage lays the picture out
                canvases = [row.inputs.canvas for row in rows[cut]]
                change = painting(canvases, system, stage.task, paint_weight_of(request, system))
            for progress in self._sample(stage, own, noise, request, free[cut], change):
                share = (start + (cut.stop - start) * progress.step / progress.steps) / size
                done = (number + share) / len(stages)
                where = number + 1, len(stages), progress.step, progress.steps
                yield Preview(*where, done, jobs, stage.system, progress)
            parts.append(progress.states)
            calls += progress.calls
        generated = [m.name for c in stage.task.generated for m in system.on(c)]
        return {name: torch.cat([part[name] for part in parts]) for name in generated}, calls

    def _plan(self, request: GenerateRequest) -> tuple[Stage, ...]:
        """The stages of a request's plan, given its contexts where it has some."""
        stages, given = plan(request, self.system.tasks), request.weights
        if not given:
            return stages
        (stage,), named = stages, {*request.given, *request.context_weights}
        weights = {name: w for name, w in stage.task.contexts.items() if name in named}
        for raw, weight in given.items():
            alone = weight if len(given) == 1 else 1.0
            weights |= dict.fromkeys(self.system.contexts_of(raw), alone)
        return (replace(stage, task=replace(stage.task, contexts=weights)),)

    def _result(self, row: Sample, decoded: Mapping[str, Any], part: int, metadata: Row) -> Result:
        """Of one row, as codecs decoded it."""
        inputs, media = row.inputs, self.system.media
        return Result(
            index=0,
            job=row.job,
            part=part,
            seed=row.request.seed,
            outputs=_outputs(self.system, decoded),
            media={name: medium(name, media) for name in decoded},
            request=row.request,
            inputs=inputs.digests,
            metadata={**metadata, "notes": list(inputs.notes)} if inputs.notes else metadata,
        )

    def _of(self, name: str) -> System:
        """The system of that name that a stage runs on; "" is the model's own."""
        if not name:
            return self.system
        others = self.upscaler.enlargers if self.upscaler else {}
        return {**self.system.systems, **{f"{UPSCALER}{n}": s for n, s in others.items()}}[name]

    def _stages(self, request: GenerateRequest) -> tuple[Stage, ...]:
        """Of a request's plan and of the cascade that it asks for.

        Raises RequestError where there is no cascade.
        """
        upscaling = request.kind == "upscale"
        enlargers = {} if self.enlargers.keys() == {""} and not upscaling else self.enlargers
        if request.upscale not in (OWN_STAGES, NO_STAGES):
            if self.upscaler is None:
                how = f"model.with_upscaler(load({request.upscale!r}))"
                raise RequestError(f"{request.upscale!r} is not loaded here; give it: {how}")
            enlargers = {f"{UPSCALER}{n}": s for n, s in self.upscaler.enlargers.items()}
        if upscaling:
            if not enlargers:
                raise RequestError(f"{self.name} enlarges no pictures; give a model with a cascade")
            last = [*enlargers][-1]
            return (enlarging(last, enlargers[last], request.text),)
        if request.upscale == NO_STAGES:
            enlargers = {}
        if request.scale is not None and not enlargers:
            raise RequestError("nothing enlarges pictures here; leave --scale out")
        return cascaded(self._plan(request), enlargers, request.text)

    def _carried(self, batch: Sequence[Sample], system: System, stages: Sequence[Stage]) -> Carry:
        """The encoded inputs of all samples; those that samples share are encoded once.

        Of states only those that a stage of this system may read.
        """
        clocks = {c for s in stages if self._of(s.system) is system for c in s.reads}
        inputs, focus = {id(s.inputs): s.inputs for s in batch}, batch[0].request.focus
        encoded = {
            key: self._encoded(own.values, system, clocks)
            | self._blended(own.contexts, system, focus)
            for key, own in inputs.items()
        }
        parts = [encoded[id(s.inputs)] for s in batch]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _low(self, stage: Stage, rows: Sequence[Sample], pictures: Sequence[Tensor]) -> Carry:
        """What a stage that enlarges is given of pictures (3, H, W), and of their texts."""
        system, given = self._of(stage.system), list[Carry]()
        reads = "text" in system.given(stage.task)
        for row, picture in zip(rows, pictures):
            size = upscale.larger(picture.shape[-2:], system, row.request.scale)
            raw = {upscale.LOW_RES: upscale.enlarged(picture, size)}
            raw |= {"text": row.inputs.values["text"]} if reads else {}
            given.append(flat(system.contexts(raw)))
        return {k: torch.cat([one[k] for one in given]).to(system.device) for k in given[0]}

    def _encoded(
        self, values: Mapping[str, Sequence[Any]], system: System, clocks: Collection[str]
    ) -> Carry:
        """Row by row, so that a condition's state does not depend on its batch."""
        side, raws = self.image_size, system.raws
        raw = {k: medium(k, system.media).tensor(v, side) for k, v in values.items() if k in raws}
        rows = []
        for i in range(max(map(len, raw.values()), default=0)):
            one = {name: v[i : i + 1] for name, v in raw.items()}
            rows.append(system.encode(one, clocks) | flat(system.contexts(one)))
        names = rows[0] if rows else ()
        return {k: torch.cat([row[k] for row in rows]).to(system.device) for k in names}

    def _blended(
        self, contexts: Mapping[str, Blended], system: System, focus: Mapping[str, float]
    ) -> Carry:
        """The contexts of a request, each at its focus."""
        made: Contexts = {}
        for name, given in contexts.items():
            own = given.contexts(name, system, self.image_size)
            for each, context in own.items():
                leading = system.conditions[kind_of(each)].leading
                if leading is not None:
                    tokens = focused(context.tokens, focus[name], leading)
                    context = replace(context, tokens=tokens)
                made[each] = context.to(system.device)
        return flat(made)

    def _sample(
        self,
        stage: Stage,
        carried: Carry,
        noise: PerSampleNoise,
        request: GenerateRequest,
        free: Sequence[Tensor],
        change: Change | None,
    ) -> Iterator[SamplingProgress]:
        """The sampling loop of one stage.  free: the mask of every row, where the stage has any.
        change: of every query, where there is one."""
        system, task, batch = self._of(stage.system), stage.task, len(noise.seeds)
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
        nulls = system.null_contexts(batch, request.null or task.null, task)
        shapes = system.shapes(batch)
        denoise = self._denoise(system, task, nulls, noise, request)
        if stage.enlarges:
            shapes = upscale.shapes_of(shapes, carried[f"context.{upscale.LOW_RES}"])
            denoise = upscale.tiled(denoise, system)
        with _naming_strength(request, steps):
            return sample(
                Changed(denoise=denoise, change=change) if change else denoise,
                processes=system.processes,
                clocks=system.clocks,
                task=task,
                states=states,
                shapes=shapes,
                noise=noise,
                steps=steps,
                sampler=sampler_of(request),
                contexts=system.weighed(contexts_in(carried), nulls, task.contexts),
                thresholds={n: q for n, q in request.thresholds.items() if n in generated},
                t_start=begin,
                device=system.device,
                pin=self._pin(system, known, noise, free) if free else None,
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
        if len(request.weights) > 1:
            made = Changed(denoise=made, change=self._mixed(system, task, noise, request))
        if request.truncation == 1:
            return made
        if not system.tokens:
            raise RequestError("truncation is for models of tokens; leave --truncation out")
        return Truncated(denoise=made, rates=dict.fromkeys(system.tokens, request.truncation))

    @staticmethod
    def _mixed(
        system: System, task: Task, noise: PerSampleNoise, request: GenerateRequest
    ) -> Change:
        """What mixes the contexts of a request in every query."""
        own = {raw: system.contexts_of(raw) for raw in request.weights}
        weights = {name: request.weights[raw] for raw, names in own.items() for name in names}
        network: Any = system.network
        match request.mix:
            case "attention":
                return attention_level(weights)
            case "layer":
                return layer_level_drawn(weights, network.context_layers, noise)
            case "tokens":
                return token_level(weights)
        turns = [own[raw] for raw in alternating(request.weights, request.steps)]
        return model_level(turns, task.generated[0])

    @staticmethod
    def _pin(system: System, known: Bundle, noise: PerSampleNoise, masks: Sequence[Tensor]):
        """Holds what the masks do not free; states without places are drawn anew."""
        shapes = {n: system.modalities[n].shape for n in known}
        free = {
            n: torch.stack([free_places(mask, s) for mask in masks])
            for n, s in shapes.items()
            if len(s) in (1, 3)
        }
        return pinned({n: known[n] for n in free}, free, system.processes, noise)

    def _decode(self, system: System, made: Bundle) -> dict[str, Any]:
        """Row by row, so that a sample's pixels and words do not depend on its batch.

        Raises ModelError for states, and for what is decoded of them, that are no numbers.
        """
        self._finite(made, "a state")
        size = next(iter(made.values())).shape[0]
        rows = [system.decode({k: v[i : i + 1] for k, v in made.items()}) for i in range(size)]
        for row in rows:
            self._finite(row, "an output")
        return {name: [row[name][0] for row in rows] for name in rows[0]}

    def _finite(self, made: Mapping[str, Any], what: str) -> None:
        for name, value in made.items():
            counted = isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta
            if counted and not value.isfinite().all():
                raise library.ModelError(
                    f"{self.name} made {what} of {name!r} that is not finite; its weights may be "
                    "damaged: get them anew, or try --dtype fp32"
                )

    def _record(self, task: Task, seconds: float, forwards: int) -> dict[str, Any]:
        work = {"task": task.name, "seconds": round(seconds, 3), "forwards": forwards}
        return self.made_by | work

    @property
    def made_by(self) -> dict[str, Any]:
        """What stands in every record: model, versions, and the machine that computes."""
        other = self.upscaler
        return ({"upscaler": other.name, "upscaler_hash": other.hash} if other else {}) | {
            "model": self.name,
            "model_hash": self.hash,
            "loaded": dict(self.load_options),
            "machine": machine(self.system.device),
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


def _outputs(system: System, decoded: Mapping[str, Any]) -> dict[str, Any]:
    """One sample as codecs decoded it, by name, as its media have it."""
    return {name: medium(name, system.media).show(raw) for name, raw in decoded.items()}


@contextmanager
def _naming_strength(request: GenerateRequest, steps: int) -> Iterator[None]:
    """What a sampler refuses of the steps that a strength leaves it is told with the strength."""
    try:
        yield
    except UsageError as error:
        if request.strength == 1:
            raise
        raise RequestError(
            f"strength {request.strength:g} leaves {steps} of {request.steps} steps: {error}; "
            "change the strength or the steps"
        ) from None


Work = GenerateRequest | Job | Sequence[GenerateRequest | Job]
"""What `Model.run` takes."""
