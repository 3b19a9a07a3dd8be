"""The card of a model: what it is, what it learned from, on what and how long, and its scores."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everyway.checkpoints import store

SCENES = (
    "Emoji Scenes: artwork of Noto Color Emoji (SIL Open Font License 1.1), one or two objects at "
    "64x64, captions in English and Korean; about every tenth pair of objects is held out"
)
LATTICE = (
    "Emoji Lattice: 64 emoji of Noto Color Emoji (SIL Open Font License 1.1), one or two of them "
    "in the cells of a grid at 96x96, captions in English and Korean; about every tenth pair of "
    "objects is held out"
)
ABOUT = {
    **dict.fromkeys(("lattice-whole", "lattice", "lattice-open"), LATTICE),
    "lattice-fine": LATTICE.replace("96x96", "144x144"),
    "lattice-styled": f"{LATTICE}; each flat, outlined, grey or tinted",
    "lattice-with-style": f"{LATTICE}; two in five with a picture whose style they are in: flat, "
    "grey or tinted",
    "lattice-246": LATTICE.replace("64 emoji", "246 emoji"),
    **dict.fromkeys(("emoji-portraits", "emoji-singles", "emoji"), SCENES),
    "shapes": "procedural coloured shapes with captions",
}


def hardware() -> str:
    """The machine in words, as a card tells it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def add_scores(folder: Path, report: Mapping[str, Any]) -> None:
    """Keep a report of `evaluate` among a model's metadata, and write its card again."""
    document = store.document(folder)
    scores = document["facts"].get("scores", {}) | {report["suite"]: dict(report)}
    store.set_metadata(folder, document["facts"] | {"scores": scores})
    write_card(folder)


def write_card(folder: Path) -> None:
    """FOLDER/README.md from the metadata in its config.json."""
    document = store.document(folder)
    store.write_text(Path(folder) / "README.md", card(document["config"], document["facts"]))


def card(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """Markdown."""
    history = metadata.get("history", [])
    if "source" in metadata and not history:
        return _published(config, metadata)
    drawn = [run["data"] for run in history if "stage" not in run]  # not what enlarges it
    data = drawn[-1] if drawn else ""
    lines = [
        f"# {config['system']}: {metadata.get('name', 'a model')}",
        "",
        f"Data: {ABOUT.get(data) or metadata.get('about', 'a folder of pictures')}.",
        *_begun_from(metadata),
        *map(_merged, metadata.get("merged", [])),
        *_licence(metadata, history),
        "",
        "| part | data | steps | batch | samples | hours | hardware |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in history:
        hours = f"{row['seconds'] / 3600:.2f}"
        data = row["data"] if row["data"] in ABOUT or "about" in metadata else "a folder"
        numbers = (row["steps"], row["batch"], row["samples"], hours, row["hardware"])
        named = [f"{kind} {row[kind]}" for kind in ("expert", "stage") if kind in row]
        part = " ".join(named) or "transformer"
        lines.append("| " + " | ".join(map(str, (part, data, *numbers))) + " |")
        if "averaged" in row:
            of = f"mean of the two rows above, {row['averaged']:g} of the last"
            lines.append(f"| transformer: {of} | | | | | | |")
    for name, part in metadata.get("codecs", {}).items():
        details = ", ".join(f"{k} {v}" for k, v in part.items() if k not in ("steps", "minutes"))
        hours = f"{part.get('minutes', 0) / 60:.2f}"
        named = f"{name} ({details})" if details else name
        lines.append(f"| {named} | | {part.get('steps', '')} | | | {hours} | |")
    for name, model in config["config"].get("shared", {}).items():
        lines.append(f"| {name}: that of `{model.partition('@')[0]}` | | | | | | |")
    for suite, report in metadata.get("scores", {}).items():
        lines += ["", *_scores(suite, report)]
    return "\n".join(lines) + "\n"


def _published(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """The card of a model that was put together from files of others."""
    lines = [
        f"# {config['system']}: published weights",
        "",
        "Read by Everyway from the files below, whose own licences hold.",
        *_files(metadata["source"]),
        *map(_merged, metadata.get("merged", [])),
    ]
    return "\n".join(lines) + "\n"


def _begun_from(metadata: Mapping[str, Any]) -> list[str]:
    if "source" in metadata:
        return [
            "Trained on from the files below, whose own licences hold.",
            *_files(metadata["source"]),
        ]
    if "init" in metadata:
        return [f"Trained on from `{metadata['init']}`."]
    return ["Trained by Everyway from nothing; no pretrained part."]


def _merged(row: Mapping[str, Any]) -> str:
    """A paragraph on a LoRA that was merged into the weights."""
    data = row.get("data", "data that is not stated")
    known = [f"{row['steps']:,} steps"] if "steps" in row else []
    known += [f"licence: {row['licence']}"] if "licence" in row else []
    known += [f"sha256 {row['sha256'][:12]}"]
    learned = ABOUT.get(data, data if "data" not in row else "a folder of pictures")
    return (
        f"\nMerged into its weights: the LoRA `{row['lora']}`, times {row['weight']:g}, that "
        f"learned from {learned} ({', '.join(known)})."
    )


def _licence(metadata: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was said; else of what we made all of it is known, and of other data nobody else is."""
    if "licence" in metadata:
        return [f"Licence: {metadata['licence']}."]
    learned = [row.get("data") for row in (*history, *metadata.get("merged", []))]
    if "source" not in metadata and all(data in ABOUT for data in learned):
        return ["Licence: Apache-2.0."]
    return ["Licence: not stated; whoever trained it can say it (`--set licence=...`)."]


def _files(source: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["", "| part | file | layout | size |", "|---|---|---|---|"]
    for name, row in source.items():
        size = row["preset"] or "of no published size"
        lines.append(f"| {name} | {row['file']} | {row['layout']} | {size} |")
    return lines


def _scores(suite: str, report: Mapping[str, Any]) -> list[str]:
    protocol = report["protocol"]
    details = ", ".join(f"{k} {v}" for k, v in protocol.items() if v not in ("", None))
    lines = [f"Scores of the suite `{suite}` ({details}); 95 % bootstrap intervals:", ""]
    lines += ["| row | all correct | interval | attributes |", "|---|---|---|---|"]
    for row, cells in report["rows"].items():
        whole = cells["all_correct"]
        others = {k: v for k, v in cells.items() if k != "all_correct"}
        if row in report.get("frechet", {}):
            others["Fréchet distance"] = report["frechet"][row]
        if row in report.get("crispness", {}):
            others["dB to the nearest rendering"] = report["crispness"][row]
        if row in report.get("moved", {}):
            others["laid out otherwise"] = report["moved"][row]
        if row in report.get("style", {}):
            others["style"] = report["style"][row]
        rest = ", ".join(f"{k} {v['value']:.3f}" for k, v in others.items())
        span = f"{whole['low']:.3f} to {whole['high']:.3f}"
        lines.append(f"| {row} | {whole['value']:.3f} | {span} | {rest} |")
    return lines
