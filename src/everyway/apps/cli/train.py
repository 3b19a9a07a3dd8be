"""Train a model, or go on training it: the same command again resumes the run in --out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import contextmanager
from typing import Any

from everyway.apps.cli.flags import Parser, folder, seconds
from everyway.apps.cli.language import spoken
from everyway.errors import UsageError
from everyway.settings import Settings
from everyway.train.config import PRESETS, Adapter, Optimisation, Run, Source, TrainConfig

TOLD = {"parameters", "steps", "step_s", "processor_s", "memory", "disk", "threads"}
"""Of a price, in the JSON of --dry-run, beside its seconds."""


def add_flags(p: Parser) -> None:
    p.add_argument("preset", help="a preset's name or a TOML file", among=PRESETS)
    own = "by default the preset's own"
    p.add_argument("--data", help=f"emoji, shapes, or a folder of pictures with captions; {own}")
    p.add_argument("--out", type=folder, help=f"the run folder; {own}")
    p.add_argument("--teacher", help="of distill: a model, by name or folder; by default mini")
    said = "time, such as 90s, 30m or 2h; by default all the steps"
    p.add_argument("--budget", type=seconds, help=said)
    said = f"another value of a setting below; {own}"
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=said)
    said = "say what it takes on this machine, and what of, and stop there"
    p.add_argument("--dry-run", action="store_true", help=said)
    p.add_argument("--quiet", action="store_true", help="show no progress")
    p.epilog = f"presets: {', '.join(PRESETS)}\n\nsettings for --set and TOML files:\n{_settings()}"


def _settings() -> str:
    """A line a setting: its default, and what it is."""
    kinds = (TrainConfig, Source, Optimisation, Adapter, Run)
    fields = {
        name: field
        for kind in kinds
        for name, field in kind.model_fields.items()
        if name not in ("system", "model") and not isinstance(field.default, Settings)
    }
    width = max(map(len, fields)) + 2
    lines = []
    for name, field in fields.items():
        said = spoken(" ".join((field.description or "").split()))
        lines.append(f"  {name:{width}}{field.default!s:10} {said}".replace("%", "%%").rstrip())
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    overrides = settings(args.set)
    overrides |= {name: said for name in ("data", "teacher") if (said := getattr(args, name))}
    from everyway.train import sources, stack

    sources.refuse_two_meanings(overrides.get("data", ""))
    config = stack.resolved(args.preset, overrides, args.out, args.budget)
    return trained(config, args.quiet, args.dry_run)


def trained(config: TrainConfig, quiet: bool, dry_run: bool = False) -> int:
    """Tells what a training takes, runs it, tells of it, and gives the exit code."""
    import psutil

    from everyway.train import stack, train

    first = os.environ.get("RANK", "0") == "0"  # of several processes one speaks
    priced = stack.is_planned(config, read=dry_run or not quiet)
    if dry_run and not priced:
        raise UsageError("a price is of a system that is not in training yet; leave --dry-run out")
    quiet = quiet or not first

    def note(line: str) -> None:
        if not quiet:
            print(spoken(line), file=sys.stderr, flush=True)

    if not priced:
        with _progress(config.steps, quiet) as progress:
            return _ended(train(config, progress, note), first)
    plan = stack.planned(config, began=psutil.Process().create_time())
    for name, said in plan.lines().items() if not quiet else ():
        parts = (f"{spoken(of)}: {spoken(line)}" if of else spoken(line) for of, line in said)
        print(f"{spoken(name):9} {'; '.join(parts)}", file=sys.stderr, flush=True)
    if dry_run:
        if first:
            print(json.dumps({"seconds": round(plan.total), **plan.model_dump(include=TOLD)}))
        return 0
    with _progress(plan.steps, quiet) as progress:
        return _ended(stack.run(plan, progress, note), first)


def _ended(summary: dict[str, Any], first: bool) -> int:
    if first:
        print(json.dumps(summary))
    return 130 if summary["stopped"] else 0


def settings(words: list[str]) -> dict[str, str]:
    """What --set says; UsageError for a word that is not KEY=VALUE."""
    if odd := [word for word in words if "=" not in word]:
        raise UsageError(f"--set {odd[0]!r} is not KEY=VALUE")
    return {key: value for key, _, value in (word.partition("=") for word in words)}


@contextmanager
def _progress(steps: int, quiet: bool):
    """A bar on a terminal, plain lines elsewhere, nothing if quiet."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    def losses(p) -> str:
        return "  ".join(f"{k} {v:.4f}" for k, v in p.losses.items())

    console = Console(stderr=True)
    if quiet:
        yield None
    elif not console.is_terminal:
        yield lambda p: print(
            f"step {p.step}  {losses(p)}  {p.samples_a_second:.0f} samples/s", flush=True
        )
    else:
        columns = (TextColumn("step {task.completed}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.description}"), console=console) as bar:
            job = bar.add_task("", total=steps)
            yield lambda p: bar.update(job, completed=p.step, description=losses(p))
