"""The models that are here, or one: its tasks, and the words that it knows."""

from __future__ import annotations

import argparse

from everyway.apps.cli.flags import Parser
from everyway.apps.cli.language import spoken
from everyway.apps.cli.making import show_json


def add_flags(p: Parser) -> None:
    p.add_argument("model", nargs="?", help="one to show; by default all are listed")
    p.add_argument("--json", action="store_true", help="all metadata, as JSON; off by default")


def run(args: argparse.Namespace) -> None:
    from everyway.generate import load
    from everyway.library import shipped

    if args.model is None:
        print("\n".join(shipped()) or spoken("no model is shipped"))
        return
    model = load(args.model)
    tasks = {name: model.system.given(task) for name, task in model.system.tasks.items()}
    label = model.system.conditions.get("label")
    classes = {"classes": label.codec.names} if label and label.codec.names else {}
    if not args.json:
        given = [
            f"{name} ({', '.join(names) or spoken('nothing')})" for name, names in tasks.items()
        ]
        print(f"{model.name}  {model.hash}")
        print(spoken(f"tasks, and what each is given: {', '.join(given)}"))
        if classes:
            print(spoken(f"classes: {', '.join(classes['classes'])}"))
        lexicons = (getattr(codec, "lexicon", None) for codec in model.system.codecs.values())
        for lexicon in [known for known in lexicons if known][:1]:
            for what, words in (("objects", lexicon.objects), ("colours", lexicon.backgrounds)):
                print(spoken(f"{what}: {', '.join(f'{en} {ko}' for en, ko in words.items())}"))
        return
    own = {"name": model.name, "hash": model.hash, "tasks": tasks, **classes}
    show_json(own | {k: v for k, v in model.metadata.items() if k not in own}, indent=2)
