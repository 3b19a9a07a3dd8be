"""Settings as pydantic models: read from TOML, JSON or KEY=VALUE; every fault is one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from everyway.errors import UsageError
from everyway.validation import plain

FORMER = {
    "law": "distribution",
    "recompute": "gradient_checkpointing",
    "told_time": "time_conditioning",
}
"""Settings as old files and commands name them -> their names."""


class ConfigError(UsageError):
    """Settings that cannot be used; the message says how to mend it."""


def _file_name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise PydanticCustomError("name", "Input should be a name or a folder")
    return value


FileName = Annotated[str, PlainValidator(_file_name)]
"""Of any bytes, which pydantic's own texts are not."""


class Settings(BaseModel):
    """Frozen, and without a field of another name.  Numbers are finite, and no truth values."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth(cls, data: Any) -> Any:
        for name, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(name)
            if field and field.annotation in (int, float):
                try:
                    plain(value)
                except ValueError:
                    wanted = "a whole number" if field.annotation is int else "a number"
                    raise ConfigError(f"{name} is {value!r}; it should be {wanted}") from None
        return data

    def unread(self, names: tuple[str, ...], whose: str) -> None:
        """ConfigError where a setting of these is not left as it is by default."""
        for name in names:
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ConfigError(f"{name}={value!r} has no effect on {whose}; leave it out")


def places(kind: type[Settings]) -> dict[str, tuple[str, ...]]:
    """The name of every setting in `kind` and its parts -> where it is, such as ("run", "out")."""
    out: dict[str, tuple[str, ...]] = {}
    for name, field in kind.model_fields.items():
        out[name] = (name,)
        for part in _parts(field.annotation):
            out |= {leaf: (name, *path) for leaf, path in places(part).items()}
    return out


def _parts(annotation: Any) -> list[type[Settings]]:
    """The models that an annotation, or a union of several, is of."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [part for inner in get_args(annotation) for part in _parts(inner)]


def merged(kind: type[Settings], *tables: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain data of `kind`, later tables above earlier ones.

    A key is the path of a setting ("optim.lr"), its last word, or a part with a table of its own.
    Raises ConfigError for a key that is none.
    """
    known, out = places(kind), dict[str, Any]()
    paths = {".".join(path): path for path in known.values()}
    for key, value in _flat(known, tables):
        *start, last = key.split(".")
        key = ".".join([*start, FORMER.get(last, last)])
        path = paths.get(key) or known.get(key)
        if path is None:
            raise ConfigError(f"there is no setting {key!r}; the settings are {', '.join(known)}")
        inner = out
        for word in path[:-1]:
            if not isinstance(inner.get(word), dict):
                inner[word] = {"distribution": inner[word]} if word in inner else {}
            inner = inner[word]
        inner[path[-1]] = value
    return out


def _flat(known: Mapping[str, tuple[str, ...]], tables: tuple[Mapping[str, Any], ...]) -> Any:
    """(key, value) of every table, the tables in them opened."""
    for table in tables:
        for key, value in table.items():
            path = ".".join(known.get(key, (key,)))
            inside = any(".".join(p).startswith(f"{path}.") for p in known.values())
            if isinstance(value, Mapping) and inside:
                yield from _flat(known, ({f"{path}.{k}": v for k, v in value.items()},))
            else:
                yield key, value


def fault(error: ValidationError) -> str:
    """The first of pydantic's faults in one line: which setting, what it is, what it should be."""
    found = error.errors()[0]
    if "error" in found.get("ctx", {}):  # one of our own, which says it all
        return str(found["ctx"]["error"])
    name = str(found["loc"][-1]) if found["loc"] else "it"
    if found["type"] == "missing":
        return f"{name} is missing; give it"
    if found["type"] == "union_tag_invalid":
        return f"{name} is {found['ctx']['tag']!r}; choose {found['ctx']['expected_tags']}"
    if found["type"] == "extra_forbidden":
        return f"{name}={found['input']!r} has no effect beside these settings; leave it out"
    wanted = re.sub(r"^(Input|String|Value|Dictionary)", "it", found["msg"])
    return f"{name} is {found['input']!r}; {wanted}"
