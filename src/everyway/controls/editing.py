"""Editing in the latent space of texts: what a negative text says goes, what a positive one says
comes; and so of a picture, which is told in a text, changed, and drawn out of that text and itself.

Source: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332, and its first release.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from everyway.contracts import Bundle, Context, contexts_in, flat, joined
from everyway.controls.blend import side_by_side
from everyway.controls.focus import weighed
from everyway.data.cleaning import without_repeats
from everyway.system import System

EDITED = {"image": 0.33, "text": 0.67}
"""Shares of the picture and of its changed text in an edited picture."""
KEPT = 10
"""Principal components of the picture that are."""


def edited(z: Tensor, negative: Tensor | None = None, positive: Tensor | None = None) -> Tensor:
    """Latents of texts z (B, ...) without their part along the negative one, plus the positive one.

    negative, positive: latents of texts, (1, ...) or (B, ...); None leaves that out.
    """
    out = z if negative is None else z - along(z, negative)
    return out if positive is None else out + positive


def along(z: Tensor, direction: Tensor) -> Tensor:
    """The part of every z (B, ...) in its direction (1, ...) or (B, ...), any length of which."""
    flat = z.flatten(1)
    unit = direction.flatten(1) / direction.flatten(1).norm(dim=1, keepdim=True)
    return ((flat * unit).sum(1, keepdim=True) * unit).reshape(z.shape)


def aside(carried: Bundle, system: System, request: Any) -> Bundle:
    """The latent of the positive text, "positive", out of the way of the picture's own."""
    return carried | ({"positive": carried["text"]} if request.text else {})


def rewritten(carried: Bundle, system: System, request: Any) -> Bundle:
    """What an edited picture is drawn out of.

    carried: "text", the latent that tells the picture; "positive", and the contexts of the picture
    and the positive text.  request: with a `text`, a `negative` one, or both.
    The changed text is told in words again, and stands beside the positive one.
    """
    z, given = carried["text"], contexts_in(carried)
    negative = request.negative and system.encode({"text": [request.negative]})["text"].to(z)
    changed = edited(z, negative, carried.get("positive"))
    words = joined([_read(row[None], system) for row in changed]).to(z.device)
    if request.text:
        words = side_by_side([(words, 1.0), (given["text"], 1.0)])
    return carried | flat({"text": words, "image": _outlined(given["image"], system)})


def _read(z: Tensor, system: System) -> Context:
    """Of a latent (1, ...), in words."""
    (said,) = system.decode({"text": z})["text"]
    return system.contexts({"text": [without_repeats(said)]})["text"]


def _outlined(picture: Context, system: System) -> Context:
    """Its leading components alone, without the global tokens."""
    leading = system.conditions["image"].leading or 0
    local = picture.tokens[:, leading:].float()
    return Context(tokens=weighed(local, torch.ones(KEPT)).to(picture.tokens))
