"""What attention reads, and a prompt that is switched in the middle of a run."""

from __future__ import annotations

from threading import Thread
from xml.etree import ElementTree

import pytest
import torch

from everyway.controls.paint import Canvas, PaintWeight, painting
from everyway.metrics.inside import attention_by_noise, drawing, pictures_after_switch, watched
from everyway.metrics.plot import curves_svg
from everyway.nets.attention import CrossAttention, SelfAttention, attention, attention_weights
from everyway.sampling.loop import final
from everyway.systems import ediffi

TEXTS = ["a red circle left on white", "a blue cross right on white"]
WORDS = tuple("a blue circle cross left on red right white".split())


@pytest.fixture(scope="module")
def unet():
    """ediffi-nano with weights none of which are zero."""
    generator = torch.Generator().manual_seed(0)
    system = ediffi.build(ediffi.nano(WORDS))
    for p in system.network.parameters():
        p.data = 0.6 * torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5
    return system


@pytest.mark.parametrize("module", [SelfAttention(12, 3), CrossAttention(12, 3, 12)])
def test_the_weights_that_are_seen_are_those_that_are_used(module):
    x, seen = torch.randn(2, 5, 12), []
    given = (x,) if isinstance(module, SelfAttention) else (x, torch.randn(2, 4, 12))
    keys = given[-1].shape[1]
    mask = torch.rand(2, 1, 1, keys) > 0.3
    mask[..., 0] = True
    bias = torch.randn(2, 3, 5, keys)
    with watched(module, lambda m, weights: seen.append(weights)):
        out = module(*given, mask=mask, bias=lambda scores: scores * 0 + bias)
    module(*given)  # nobody watches any more
    (weights,), (_, _, v) = seen, module.heads_of(*given)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))
    made = module.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(made, out, rtol=0, atol=1e-5)


def test_what_other_threads_run_is_not_seen():
    module, seen = SelfAttention(12, 3), []
    with watched(module, lambda m, weights: seen.append(weights)):
        other = Thread(target=module, args=(torch.randn(1, 5, 12),))
        other.start()
        other.join()
        assert seen == []
        module(torch.randn(2, 5, 12))
    assert [len(weights) for weights in seen] == [2]


def test_weights_of_the_plain_case():
    q, k, v = (torch.randn(2, 3, 5, 8) for _ in range(3))
    torch.testing.assert_close(attention_weights(q, k) @ v, attention(q, k, v), rtol=0, atol=1e-5)


def test_where_tokens_are(nano, unet):
    network, shapes = nano.system.network, nano.system.shapes(1)
    states = {name: torch.zeros(shape) for name, shape in shapes.items()}
    times = dict.fromkeys(("image", "text"), torch.zeros(1, dtype=torch.float64))
    spans, seen = network.spans(states, times), []
    with watched(network, lambda m, weights: seen.append(weights.shape)):
        network(states, times, nano.system.null_contexts(1))
    assert max(s.stop for s in spans.values()) == seen[0][2] == seen[0][3]
    assert spans["image"].stop - spans["image"].start == 16 and spans["time_image"] == slice(0, 1)
    assert unet.network.spans({}, {}) == {
        "t5": slice(0, 10),
        "clip_text": slice(10, 20),
        "style": slice(20, 21),
    }


def test_attention_to_words_is_what_a_bias_makes_it(unet):
    """Of both encoders in one sum; a share of all that is attended to."""
    rows = attention_by_noise(unet, TEXTS, steps=3)
    assert len(rows) == 3 and rows[0][0] == 1 and all(a[0] > b[0] for a, b in zip(rows, rows[1:]))
    assert all(0 < words < 1 and 0 < rest and words + rest < 1 for _, words, rest in rows)


def test_joint_attention_reads_its_text(nano):
    rows = attention_by_noise(nano.system, TEXTS, steps=2)
    assert all(words > 0.01 and words + rest < 1 for _, words, rest in rows)
    assert attention_by_noise(nano.system, TEXTS, steps=2, ends=lambda: True) == rows[:1]


def test_a_switched_prompt(nano):
    """None of the steps with the first prompt is the second's picture, all of them the first's."""
    system, others = nano.system, TEXTS[::-1]

    def after(share):
        return pictures_after_switch(system, TEXTS, others, share, seed=3, steps=4)

    first, second = (
        system.decode({"image": final(drawing(system, texts, 3, 4)).states["image"]})["image"]
        for texts in (TEXTS, others)
    )
    assert torch.equal(after(1.0), first) and torch.equal(after(0.0), second)
    half = after(0.5)
    assert not torch.equal(half, first) and not torch.equal(half, second)


def test_painted_weights_grow(unet):
    """Within its region a painted phrase has more of the attention, elsewhere no more."""
    maps = torch.zeros(1, 16, 16)
    maps[:, :, :8] = 1
    canvas = Canvas(text=TEXTS[0], maps=maps, phrases=("red circle",), strengths=(1.0,))
    change = painting([canvas], unet, unet.tasks["text-to-image"], PaintWeight(value=2.0))

    def seen(change):
        first = {}
        with watched(unet.network, lambda m, w: first.setdefault(type(m), w)):
            final(drawing(unet, TEXTS[:1], steps=1, guidance=1.0, change=change))
        return first[CrossAttention][0].mean(0)[:, 1:3].sum(-1).view(8, 8)  # t5's "red circle"

    plain, painted = seen(None), seen(change)
    assert (painted[:, :4] > plain[:, :4]).all()
    torch.testing.assert_close(painted[:, 4:], plain[:, 4:])


def test_a_plot_is_xml_with_its_names():
    made = ElementTree.fromstring(
        curves_svg({"a & b": [(0, 0.1), (1, 0.9)], "c": [(0, 1)]}, "t", "y")
    )
    words = [node.text for node in made.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a & b", "c", "t", "y", "0.5"} <= set(words)
    with pytest.raises(ValueError, match="no point"):
        curves_svg({"a": []}, "t", "y")
