"""What a data set gives: a picture, its captions, and the ground truth they were made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """image: uint8 (H, W, 3).  captions: one or more.  record: plain data (JSON), or None."""

    image: np.ndarray
    captions: tuple[str, ...]
    record: dict[str, Any] | None = None
    key: str = ""
