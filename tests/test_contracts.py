"""Contexts and queries move, slice and join as one value."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.utils._pytree import register_pytree_node

from everyway.contracts import Context, Query, contexts_in, flat, placed, rows, together


def context(batch: int, **fields) -> Context:
    return Context(tokens=torch.randn(batch, 3, 4), **fields)


def query(batch: int, conditioning: Context, keep=("x",)) -> Query:
    times = {"x": torch.full((batch,), 0.5, dtype=torch.float64)}
    states = {"x": torch.randn(batch, 5), "y": torch.randint(0, 9, (batch, 6))}
    return Query(states=states, times=times, contexts={"text": conditioning}, keep=keep)


def test_all_of_a_query_moves_and_slices():
    full = context(
        3,
        mask=torch.rand(3, 3) > 0.5,
        bias=torch.randn(3, 1, 1, 3),
        weight=torch.rand(3),
        dropped=torch.rand(3) > 0.5,
    )
    asked = query(3, full)
    meta, cut = placed(asked, "meta"), rows(asked, slice(1, 2))
    for name, value in vars(full).items():
        assert getattr(meta.contexts["text"], name).is_meta
        assert torch.equal(getattr(cut.contexts["text"], name), value[1:2])
    assert meta.times["x"].is_meta and meta.keep == ("x",) and cut.batch == 1
    assert torch.equal(cut.states["y"], asked.states["y"][1:2])
    assert full.to("meta").mask.is_meta and full.rows(slice(2, 3)).expand(4).tokens.shape[0] == 4


def test_queries_of_equal_shapes_are_one():
    plain, lost = context(2), context(1, dropped=torch.tensor([True]))
    asked = [query(2, plain), query(1, lost, keep=("y",))]
    assert asked[0].shapes == asked[1].shapes
    whole = together(asked)
    assert whole.batch == 3 and whole.keep == ("x", "y")
    assert whole.contexts["text"].dropped.tolist() == [False, False, True]
    assert whole.contexts["text"].mask is None
    assert torch.equal(rows(whole, slice(0, 2)).states["x"], asked[0].states["x"])
    longer = query(1, Context(tokens=torch.randn(1, 7, 4)))
    assert longer.shapes != asked[0].shapes


def test_one_context_where_it_is_chosen_and_another_elsewhere():
    a, b = context(2, mask=torch.tensor([[True, True, False]] * 2)), context(2)
    made = a.where(torch.tensor([True, False]), b)
    assert torch.equal(made.tokens, torch.stack([a.tokens[0], b.tokens[1]]))
    assert made.mask.tolist() == [[True, True, False], [True, True, True]]
    lost = context(1, dropped=torch.tensor([True]), mask=torch.zeros(1, 3, dtype=torch.bool))
    assert lost.attended.all() and a.attended is a.mask


@dataclass(frozen=True)
class Paint:
    """A function of the scores that is a pytree."""

    where: torch.Tensor

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        return self.where[:, None] * scores.amax((-1, -2), keepdim=True)


register_pytree_node(Paint, lambda p: ([p.where], None), lambda leaves, _: Paint(*leaves))


def test_a_bias_that_is_a_function_is_batched_as_a_pytree_or_refused():
    painted, plain = context(1, bias=Paint(torch.ones(1, 5, 3))), context(1)
    made = together([query(1, painted), query(1, plain)])
    assert made.contexts["text"].bias.where[:, 0, 0].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="make the function a pytree"):
        together([query(1, context(1, bias=f)) for f in (lambda s: s, lambda s: 2 * s)])


def test_contexts_are_cached_as_tensors_and_read_again():
    conditioning = {
        "text": context(2, mask=torch.ones(2, 3, dtype=torch.bool)),
        "style": context(2),
    }
    held = flat(conditioning)
    assert set(held) == {"context.text", "context.text.mask", "context.style"}
    back = contexts_in({**held, "context.text.mask": held["context.text.mask"].long(), "text": 0})
    assert set(back) == {"text", "style"} and back["text"].mask.dtype == torch.bool
    with pytest.raises(ValueError, match="is a function"):
        flat({"text": context(1, bias=lambda s: s)})
