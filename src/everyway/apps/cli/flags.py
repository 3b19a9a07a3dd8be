"""What flags are made of: fields of the request model, and kinds of values."""

from __future__ import annotations

import argparse
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from everyway.apps.cli.language import spoken
from everyway.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo


class Parser(argparse.ArgumentParser):
    """Raises UsageError for a mistake; the help of every flag says its default, in the language
    of the locale."""

    def __init__(self, **settings: Any) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, formatter_class=layout, add_help=False, **settings)
        self.add_argument("-h", "--help", action="help", help="show this help message and exit")

    def add_argument(self, *names: str, among: Iterable[str] = (), **settings: Any):
        """among: what a shell completes the value to."""
        exempt = settings.get("action") in ("help", "version") or settings.get("required")
        if names[0].startswith("-") and not exempt and "default" not in settings["help"]:
            settings["help"] += f" (default: {_default(settings)})"
        settings["help"] = spoken(settings["help"])
        action = super().add_argument(*names, **settings)
        if among:
            action.completer = lambda **_: among  # type: ignore[attr-defined]
        return action

    def add_fields(self, model: type[BaseModel], *fields: str) -> None:
        """A flag for each of these fields of a model; a value is read as the model reads it.

        The values of a tuple stand with commas between them; of a dictionary each has a flag of its
        own, NAME=VALUE.
        """
        for name in fields:
            field = model.model_fields[name]
            many = get_origin(field.annotation) is dict
            self.add_argument(
                f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}",
                default={} if many else field.default,
                type=_reader(name, field),
                help=described(model, name),
                among=field.examples or (),
                **({"action": Entry, "metavar": "NAME=VALUE"} if many else {}),
            )

    def format_help(self) -> str:
        lines = super().format_help().split("\n")
        own = [line and not line.startswith(" ") for line in lines]  # argparse's, and descriptions
        return "\n".join(spoken(line) if mine else line for line, mine in zip(lines, own))

    def error(self, message: str) -> None:
        if "expected one argument" in message:
            message += "; a value that begins with a dash is written --flag=VALUE"
        raise UsageError(f"{message} (see: {self.prog} --help)")


def described(model: type[BaseModel], name: str) -> str:
    """The help of a field: its description, and what there is to choose from."""
    field = model.model_fields[name]
    chosen = f" ({', '.join(field.examples)})" if field.examples else ""
    said = (field.description or "").rstrip(".").replace("%", "%%")
    return said[:1].lower() + said[1:] + chosen


def _reader(name: str, field: FieldInfo) -> Callable[[str], Any]:
    """A word of the command line -> the value of a field, or an entry of one."""
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(Annotated[field.annotation, field])

    def read(word: str) -> Any:
        try:
            return adapter.validate_python(_parted(word, get_origin(field.annotation)))
        except ValidationError as error:
            fault = error.errors()[0]
            said = fault["msg"].removeprefix("Value error, ")
            if fault["type"] in ("missing", "too_long"):
                said = f"give {len(get_args(field.annotation))} values, a comma between them"
            raise ArgumentTypeError(f"{name}={word}: {said}") from None

    return read


def _parted(word: str, kind: type | None) -> Any:
    """As pydantic takes a tuple or a dictionary."""
    if kind is dict:
        return dict([pair(word)])
    return word.split(",") if kind is tuple else word


class Entry(argparse.Action):
    """Adds the entry of a dictionary."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), **values})


class Thing(argparse.Action):
    """One of the things that a result is made out of, in the order in which they stand."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        made = dict(zip(("condition", "embedding"), values)) if self.dest == "embedding" else {}
        namespace.things = [*namespace.things, made or {self.dest: values}]


class OfThing(argparse.Action):
    """What is told of the thing before it."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if not namespace.things:
            parser.error(f"{option_string} is of the --image, --text or --embedding before it")
        namespace.things = [*namespace.things[:-1], {**namespace.things[-1], self.dest: values}]


class OfPicture(OfThing):
    """What is told of the picture before it, whatever stands between."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        places = [k for k, thing in enumerate(namespace.things) if "text" not in thing]
        if not places:
            parser.error(f"{option_string} is of the --image or --embedding before it")
        things = [*namespace.things]
        things[places[-1]] = {**things[places[-1]], self.dest: values}
        namespace.things = things


def _default(settings: dict[str, Any]) -> str:
    if settings.get("action") == "store_true":
        return "off"
    default = settings.get("default")
    return "none" if default in (None, "", [], {}) else str(default).replace("%", "%%")


def folder(text: str) -> str:
    """A folder to write to: neither empty nor a file, and UTF-8, which safetensors asks for."""
    if not text.strip() or Path(text).is_file():
        raise ArgumentTypeError(f"{text!r} is no folder; give a folder")
    if text != text.encode(errors="replace").decode():
        raise ArgumentTypeError(f"the name {text!r} is not UTF-8; give another folder")
    return text


def natural(text: str) -> int:
    """A number from 0 up, as a seed is."""
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def seconds(text: str) -> float:
    """ "90s", "30m" or "2h" -> seconds."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh])", text.strip())
    if not match or float(match[1]) <= 0:
        raise ArgumentTypeError(f"the time {text!r} is not like 90s, 30m or 2h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def share(text: str) -> tuple[int, int]:
    """ "1/3" -> (1, 3): the first of three shares."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N, as 1/2")
    return int(match[1]), int(match[2])


def pair(text: str) -> tuple[str, str]:
    """ "NAME=VALUE" -> (NAME, VALUE), neither of them empty."""
    name, _, value = text.partition("=")
    if not (name and value):
        raise ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def level(text: str) -> tuple[str, str]:
    """ "CLOCK=LEVEL" -> (CLOCK, LEVEL), the latter a number."""
    clock, _, value = text.partition("=")
    if not (clock and re.fullmatch(r"[0-9.]+", value)):
        raise ArgumentTypeError(f"{text!r} is not CLOCK=LEVEL, as in text=0.3")
    return clock, value


def clock_path(text: str) -> tuple[str, str | list[list[str]]]:
    """ "CLOCK=first", "CLOCK=last" or "CLOCK=U:T,U:T,..." -> (CLOCK, the path of a request)."""
    clock, _, value = text.partition("=")
    if clock and re.fullmatch(r"[a-z]+", value):
        return clock, value
    if not (clock and re.fullmatch(r"[0-9.]+:[0-9.]+(,[0-9.]+:[0-9.]+)+", value)):
        raise ArgumentTypeError(
            f"{text!r} is not CLOCK=PATH, as in text=first or text=0:0,.5:0,1:1"
        )
    return clock, [knot.split(":") for knot in value.split(",")]
