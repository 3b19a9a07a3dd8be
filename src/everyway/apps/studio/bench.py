"""What the pages share: models, the work on its way, and the folder of what was made."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, tensor

from everyway.apps import files
from everyway.atomic import atomic_write
from everyway.generate import Model, Preview, Result, load
from everyway.job import Job, digest
from everyway.library import ModelError, folder_of
from everyway.media import medium
from everyway.plan import plan
from everyway.record import Metadata, Record, record_of
from everyway.request import KINDS, NEEDS_IMAGES, NEEDS_TEXT, GenerateRequest, RequestError
from everyway.tasks import times_for

FRAMES = 12
"""Of a run, at most so many are decoded and shown on its way, evenly spread."""
MOST = 16
"""Samples a request, of which a page shows all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """What is being made, as it is known so far.

    done: share of the run, in (0, 1].  step of steps in stage of stages.
    rows: a sample each, name -> picture or text.  sure: a sample each, name -> how sure every token
    of it is (side, side) or (L,), in [0, 1].  times: clock -> its time.
    """

    done: float
    step: int
    steps: int
    stage: int
    stages: int
    rows: Sequence[Mapping[str, Any]]
    sure: Sequence[Mapping[str, Tensor]]
    times: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A result that is kept.  row: its line in the folder; `image` in it names its picture."""

    result: Result
    row: Mapping[str, Any]


@dataclass(eq=False)
class Studio:
    """Models by name, of those that it was given; what was made goes to the folder `out`.

    names: what pages offer.  The first one draws the front page.
    """

    out: Path
    names: Sequence[str]
    _models: dict[str, Model] = field(default_factory=dict)
    _examples: dict[str, tuple[Image.Image, Sequence[Frame]]] = field(default_factory=dict)
    _stops: dict[str, threading.Event] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.folder = files.Folder(self.out)

    def model(self, name: str) -> Model:
        """Loaded once.  RequestError for one that this studio was not given."""
        if name not in self.names:
            raise RequestError(f"model {name!r} is not here; choose one of {', '.join(self.names)}")
        with self._lock:
            if name not in self._models:
                self._models[name] = load(name)
            return self._models[name]

    @property
    def loaded(self) -> Mapping[str, Model]:
        """Those in memory."""
        return dict(self._models)

    def forget(self, name: str) -> None:
        """Takes a model out of memory, once nothing uses it."""
        self._models.pop(name, None)

    def kinds(self, name: str) -> list[str]:
        """The kinds of request that a model can do, in the order of KINDS."""
        return [kind for kind in KINDS if self._does(self.model(name), kind)]

    @staticmethod
    def _does(model: Model, kind: str) -> bool:
        """Whether there is a plan for the plainest request of that kind."""
        given: dict[str, Any] = {"images": ("a",) * NEEDS_IMAGES.get(kind, 0)}
        given |= {"text": "a"} if kind in (*NEEDS_TEXT, "edit-image") else {}
        given |= {"mask": "a"} if kind == "inpaint" else {}
        given |= {"label": 0} if kind == "class-to-image" else {}
        try:
            plan(GenerateRequest(kind=kind, **given), model.system.tasks)
        except RequestError:
            return False
        return kind != "upscale" or bool(model.enlargers)

    def example(self, text: str) -> tuple[Image.Image, Sequence[Frame]]:
        """What the first model draws of a text, or of nothing where it reads none, and how."""
        if text not in self._examples:
            model, name = self.model(self.names[0]), self.names[0]
            asked = {"kind": "text-to-image", "text": text}
            if "text-to-image" not in model.system.tasks:
                asked = {"kind": "image"}
            request = model.settled(GenerateRequest(model=name, **asked))
            events = [*self._watched(model, Job(request=request))]
            frames = [event for event in events if isinstance(event, Frame)]
            self._examples[text] = events[-1].image, frames
        return self._examples[text]

    @staticmethod
    def system(name: str) -> str:
        """Which system a model is, without its weights; "" where its folder does not say."""
        with suppress(ModelError, OSError, ValueError, LookupError, TypeError):
            config = json.loads((folder_of(name) / "config.json").read_text(encoding="utf-8"))
            return config["config"]["system"]
        return ""

    def keep(self, picture: Image.Image | bytes) -> str:
        """A picture that was given, kept beside the results for a replay; its path."""
        content = picture if isinstance(picture, bytes) else png(picture)
        path = self.out / "given" / f"{digest(content)[:12]}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
        return str(path)

    def run(self, request: GenerateRequest, session: str = "") -> Iterator[Frame | Made]:
        """A request whose pictures are kept here: frames on its way, then its results, kept.

        session: whose work it is; `stop` ends it, and what is then on its way is kept as it is.
        """
        model = self.model(request.model)
        request, asked = model.settled(request), request
        stop = self._stops[session] = threading.Event()
        for event in self._watched(model, self._job(request)):
            if isinstance(event, Result):
                yield self._made(event, asked)
            elif not stop.is_set():
                yield event
            else:
                yield from self._stopped(event, model, request, asked)
                return

    def _watched(self, model: Model, job: Job) -> Iterator[Frame | Result]:
        """A settled job: at most FRAMES of its previews, decoded, and its results."""
        shown = 0.0
        for event in model.run(job):
            if isinstance(event, Result):
                yield event
            elif event.done - shown >= 1 / FRAMES or not shown:
                shown = event.done
                yield self._frame(event, model, job.request)

    def stop(self, session: str) -> None:
        """Ends what runs for a session, after the step that it is in."""
        if session in self._stops:
            self._stops[session].set()

    def _job(self, request: GenerateRequest) -> Job:
        given = (self.out / "given").resolve()
        held = {}
        for name in request.paths:
            path = Path(name).resolve()
            if path.parent not in (given, self.out.resolve()):
                raise RequestError(f"{name!r} is not a picture of this studio; give it anew")
            with suppress(OSError):
                held[name] = path.read_bytes()
        return Job(request=request, files=held)

    def _frame(self, event: Preview, model: Model, request: GenerateRequest) -> Frame:
        count = next(iter(event.progress.states.values())).shape[0]
        seen = [model.frame(event.progress, row, event.system) for row in range(count)]
        return Frame(
            done=event.done,
            step=event.step,
            steps=event.steps,
            stage=event.stage,
            stages=event.stages,
            rows=[outputs for outputs, _ in seen],
            sure=[sure for _, sure in seen],
            times=self._times(event, model, request),
        )

    @staticmethod
    def _times(event: Preview, model: Model, request: GenerateRequest) -> dict[str, float]:
        """Clock -> where it is: of a stage of the model's own."""
        stages = plan(request, model.system.tasks)
        if event.system or event.stage > len(stages):
            return {}
        task = stages[event.stage - 1].task
        return {c: float(t[0]) for c, t in times_for(task, tensor([event.progress.t])).items()}

    def _made(self, result: Result, asked: GenerateRequest) -> Made:
        return Made(result=result, row=self.folder.save(result, result.request, asked))

    def _stopped(
        self, frame: Frame, model: Model, request: GenerateRequest, asked: GenerateRequest
    ) -> Iterator[Frame | Made]:
        """What was on its way as results, whose record says where they were stopped."""
        yield frame
        where = {"task": request.kind, "stopped": [frame.step, frame.steps]}
        for k, outputs in enumerate(frame.rows):
            one = request.model_copy(update={"n": 1, "seed": request.seed + k})
            result = Result(
                index=k,
                job=0,
                part=0,
                seed=one.seed,
                outputs=outputs,
                media={name: medium(name, model.system.media) for name in outputs},
                request=one,
                metadata=model.made_by | where,
            )
            yield self._made(result, asked)

    def rows(self) -> list[dict[str, Any]]:
        """Every line of the folder that can be read, the newest first."""
        path = self.out / files.ROWS
        rows = []
        for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
            with suppress(ValueError, RecursionError):
                rows.append(json.loads(line) | {"record": record_of(line)})
        return rows[::-1]

    def replayed(self, record: Record, picture: Path) -> tuple[bool, str]:
        """(whether its pixels come again bit for bit, what differs here if not)."""
        model = self.model(record.request.model)
        if model.hash != record.metadata.model_hash:
            return False, f"model was {record.metadata.model_hash}, here it is {model.hash}"
        job = self._job(record.request)
        results = (r for r in model.run(job) if isinstance(r, Result))
        made = next(r for r in results if r.part == record.part)
        if files.same_pixels(picture, made.image):
            return True, ""
        return False, "; ".join(record.metadata.differences(Metadata(**made.metadata)))


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    held = io.BytesIO()
    picture.save(held, format="PNG")
    return held.getvalue()
