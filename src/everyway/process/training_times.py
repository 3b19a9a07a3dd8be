"""How training draws its times, as settings: `times.distribution` names one of these classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from everyway.contracts import Noise, Process, Times
from everyway.process.times import (
    KNOTS,
    Line,
    Within,
    knot_times,
    lines_within,
    lognormal_quantile,
    lognormal_times,
    mixture_times,
    shifted,
    task_lines,
    uniform_times,
)
from everyway.settings import ConfigError, Settings

Clocks = Mapping[str, Process]
"""clock -> the process of a modality that follows it."""


class Law(Settings):
    """low, high: quantiles of the times that are trained on, an expert's interval of noise; under
    uniform times they are times (`times.Within`).  clock: whose times, where experts are chosen by
    one of several clocks; "" is every clock's.
    min_snr: gamma of min-SNR weights of the losses at these times, 5 in the paper; 0 weighs all
    times alike (`GaussianProcess.min_snr`).
    """

    min_snr: float = Field(0.0, ge=0)
    low: float = Field(0.0, ge=0, le=1)
    high: float = Field(1.0, ge=0, le=1)
    clock: str = ""

    @model_validator(mode="after")
    def _rising(self) -> Law:
        if self.low >= self.high:
            raise ConfigError(f"low is {self.low} and high {self.high}; give low < high")
        return self

    def draw(self, noise: Noise, clocks: Clocks, batch: int) -> Times:
        """clock -> (batch,)."""
        if self.clock and self.clock not in clocks:
            raise ConfigError(f"clock is {self.clock!r}; choose one of {', '.join(clocks)}")
        within = Within(noise=noise, low=self.low, high=self.high, clock=self.clock)
        return self._drawn(within, clocks, batch)

    @property
    def free(self) -> Law:
        """The same, of times that no task fixes."""
        return self

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        """Times (...) of a clock of `process` at the quantiles u (...) in [0, 1], the least noise
        first; of the times that are drawn, not those that are fixed."""
        raise NotImplementedError

    def _drawn(self, noise: Noise, clocks: Clocks, batch: int) -> Times:
        raise NotImplementedError


class Uniform(Law):
    """Every clock on its own, uniform in [0, 1)."""

    distribution: Literal["uniform"] = "uniform"

    def _drawn(self, noise: Noise, clocks: Clocks, batch: int) -> Times:
        return uniform_times(noise, (*clocks,), batch)

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return u


class Knots(Law):
    """Every clock on its own, on the thousand steps of a discrete schedule."""

    distribution: Literal["knots"] = "knots"

    def _drawn(self, noise: Noise, clocks: Clocks, batch: int) -> Times:
        return knot_times(noise, (*clocks,), batch)

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        """Between two knots, so that a knot is of one interval whatever its last bits."""
        return ((u * KNOTS).floor() + 0.5) / KNOTS


class LogNormal(Law):
    """log(sigma / alpha) of every clock normal with this mean and standard deviation."""

    distribution: Literal["lognormal"] = "lognormal"
    mean: float = -1.2
    std: float = Field(1.2, gt=0)

    def _drawn(self, noise: Noise, clocks: Clocks, batch: int) -> Times:
        out: Times = {}
        for clock, process in clocks.items():
            schedule = process.schedule  # type: ignore[attr-defined]
            out |= lognormal_times(
                noise, (clock,), batch, schedule=schedule, mean=self.mean, std=self.std
            )
        return out

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        schedule = process.schedule  # type: ignore[attr-defined]
        return lognormal_quantile(u, schedule, self.mean, self.std)


class Tasks(Law):
    """The clocks `image` and `text`, mostly on the lines that tasks sample on.

    shift: how far times are drawn towards 1, where what a picture shows is decided.
    to_image, to_text, joint, image_alone, text_alone: shares of the samples, as of `task_lines`.
    """

    distribution: Literal["tasks"] = "tasks"
    shift: float = Field(4.0, ge=1)
    to_image: float = Field(0.53, ge=0)
    to_text: float = Field(0.32, ge=0)
    joint: float = Field(0.06, ge=0)
    image_alone: float | None = Field(None, ge=0)
    text_alone: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _shares(self) -> Tasks:
        if self._lines[0].share < -1e-9:
            given = ("to_image", "to_text", "joint", "image_alone", "text_alone")
            named = (f"{k} is {v:g}" for k in given if (v := getattr(self, k)) is not None)
            raise ConfigError(f"{', '.join(named)}; they are shares, from 0 to 1 together")
        return self

    @property
    def free(self) -> Law:
        shares = ("to_image", "to_text", "joint", "image_alone", "text_alone")
        return self.model_copy(update=dict.fromkeys(shares, 0.0))

    @property
    def _lines(self) -> tuple[Line, ...]:
        return task_lines(
            self.to_image, self.to_text, self.joint, self.image_alone, self.text_alone
        )

    def _drawn(self, noise: Noise, clocks: Clocks, batch: int) -> Times:
        lines = self._lines
        names = sorted(clocks, key=lambda clock: clock != self.clock)  # first its own, of a tie
        if self.clock:
            lines = lines_within(lines, self.clock, self.low, self.high)
        return mixture_times(noise, names, batch, lines=lines, shift=self.shift)

    def quantile(self, u: Tensor, process: Process) -> Tensor:
        return shifted(u, self.shift)


class Importance(Settings):
    """Steps of a token process, in proportion to the losses seen at them (`times.importance`)."""

    distribution: Literal["importance"] = "importance"

    @property
    def min_snr(self) -> float:
        """Tokens have no SNR."""
        return 0.0


def _or(distribution: str) -> BeforeValidator:
    """A distribution may be given by its name alone; `distribution` is the one where none is
    named."""
    return BeforeValidator(
        lambda value: (
            {"distribution": value}
            if isinstance(value, str)
            else {"distribution": distribution, **value}
            if isinstance(value, dict)
            else value
        )
    )


OneClock: TypeAlias = Annotated[
    Uniform | Knots | LogNormal, Field(discriminator="distribution"), _or("uniform")
]
TwoClocks: TypeAlias = Annotated[
    Tasks | Uniform | Knots | LogNormal, Field(discriminator="distribution"), _or("tasks")
]
Tokens: TypeAlias = Annotated[
    Uniform | Knots | Importance, Field(discriminator="distribution"), _or("importance")
]
