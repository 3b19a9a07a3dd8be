"""Make a picture again from its own record, bit for bit, or say why it cannot be."""

from __future__ import annotations

import argparse
from pathlib import Path

from everyway.apps import files
from everyway.apps.cli.flags import Parser, pair
from everyway.apps.cli.language import spoken
from everyway.apps.cli.making import sparing, with_upscaler
from everyway.errors import UsageError
from everyway.record import Metadata
from everyway.request import GenerateRequest, RequestError, read_lora

UNEXPLAINED = "nothing that its record names differs here; the picture itself may have been changed"


def add_flags(p: Parser) -> None:
    asis, many = "by default as in the record", {"action": "append", "default": []}
    p.add_argument("picture", help="a PNG that everyway made")
    p.add_argument("--model", help=f"where the model is now, if it moved; {asis}")
    said = f"where a part of it is now; {asis}"
    p.add_argument("--part", **many, type=pair, metavar="NAME=PATH", help=said)
    p.add_argument("--image", **many, help=f"where a picture that it was given is now; {asis}")
    p.add_argument("--mask", help=f"where its mask is now; {asis}")
    p.add_argument("--paint", help=f"where the map of its painted words is now; {asis}")
    p.add_argument("--lora", **many, help=f"where a LoRA that it was made with is now; {asis}")
    p.set_defaults(quiet=True)  # how its prompt was taken was told as it was made


def run(args: argparse.Namespace) -> int:
    path = Path(args.picture)
    record = files.read_record(path)
    request = _with_inputs(record, tuple(args.image), mask=args.mask, paint=args.paint)
    request = _with_loras(record, request, args.lora)
    source = record.loading(args.model, dict(args.part))
    from everyway.generate import load

    model = with_upscaler(sparing(load(**source)), request)
    if model.hash != record.metadata.model_hash:
        made_by = record.metadata.model_hash
        raise UsageError(
            f"{path} was made by model {made_by}, this one is {model.hash}; give it with --model"
        )
    made = model.part(request, record.part)
    if files.same_pixels(path, made.image):
        print(spoken(f"{path}: the same picture, bit for bit"))
        return 0
    why = "; ".join(record.metadata.differences(Metadata(**made.metadata)))
    print(spoken(f"{path}: not the same; {why or UNEXPLAINED}"))
    return 1


def _with_inputs(
    record: files.Record, images: tuple[str, ...], **others: str | None
) -> GenerateRequest:
    """The request with the given pictures where they are now; UsageError if one has changed."""
    from everyway.job import same

    was = record.request
    moved = {name: path for name, path in others.items() if path is not None}
    request = was.model_copy(update={"images": images or was.images, **moved})
    if len(request.images) != len(was.images) or any(getattr(was, k) is None for k in moved):
        raise UsageError(f"it was made from {len(was.paths)} picture(s): {', '.join(was.paths)}")
    for before, now in zip(was.paths, request.paths):
        if not Path(now).is_file():
            flag = {request.mask: "--mask", request.paint: "--paint"}.get(now, "--image")
            raise UsageError(f"the picture {now!r} that it was made from is gone; give {flag} PATH")
        if before in record.inputs and not same(Path(now).read_bytes(), record.inputs[before]):
            raise UsageError(f"{now!r} is not the picture that it was made from any more")
    return request


def _with_loras(
    record: files.Record, request: GenerateRequest, moved: list[str]
) -> GenerateRequest:
    """The request with its LoRAs where they are now; UsageError if one has changed."""
    from everyway.job import digest

    was = request.lora
    if len(moved) not in (0, len(was)):
        raise UsageError(f"it was made with {len(was)} LoRA(s): {', '.join(was)}")
    now = dict(zip(moved, was.values())) or was
    for before, path in zip(was, now):
        try:
            found = read_lora(path)
        except RequestError:
            raise UsageError(
                f"the LoRA {path!r} that it was made with is gone; give --lora PATH"
            ) from None
        if digest(found) != record.inputs.get(before, digest(found)):
            raise UsageError(f"{path!r} is not the LoRA that it was made with any more")
    return request.model_copy(update={"lora": now})
