"""How a server is started; every field is a flag of `everyway serve`, and every limit is here."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from everyway.settings import ConfigError, Settings

Whole = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0)]


class Limits(Settings):
    """What one request may ask for, and all of them together."""

    max_body: Whole = 20_000_000
    """Bytes of a request."""
    max_pixels: Whole = 4_194_304
    """Of a picture, sent or made."""
    max_n: Whole = 16
    """Samples of a request."""
    max_steps: Whole = 250
    """Of a request."""
    max_frames: Annotated[int, Field(ge=2)] = 32
    """Of an interpolation."""
    max_rounds: Whole = 16
    """Of a chain."""
    max_waiting: Whole = 256
    """Samples that may wait; a request beyond them is answered 429."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a request may take, waiting included."""


class ServerConfig(Limits):
    """Of `everyway serve`."""

    models: Annotated[tuple[str, ...], Field(min_length=1)] = ("default",)
    """The models that are served, a comma between them; requests name them and no others."""
    device: str = "auto"
    """Cpu, cuda, ...; by default a GPU if there is."""
    dtype: str = "auto"
    """Of the weights: fp32, bf16 or fp16; by default fp32 on a CPU, bf16 on a GPU."""
    host: str = "127.0.0.1"
    """The address that it listens at; any but this machine's own needs a token."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The port that it listens at; 0 is any that is free."""
    token_file: str = ""
    """A file whose one line every request has to give, as `Authorization: Bearer TOKEN`."""
    together: Whole = 16
    """Samples of one batch, at most."""
    gather: Seconds = 0.01
    """Seconds that the first request of a batch waits for others."""
    grace: Seconds = 30.0
    """Seconds that a shutdown waits for what is under way."""
    jobs: str = ""
    """A folder in which jobs are kept, which several servers may share; by default one that is
    removed at the end."""
    keep: Seconds = 3600.0
    """Seconds that a job is kept after its end."""
    content_filter: str = ""
    """A function, as MODULE:NAME, that may refuse what is asked for and what is made."""
    watermark: Annotated[str, Field(max_length=32)] = ""
    """An invisible text in every picture of 256x256 or more."""
    provenance: bool = False
    """Say in every picture, as IPTC has it, that a model made it."""
    engine: Literal["local", "ray"] = "local"
    """What runs the server: local, or ray."""
    replicas: Whole = 1
    """How many servers ray runs, each with a device of its own."""

    @model_validator(mode="after")
    def _coherent(self) -> ServerConfig:
        if not self.loopback and not self.token_file:
            raise ConfigError(
                f"others can reach {self.host}; give --token-file FILE with what they have to know"
            )
        if self.replicas > 1 and self.engine != "ray":
            raise ConfigError("replicas are of ray; give --engine ray")
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def token(self) -> str:
        """What every request has to give, or nothing.  ConfigError where there is none to read."""
        if not self.token_file:
            return ""
        try:
            token = Path(self.token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"no token can be read from {self.token_file!r}") from None
        if len(token) < 16 or not token.isascii() or len(token.split()) != 1:
            raise ConfigError(
                f"{self.token_file} should hold one word of 16 or more letters and digits, as "
                "openssl rand -hex 16 makes them"
            )
        return token
