"""What super-resolution needs beside a system that does it: which ones do, and how large a picture
becomes.

A system with a condition LOW_RES draws the picture that it is shown anew, larger.  As one of the
`systems` of another it is a stage of a cascade.

Sources: Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation", 2021, arXiv
2106.15282; Balaji et al., "eDiff-I", 2022, arXiv 2211.01324.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from everyway.contracts import Denoise
from everyway.controls.tiles import Tiled
from everyway.data.degrade import resized
from everyway.errors import UsageError
from everyway.request import GenerateRequest
from everyway.system import System

LOW_RES = "low_res"
"""The condition of systems that enlarge: the picture at the size of what is drawn."""
STRIDE = 16
"""Sides of what is drawn are multiples of it, as networks halve and fold them."""
LARGEST = 8192
"""Side in pixels."""


def enlarges(system: System) -> bool:
    """Whether it draws a picture that it is shown anew."""
    return LOW_RES in system.conditions


def stages(system: System) -> dict[str, System]:
    """Those of its cascade by name, in order."""
    return {name: inner for name, inner in system.systems.items() if enlarges(inner)}


def request_of(system: System) -> GenerateRequest:
    """How a stage of a cascade samples: as its own system does by default."""
    settings = ("steps", "guidance", "sampler", "truncation")
    own = {name: getattr(system, name) for name in settings}
    return GenerateRequest(kind="image", **own)


def larger(size: tuple[int, int], system: System, scale: float | None) -> tuple[int, int]:
    """(height, width) of a picture of `size` once it is enlarged, multiples of STRIDE.

    scale: how many times as large; None makes its shorter side that of what `system` draws.
    Raises UsageError for a picture that is larger than that, and for one that becomes too large.
    """
    (height, width), side = size, side_of(system)
    if scale is None and min(size) > side:
        raise UsageError(
            f"the picture is {width}x{height}, and this model draws {side}x{side}; say how much "
            "larger it is to become, as with --scale 2"
        )
    factor = scale or side / min(size)
    made = tuple(max(1, round(factor * length / STRIDE)) * STRIDE for length in size)
    if max(made) > LARGEST:
        raise UsageError(f"the picture would be {made[1]}x{made[0]}; give a smaller --scale")
    return made


def side_of(system: System) -> int:
    """Of what a system that enlarges draws at once, in pixels: a tile of something larger."""
    return system.modalities["image"].shape[-1]


def enlarged(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """What such a system is shown of a picture (3, h, w): (1, 3, *size)."""
    return resized(picture[None].float(), size)


def shapes_of(shapes: Mapping[str, tuple[int, ...]], low: Tensor) -> dict[str, tuple[int, ...]]:
    """Of states (B, C, H, W), as large as the picture `low` that is enlarged."""
    return {name: (*shape[:2], *low.shape[-2:]) for name, shape in shapes.items()}


def tiled(denoise: Denoise, system: System) -> Denoise:
    """Estimates of pictures that are larger than what `system` draws at once."""
    side = side_of(system)
    return Tiled(denoise=denoise, side=side, overlap=side // 4)
