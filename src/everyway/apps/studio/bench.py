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
from torch import tensor

from everyway.apps import files
from everyway.apps.cli.making import sparing
from everyway.apps.server.scheduler import Scheduler, Step, Ticket
from everyway.apps.studio.trainings import Trainings
from everyway.atomic import atomic_write
from everyway.errors import UsageError
from everyway.generate import Model, Result, load
from everyway.job import Job, digest
from everyway.library import ModelError, folder_of
from everyway.media import medium
from everyway.plan import plan
from everyway.record import Metadata, Record, record_of
from everyway.request import KINDS, NEEDS_IMAGES, NEEDS_TEXT, GenerateRequest, RequestError
from everyway.tasks import times_for

MOST = 16
"""Samples a request, of which a page shows all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A result that is kept.  row: its line in the folder; `image` in it names its picture."""

    result: Result
    row: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A picture, words that say the same, and how it came."""

    picture: Image.Image
    words: str
    film: Sequence[Step]


@dataclass(eq=False)
class Studio:
    """Models by name, of those that it was given; what was made goes to the folder `out`.

    names: what pages offer.  The first one draws the front page.
    scheduler: runs all work, of the studio and of the API beside it; it has the models in memory.
    trainings: those that were started here.
    """

    out: Path
    names: list[str]
    scheduler: Scheduler
    trainings: Trainings = field(default_factory=Trainings)
    _examples: dict[str, Example] = field(default_factory=dict)
    _running: dict[str, Ticket] = field(default_factory=dict)
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.folder = files.Folder(self.out)

    def model(self, name: str) -> Model:
        """Loaded once.  RequestError for one that this studio was not given."""
        if name not in self.names:
            raise RequestError(f"model {name!r} is not here; choose one of {', '.join(self.names)}")
        with self._loading:
            if name not in self.scheduler.models:
                self.scheduler.models[name] = sparing(load(name))
            return self.scheduler.models[name]

    @property
    def loaded(self) -> Mapping[str, Model]:
        """Those in memory."""
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
        """What the first model draws of a text; where it does not read it, what it makes of
        nothing, with words if it can."""
        if text not in self._examples:
            name = self.names[0]
            asked: dict[str, Any] = {"kind": "joint" if "joint" in self.kinds(name) else "image"}
            if self.reads(name, text):
                asked = {"kind": "text-to-image", "text": text}
            ticket = self.scheduler.submit(Job(request=GenerateRequest(model=name, **asked)))
            film = [event for event in ticket.events() if isinstance(event, Step) and event.frames]
            (made,) = ticket.results()
            words = made.text or asked.get("text", "")
            self._examples[text] = Example(picture=made.image, words=words, film=film)
        return self._examples[text]

    @staticmethod
    def knows(model: Model) -> list[str]:
        """The things and colours that a model has words for; none of one that reads any."""
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

    def run(self, request: GenerateRequest, session: str = "") -> Iterator[Step | Made]:
        """A request whose pictures are kept here: steps with frames, then its results, kept.

        session: whose work it is; `stop` ends it, and what is then on its way is kept as it is.
        Raises what ended it before it was done.
        """
        model = self.model(request.model)
        ticket = self._running[session] = self.scheduler.submit(self._job(request))
        try:
            for event in ticket.events():
                if isinstance(event, Result):
                    yield Made(result=event, row=self.folder.save(event, event.request, request))
                elif isinstance(event, Step):
                    yield event
                elif event.status == "cancelled":
                    yield from self._stopped(ticket, model)
                elif event.error is not None:
                    raise event.error
        finally:
            ticket.cancel()  # whoever watched has gone

    def stop(self, session: str) -> None:
        """Ends what runs for a session, after the step that it is in."""
        if session in self._running:
            self._running[session].cancel()

    def _job(self, request: GenerateRequest) -> Job:
        """With the pictures that it names, all of which are in this studio's folder."""
        given, held = (self.out / "given").resolve(), {}
        for name in request.paths:
            path = Path(name).resolve()
            if path.parent not in (given, given.parent) or not path.is_file():
                raise RequestError(f"{name!r} is not a picture of this studio; give it anew")
            held[name] = path.read_bytes()
        return Job(request=request, files=held)

    def times(self, request: GenerateRequest, step: Step) -> dict[str, float]:
        """Clock -> about where it is at a step: of a stage of the model's own, else none."""
        stages = plan(request, self.model(request.model).system.tasks)
        if step.stage > len(stages):
            return {}
        u = tensor([1 - step.step / step.steps])
        return {c: float(t[0]) for c, t in times_for(stages[step.stage - 1].task, u).items()}

    def _stopped(self, ticket: Ticket, model: Model) -> Iterator[Made]:
        """What was on its way as results, whose record says where they were stopped."""
        request = model.settled(ticket.request)
        for frame in ticket.last.frames if ticket.last else ():
            where = {"task": request.kind, "stopped": [ticket.last.step, ticket.last.steps]}
            one = request.model_copy(update={"n": 1, "seed": request.seed + frame.sample})
            result = Result(
                index=frame.sample,
                job=0,
                part=0,
                seed=one.seed,
                outputs=frame.outputs,
                media={name: medium(name, model.system.media) for name in frame.outputs},
                request=one,
                metadata=model.made_by | where,
            )
            yield Made(result=result, row=self.folder.save(result, one, ticket.request))

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
        results = self.scheduler.submit(self._job(record.request), previews=False).results()
        made = next(r for r in results if r.part == record.part)
        if files.same_pixels(picture, made.image):
            return True, ""
        return False, "; ".join(record.metadata.differences(Metadata(**made.metadata)))


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    held = io.BytesIO()
    picture.save(held, format="PNG")
    return held.getvalue()
