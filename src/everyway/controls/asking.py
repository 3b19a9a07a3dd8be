"""Queries that are changed before they are asked: other contexts or states, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from everyway.contracts import Bundle, Contexts, Denoise, Query

Change = Callable[[Query], Query]
"""A query at its times -> what is asked in its place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Changed:
    """A contracts.Denoise that asks another one what `change` makes of every query.

    Around guidance it bears on the conditional branch alone: what an unconditional branch leaves
    out goes with everything that was said of it.
    """

    denoise: Denoise
    change: Change

    def forwards(self, query: Query) -> int:
        """How many network forwards the answer to `query` costs."""
        return getattr(self.denoise, "forwards", lambda query: 1)(self.change(query))

    def __call__(self, queries: Sequence[Query]) -> list[Bundle]:
        return self.denoise([self.change(query) for query in queries])


def switching(states: Bundle, contexts: Contexts, clock: str, at: float) -> Change:
    """What puts these states and contexts in place of others once `clock` is at time `at` or below:
    another prompt for the rest of a run."""

    def switch(query: Query) -> Query:
        if float(query.times[clock][0]) > at:
            return query
        return replace(
            query, states={**query.states, **states}, contexts={**query.contexts, **contexts}
        )

    return switch
