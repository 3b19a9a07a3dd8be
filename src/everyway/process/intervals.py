"""Intervals of noise of equal probability as a binary tree, and which of them get an expert.

Level l cuts the distribution of training times into 2^l intervals of equal probability; an expert
starts as its parent and learns half of its parent's interval.

Source: Balaji et al., "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert
Denoisers", 2022, arXiv 2211.01324, section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from everyway.errors import UsageError

DEEPEST = 30
"""Quantiles of deeper levels can no more be told apart by draws of 32 bits."""
REST = "rest"
"""The name of the complement: the one expert of all noise that no leaf covers."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Of the quantiles from `low` to `high`; `name` is its expert's, `parent` whose copy that
    begins as ("" is the root, which knows all noise)."""

    name: str
    low: float
    high: float
    parent: str = ""


@dataclass(frozen=True, kw_only=True)
class Node:
    """E^level_index, the quantiles from index / 2^level to (index + 1) / 2^level; 0 is the least
    noise."""

    level: int
    index: int

    def __post_init__(self) -> None:
        if not (0 <= self.level <= DEEPEST and 0 <= self.index < 2**self.level):
            last = 2 ** min(max(self.level, 0), DEEPEST) - 1
            raise UsageError(
                f"there is no interval {self.name}; levels are 0 to {DEEPEST}, and this one has "
                f"intervals 0 to {last}"
            )

    @property
    def name(self) -> str:
        return f"E{self.level}_{self.index}"

    @property
    def low(self) -> float:
        return self.index / 2**self.level

    @property
    def high(self) -> float:
        return (self.index + 1) / 2**self.level

    @property
    def parent(self) -> Node:
        """Raises UsageError for the root."""
        return Node(level=self.level - 1, index=self.index // 2)

    @property
    def children(self) -> tuple[Node, Node]:
        first = Node(level=self.level + 1, index=2 * self.index)
        return first, Node(level=first.level, index=first.index + 1)

    @property
    def line(self) -> tuple[Node, ...]:
        """From a child of the root down to this one; of the root nothing."""
        return (*self.parent.line, self) if self.level else ()

    @property
    def interval(self) -> Interval:
        parent = self.parent.name if self.level > 1 else ""
        return Interval(name=self.name, low=self.low, high=self.high, parent=parent)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which nodes become experts; one complement covers what lies between them.

    leaves: in any order.  Raises UsageError for leaves that overlap, and for such that leave more
    than one gap, which one complement trained on one interval cannot cover.
    """

    leaves: tuple[Node, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.leaves, key=lambda node: node.low))
        object.__setattr__(self, "leaves", ordered)
        for one, other in zip(ordered, ordered[1:]):
            if other.low < one.high:
                raise UsageError(f"{one.name} and {other.name} overlap; leave one of them out")
        if sum(cell.name == REST for cell in self.cells) > 1:
            names = ", ".join(node.name for node in ordered)
            raise UsageError(f"{names} leave several gaps; grow them from the edges, or fill one")

    @property
    def cells(self) -> tuple[Interval, ...]:
        """The experts by rising noise, from quantile 0 to 1."""
        made: list[Interval] = []
        for leaf in (*self.leaves, None):
            begun, end = made[-1].high if made else 0.0, leaf.low if leaf else 1.0
            if begun < end:
                made.append(Interval(name=REST, low=begun, high=end))
            if leaf:
                made.append(leaf.interval)
        return tuple(made)

    @property
    def stages(self) -> tuple[Interval, ...]:
        """What is trained, parents first: the line of every leaf, and then the complement."""
        nodes = dict.fromkeys(node for leaf in self.leaves for node in leaf.line)
        rest = tuple(cell for cell in self.cells if cell.name == REST and self.leaves)
        return (*(node.interval for node in sorted(nodes, key=lambda n: n.level)), *rest)


def edges(low: int, high: int) -> Plan:
    """The least noise down to level `low` and the most down to level `high` (0: not grown)."""
    nodes = [Node(level=low, index=0)] * (low > 0)
    return Plan(leaves=(*nodes, *[Node(level=high, index=2**high - 1)] * (high > 0)))


def level(number: int) -> Plan:
    """All 2^number intervals of a level."""
    return Plan(leaves=tuple(Node(level=number, index=index) for index in range(2**number)))


def grown(gains: Mapping[Node, float], count: int) -> Plan:
    """`count` leaves, each time parting the leaf whose parting promises the most.

    gains: node -> what parting it promises.  Raises UsageError where too few are known.
    """
    leaves = {Node(level=0, index=0)}
    while len(leaves) < count:
        known = [node for node in sorted(leaves, key=lambda n: n.low) if node in gains]
        if not known:
            raise UsageError(f"{count} experts are more than were measured; measure a deeper level")
        best = max(known, key=lambda node: gains[node])
        leaves = leaves - {best} | {*best.children}
    return Plan(leaves=tuple(leaves))


PUBLISHED: dict[str, dict[str, Plan]] = {
    "a": {},
    "b": {"sr256": level(1)},
    "c": {"sr256": level(1), "base": edges(0, 9)},
    "d": {"sr256": level(1), "base": edges(3, 9)},
}
"""The paper's configurations: stage of the cascade -> its experts; other stages have one network.
D is the model that the paper reports."""
FORMS = "edges-3, level-2, measured-4, ediffi-d, ediffi-d:sr256, or intervals such as E1_0,E3_7"


def named(name: str) -> Plan:
    """The plan of a name.

    edges-L: the least and the most noise, both down to level L.  level-L: all of that level.
    ediffi-a to ediffi-d: a published configuration's base, with ":sr256" its first
    super-resolution.  E3_0,E9_511: these intervals and their complement.
    Raises UsageError for any other.
    """
    if found := re.fullmatch(r"ediffi-([a-d])(?::(base|sr256|sr1024))?", name):
        return PUBLISHED[found[1]].get(found[2] or "base", Plan(leaves=()))
    if found := re.fullmatch(r"(edges|level)-([1-9])", name):
        number = int(found[2])
        return edges(number, number) if found[1] == "edges" else level(number)
    nodes = [re.fullmatch(r"E(\d{1,2})_(\d{1,10})", word) for word in name.split(",")]
    if not all(nodes):
        raise UsageError(f"plan {name!r} is unknown; give one as {FORMS}")
    return Plan(leaves=tuple(Node(level=int(n[1]), index=int(n[2])) for n in nodes if n))
