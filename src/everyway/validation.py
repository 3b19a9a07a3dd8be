"""Plain data that people may have edited, compared with what it should be (pydantic)."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from functools import cache
from typing import Annotated, TypeVar, get_type_hints

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from everyway.errors import UsageError

T = TypeVar("T")
_adapter = cache(TypeAdapter)
_PLAIN = re.compile(r"[+-]?(([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|inf|nan)", re.I)


def plain(value: object) -> object:
    """A number, or a text that spells it as people do; ValueError for 1_0 and for true."""
    if isinstance(value, bool) or (isinstance(value, str) and not _PLAIN.fullmatch(value.strip())):
        raise ValueError("give a number in plain digits")
    return value


Whole = Annotated[int, BeforeValidator(plain)]
Number = Annotated[float, BeforeValidator(plain)]


def first_fault(error: ValidationError) -> str:
    """The first of pydantic's faults in one short line: where, and what is wrong."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{where} is missing"
    return f"{where or 'it'} cannot be {fault['input']!r:.40}"


def checked(config: T) -> T:
    """A dataclass as it is; UsageError names a field that is not of the kind of its annotation.

    Its numbers are finite and not below 0.
    """
    kinds = get_type_hints(type(config))
    for field in fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        try:
            _adapter(kinds[field.name]).validate_python(value, strict=True)
        except ValidationError:
            raise UsageError(f"{field.name} cannot be {value!r:.40}") from None
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise UsageError(f"{field.name} cannot be {value!r}")
    return config
