"""What the pages share: models, running work, and the folder of what was made."""

from __future__ import annotations

import io
import json
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import tensor

from everyway.apps import files
from everyway.apps.cli.making import sparing
from everyway.apps.server.scheduler import Cancelled, Scheduler, Step, Ticket
from everyway.apps.studio.trainings import Trainings
from everyway.apps.studio.work import Work
from everyway.atomic import atomic_write
from everyway.errors import UsageError
from everyway.generate import Model, Result, load
from everyway.job import Job, digest, remarks
from everyway.library import ModelError, folder_of
from everyway.media import medium
from everyway.plan import plan
from everyway.record import Metadata, Record, record_of
from everyway.request import KINDS, NEEDS_IMAGES, NEEDS_TEXT, GenerateRequest, RequestError
from everyway.tasks import times_for

MOST = 16
"""How many samples a request may have, so that a page shows all of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A result that is kept.  row: its line in the folder; `image` in it names its picture."""

    result: Result
    row: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A picture, words that say the same, the steps of its run with frames, and the result."""

    picture: Image.Image
    words: str
    film: Sequence[Step]
    result: Result


@dataclass(eq=False)
class Studio:
    """The models of a studio and all that it makes, which goes into the folder `out`.

    names: the models that pages offer; the first one draws the front page.
    scheduler: runs all work of the studio and of the API beside it, and holds the models in memory.
    trainings: those that were started here.
    """

    out: Path
    names: list[str]
    scheduler: Scheduler
    trainings: Trainings = field(default_factory=Trainings)
    _examples: dict[str, Example] = field(default_factory=dict)
    _works: dict[str, Work] = field(default_factory=dict)
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.folder = files.Folder(self.out)

    def model(self, name: str) -> Model:
        """A model, loaded once.  Raises RequestError for one that this studio was not given."""
        if name not in self.names:
            raise RequestError(f"model {name!r} is not here; choose one of {', '.join(self.names)}")
        with self._loading:
            if name not in self.scheduler.models:
                self.scheduler.models[name] = sparing(load(name))
            return self.scheduler.models[name]

    @property
    def loaded(self) -> Mapping[str, Model]:
        """The models in memory, by name."""
        return dict(self.scheduler.models)

    def forget(self, name: str) -> None:
        """Takes a model out of memory, once nothing uses it."""
        self.scheduler.models.pop(name, None)

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

    def example(self, text: str) -> Example:
        """What the first model draws of a text; if it does not read the text, what it draws without
        one, with words if it can."""
        if text not in self._examples:
            name = self.names[0]
            asked: dict[str, Any] = {"kind": "joint" if "joint" in self.kinds(name) else "image"}
            if self.reads(name, text):
                asked = {"kind": "text-to-image", "text": text}
            ticket = self.scheduler.submit(Job(request=GenerateRequest(model=name, **asked)))
            film = [event for event in ticket.events() if isinstance(event, Step) and event.frames]
            (made,) = ticket.results()
            words = made.text or asked.get("text", "")
            self._examples[text] = Example(picture=made.image, words=words, film=film, result=made)
        return self._examples[text]

    @staticmethod
    def knows(model: Model) -> list[str]:
        """The objects and colours that a model has words for; [] for one that reads any words."""
        lexicons = (getattr(codec, "lexicon", None) for codec in model.system.codecs.values())
        words = next((known for known in lexicons if known), None)
        return [*words.objects, *words.backgrounds] if words else []

    def reads(self, name: str, text: str) -> bool:
        """Whether a model draws that text."""
        model = self.model(name)
        if "text-to-image" not in model.system.tasks:
            return False
        try:
            model.system.reads(text)
        except UsageError:
            return False
        return True

    def remarks(self, name: str, text: str) -> list[str]:
        """What a model does not read of a text, and how it completes it, a line each."""
        system = self.model(name).system
        try:
            return [*remarks(text, system)]
        except UsageError as error:
            return [str(error)]

    @staticmethod
    def system(name: str) -> str:
        """Which system a model is, without its weights; "" where its folder does not say."""
        with suppress(ModelError, OSError, ValueError, LookupError, TypeError):
            config = json.loads((folder_of(name) / "config.json").read_text(encoding="utf-8"))
            return config["config"]["system"]
        return ""

    def within(self, name: str) -> str:
        """Where a file lies in the folder of what was made; "" for one that is not in it."""
        root, path = self.out.resolve(), Path(name).resolve()
        inside = path.is_file() and path.is_relative_to(root)
        return path.relative_to(root).as_posix() if inside else ""

    def keep(self, picture: Image.Image | bytes) -> str:
        """A picture that was given, kept beside the results for a replay; its path."""
        content = picture if isinstance(picture, bytes) else png(picture)
        path = self.out / "given" / f"{digest(content)[:12]}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
        return str(path)

    @contextmanager
    def work(self, place: str) -> Iterator[Work]:
        """Work that begins in a place, as `Page.place` names it; what ran there is stopped.

        `stop` stops this work.  So does the end of the block, as when the visitor has gone.
        """
        self.stop(place)
        own = self._works[place] = Work()
        try:
            yield own
        finally:
            own.stop()
            if self._works.get(place) is own:
                del self._works[place]

    def stop(self, place: str) -> None:
        """Stops what runs in a place, after its current step."""
        if place in self._works:
            self._works[place].stop()

    def run(self, *requests: GenerateRequest, place: str = "") -> Iterator[Step | Made]:
        """Runs requests, one after another: yields their steps with frames, then their results,
        which are kept.  What is unfinished when it is stopped is kept as it is.

        place: as of `work`.  Results of several requests have the same mark under "together" in
        their metadata.
        Raises the error that ended a request before it was done.
        """
        mark = {"together": secrets.token_hex(6)} if len(requests) > 1 else {}
        with self.work(place) as work:
            for request in requests:
                for event in self._one(request, work):
                    if isinstance(event, Result):
                        yield self._kept(event, request, mark)
                    else:
                        yield event
                if work.stopped:
                    return

    def _one(self, request: GenerateRequest, work: Work) -> Iterator[Step | Result]:
        """Runs one of the requests of a work."""
        model = self.model(request.model)
        ticket = self.scheduler.submit(self._job(request))
        work.ends_by(ticket.cancel)
        for event in ticket.events():
            if isinstance(event, (Step, Result)):
                yield event
            elif isinstance(event.error, Cancelled):
                yield from self._stopped(ticket, model)
            elif event.error is not None:
                raise event.error

    def _kept(self, result: Result, asked: GenerateRequest, mark: Mapping[str, str]) -> Made:
        """Keeps a result in the folder.  mark: further metadata of it."""
        marked = replace(result, metadata={**result.metadata, **mark})
        return Made(result=marked, row=self.folder.save(marked, result.request, asked))

    def adopted(self, record: Record) -> GenerateRequest:
        """The request of a record, with pictures that are kept here from now on.

        Raises RequestError for a picture that is neither in this studio's folder nor has the digest
        that the record says.
        """
        named = record.request.paths
        kept = {n: self.keep(self._content(n, record.inputs.get(n))) for n in dict.fromkeys(named)}
        return renamed(record.request, kept)

    def _content(self, name: str, named: str | None = None) -> bytes:
        """The bytes of a picture that a request names.  named: its digest in a record."""
        given, path = (self.out / "given").resolve(), Path(name).resolve()
        ours = path.parent in (given, given.parent)
        with suppress(OSError):
            if path.is_file() and (ours or named):
                content = path.read_bytes()
                if ours or digest(content) == named:
                    return content
        raise RequestError(f"{name!r} is not a picture of this studio; give it anew")

    def _job(self, request: GenerateRequest, inputs: Mapping[str, str] = {}) -> Job:
        """The job of a request, with the pictures that it names.  inputs: their digests in its
        record."""
        files = {name: self._content(name, inputs.get(name)) for name in request.paths}
        return Job(request=request, files=files)

    def times(self, request: GenerateRequest, step: Step) -> dict[str, float]:
        """Clock -> its time after a step, about; {} for a stage that is not of the model itself."""
        stages = plan(request, self.model(request.model).system.tasks)
        if step.stage > len(stages):
            return {}
        u = tensor([1 - step.step / step.steps])
        return {c: float(t[0]) for c, t in times_for(stages[step.stage - 1].task, u).items()}

    def _stopped(self, ticket: Ticket, model: Model) -> Iterator[Result]:
        """The unfinished samples of a job as results, whose records say where they were stopped."""
        request = model.settled(ticket.request)
        parts = Counter(result.seed for result in ticket.made)
        for frame in ticket.last.frames if ticket.last else ():
            where = {"task": request.kind, "stopped": [ticket.last.step, ticket.last.steps]}
            one = request.model_copy(update={"n": 1, "seed": request.seed + frame.sample})
            if parts[one.seed] >= one.parts:
                continue  # this sample is finished
            parts[one.seed] += 1
            yield Result(
                index=frame.sample,
                job=0,
                part=parts[one.seed] - 1,
                seed=one.seed,
                outputs=frame.outputs,
                media={name: medium(name, model.system.media) for name in frame.outputs},
                request=one,
                metadata=model.made_by | where,
            )

    def rows(self) -> list[dict[str, Any]]:
        """Every line of the folder that can be read, the newest first."""
        path = self.out / files.ROWS
        rows = []
        for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
            with suppress(ValueError, RecursionError):
                rows.append(json.loads(line) | {"record": record_of(line)})
        return rows[::-1]

    def replayed(self, made: Sequence[tuple[Record, Path]], place: str = "") -> tuple[bool, str]:
        """(whether the pixels of all come again bit for bit, what differs here if not).

        Raises Cancelled where it is stopped.
        """
        results: dict[str, dict[int, Result]] = {}
        with self.work(place) as work:
            for record, picture in made:
                model, asked = self.model(record.request.model), files.key(record.request)
                if model.hash != record.metadata.model_hash:
                    return False, f"model was {record.metadata.model_hash}, here it is {model.hash}"
                if asked not in results:
                    job = self._job(record.request, record.inputs)
                    ticket = self.scheduler.submit(job, previews=False)
                    work.ends_by(ticket.cancel)
                    results[asked] = {result.part: result for result in ticket.results()}
                again = results[asked][record.part]
                if not files.same_pixels(picture, again.image):
                    return False, "; ".join(record.metadata.differences(Metadata(**again.metadata)))
        return True, ""


def renamed(request: GenerateRequest, names: Mapping[str, str]) -> GenerateRequest:
    """A request with other names for its pictures."""
    contexts = tuple(
        context.model_copy(
            update={k: names.get(v, v) for k, v in context if k in ("image", "mask")}
        )
        for context in request.contexts
    )
    own = {name: names.get(path, path) for name, path in request if name in ("mask", "paint")}
    images = tuple(names[path] for path in request.images)
    return request.model_copy(update={"images": images, "contexts": contexts, **own})


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    held = io.BytesIO()
    picture.save(held, format="PNG")
    return held.getvalue()
