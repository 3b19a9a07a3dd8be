"""The command line: a file a command.  Exit codes: 0 done, 1 a failure, 2 the user's mistake,
130 stopped by Ctrl-C.

Nothing heavy is imported before a command needs it, so `everyway --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper

from everyway import __version__
from everyway.apps.cli.flags import Parser
from everyway.apps.cli.language import notes, spoken
from everyway.errors import EverywayError

COMMANDS = {
    "demo": "every use of the shipped model on one labelled sheet",
    "generate": "image | text | both, from a text, a picture, or nothing",
    "vary": "variations of a picture or a text",
    "interpolate": "pictures between two pictures",
    "chain": "text, picture, text, picture, ...",
    "upscale": "a picture made larger",
    "studio": "everything that a model can do, in a browser",
    "replay": "make a picture again from its own record",
    "train": "train a model, or go on training it",
    "experts": "a model as experts of intervals of noise, and what each of them does",
    "data": "write a built-in data set, or check a folder",
    "evaluate": "score a model",
    "cascade": "a model and those that enlarge its pictures as one",
    "convert": "weights of authors or of diffusers into a model folder, and back",
    "models": "what is here, and its metadata",
    "serve": "models over HTTP, as OpenAI's clients speak it, and jobs",
}
"""Command, a module here with `add_flags` and `run` -> its line in the list of all."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code and never raises for a user's mistake."""
    words = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read as PyTorch is imported
    if isinstance(sys.stdout, TextIOWrapper):  # what a terminal cannot show is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if "_ARGCOMPLETE" in os.environ:
            _complete()
        args = parser(*words[:1]).parse_args(words)
        with notes(getattr(args, "quiet", False)):
            code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read what is printed has gone
        mute()
        return 1
    except KeyboardInterrupt:
        print(spoken("stopped; what was finished is kept"), file=sys.stderr)
        return 130
    except (EverywayError, OSError) as error:  # the border: any other is a fault of ours
        print(f"everyway: {spoken(' '.join(str(error).split()))}", file=sys.stderr)
        if isinstance(error, OSError) and not sys.stdout.isatty():
            mute()  # it may be what cannot be written; Python would try once more
        return getattr(error, "exit_code", 1)


def parser(first: str | None = None) -> Parser:
    """The whole command line; with the first of its words, the flags of that command alone."""
    top = Parser(prog="everyway", description="One model goes every way: images and text.")
    said = "show program's version number and exit"
    top.add_argument("--version", action="version", version=f"everyway {__version__}", help=said)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        command = commands.add_parser(name, help=spoken(line))
        if first in (None, name):
            module = import_module(f"{__name__}.{name}")
            command.description = spoken(module.__doc__ or "")
            command.set_defaults(run=module.run)
            module.add_flags(command)
    return top


def mute() -> None:
    """Drops what is still to be printed."""
    with suppress(OSError, ValueError):  # it is not always a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complete() -> None:
    """Answers a shell that asks how a line goes on, and ends."""
    import argcomplete

    argcomplete.autocomplete(parser())
