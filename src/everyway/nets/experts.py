"""Networks of one signature as one network, each for the noise of its own interval.

Exactly one of them answers for a sample, chosen by the time of one clock, so an ensemble costs a
step what one network does.

Source: Balaji et al., "eDiff-I", 2022, arXiv 2211.01324, section 4.1.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from everyway.contracts import Bundle, Contexts, Query, Times, joined, rows
from everyway.errors import UsageError


class Experts(nn.Module):
    """(states, times, contexts) -> raw outputs, as each of its networks.

    networks: by name, of one signature.
    clocks: the first of them that a call has a time of decides.
    bounds: times at which the next interval begins, rising, in (0, 1).
    names: the network of every interval by rising time, one more than bounds; one network may have
    several intervals.
    Raises UsageError where these do not go together.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        clocks: Sequence[str],
        bounds: Sequence[float],
        names: Sequence[str],
    ) -> None:
        super().__init__()
        if len(names) != len(bounds) + 1 or list(bounds) != sorted(set(bounds)):
            raise UsageError(
                f"{len(names)} experts with bounds {[*bounds]}; give rising times, one fewer"
            )
        if odd := sorted(networks.keys() ^ set(names)):
            raise UsageError(f"experts {', '.join(odd)} are without a network or an interval")
        self.clocks, self.bounds, self.names = tuple(clocks), tuple(bounds), tuple(names)
        self.components = nn.ModuleDict(networks)

    def chosen(self, times: Times) -> list[str]:
        """The network of every sample, by name.  A time at a bound is of the interval above."""
        clock = next((c for c in self.clocks if c in times), None)
        if clock is None:
            raise ValueError(f"experts are chosen by {self.clocks}, and times are of {[*times]}")
        return [self.names[bisect_right(self.bounds, t)] for t in times[clock].tolist()]

    def needed(self, times: Times, contexts: Contexts | None = None) -> list[str]:
        """The networks that a call at these times asks, by name, each once."""
        return list(dict.fromkeys(self.chosen(times)))

    def after(self, times: Times) -> str:
        """The network of the next interval with less noise than the first sample's, by name."""
        clock = next(c for c in self.clocks if c in times)
        return self.names[max(0, bisect_right(self.bounds, float(times[clock][0])) - 1)]

    def forward(
        self,
        states: Bundle,
        times: Times,
        contexts: Contexts | None = None,
        keep: tuple[str, ...] | None = None,
    ) -> Bundle:
        """A batch of several intervals is split among their networks and put together again."""
        chosen = self.chosen(times)
        if len(names := dict.fromkeys(chosen)) == 1:
            return self.components[chosen[0]](states, times, contexts, keep)
        query = Query(states=states, times=times, contexts=contexts or {})
        device = next(iter(states.values())).device
        places = [torch.tensor([k for k, n in enumerate(chosen) if n == name]) for name in names]
        parts = []
        for name, place in zip(names, places):
            own = rows(query, place.to(device))
            parts.append(self.components[name](own.states, own.times, own.contexts, keep))
        return rows(joined(parts), torch.cat(places).argsort().to(device))
