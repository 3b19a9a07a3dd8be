"""Paint-with-words: the paper's attention by numbers, which tokens a phrase has, and what is asked
of a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from everyway.codecs.published_tokens import ClipTokens
from everyway.codecs.text_tokens import Tokens, phrase_tokens, word_tokens
from everyway.codecs.token_table import QUALIFYING
from everyway.contracts import Context, Query, joined, rows, together
from everyway.controls.paint import FORMS, Canvas, PaintBias, PaintWeight, painting
from everyway.errors import UsageError
from everyway.generate import paint_weight_of
from everyway.guidance import guided
from everyway.media import painted_shares
from everyway.nets.attention import attention
from everyway.request import PAINT_FORMS, GenerateRequest, RequestError
from everyway.sampling.loop import absent_states
from everyway.sampling.noise import PerSampleNoise
from small_t5 import T5_TOKENS

GOLDEN = Path(__file__).parents[1] / "golden" / "ediffi" / "i_ediffi.npz"


@pytest.fixture(scope="module")
def pww() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN) as file:
        return {k[4:]: torch.from_numpy(file[k]) for k in file if k.startswith("pww.")}


@pytest.fixture(scope="module")
def mini():
    from everyway.generate import load

    return load("mini")


def words(strength: float = 1.0) -> torch.Tensor:
    """The golden's: the first phrase is told by tokens 1 and 2, the second by token 4."""
    out = torch.zeros(1, 2, 6)
    out[0, 0, 1:3], out[0, 1, 4] = strength, strength
    return out


@pytest.mark.parametrize("sigma", [80.0, 5.0, 0.5, 0.01])
@pytest.mark.parametrize("value", [0.4, 1.0])
@pytest.mark.parametrize("statistic, scope", [("max", "globalmax"), ("head-max", "perheadmax")])
def test_the_papers_attention(pww, sigma, value, statistic, scope):
    scores = pww["QKT"]  # as q k^T of 8 dimensions
    q = torch.nn.functional.pad(scores, (0, 2))
    k = torch.eye(6, 8, dtype=torch.float64).expand(1, 2, 6, 8)
    v = torch.linalg.lstsq((scores / 8**0.5).softmax(-1), pww["noA.out"]).solution
    weight = PaintWeight(value=value, statistic=statistic)
    bias = PaintBias(
        maps=torch.stack([pww["mask1"], pww["mask2"]])[None],
        words=words(),
        weight=weight.at(torch.tensor([sigma], dtype=torch.float64)),
        statistic=statistic,
    )
    name, close = f"s{sigma}.w{value}", dict(rtol=0, atol=3e-6)
    if scope == "globalmax":
        w = weight.at(torch.tensor(sigma)) * scores.max()
        torch.testing.assert_close(w.double(), pww[f"{name}.w"], rtol=1e-6, atol=0)
    got = (scores / 8**0.5 + bias(scores / 8**0.5)).softmax(-1).float()
    torch.testing.assert_close(got, pww[f"{name}.{scope}.attn"], **close)
    out = attention(q, k, v, bias=bias).float()
    torch.testing.assert_close(out, pww[f"{name}.{scope}.out"], rtol=0, atol=2e-5)


def test_the_papers_map(pww):
    """At half the size the mean over a place's pixels is the bilinear one."""
    bias = PaintBias(
        maps=torch.stack([pww["mask1"], pww["mask2"]])[None],
        words=words(),
        weight=torch.ones(1),
        statistic="max",
    )
    torch.testing.assert_close(bias(torch.ones(1, 1, 16, 6))[0, 0], pww["A"].float())


def test_the_forms_of_the_weight():
    sigma = torch.tensor([0.0, 0.5, 80.0, torch.inf], dtype=torch.float64)
    paper, square = PaintWeight(value=2.0), PaintWeight(value=2.0, growth="log-square")
    end = float(np.log(81))
    assert paper.at(sigma).tolist() == pytest.approx([0, 2 * np.log(1.5), 2 * end, 2 * end])
    assert square.at(sigma)[1].item() == pytest.approx(2 * np.log(1.25))
    scores = torch.randn(2, 3, 4, 6)
    told = {"maps": torch.ones(2, 2, 2, 2), "words": words().expand(2, -1, -1)}
    for statistic, expected in (("std", scores[1].std()), ("head-std", scores[1, 2].std())):
        bias = PaintBias(**told, weight=torch.tensor([1.0, 3.0]), statistic=statistic)
        added = bias(scores).expand(2, 3, 4, 6)[1, 2]
        torch.testing.assert_close(added[:, [1, 4]], 3 * expected.expand(4, 2))
        assert (added[:, [0, 3, 5]] == 0).all()
    late = PaintWeight(above=0.5).at(torch.tensor([0.4, 0.5, 0.6])).tolist()
    assert late == pytest.approx([0, 0, 0.4 * np.log(1.6)])
    with pytest.raises(UsageError, match="growth 'cubic' is unknown; choose one of log, "):
        PaintWeight(growth="cubic")


def test_few_places_are_painted_whole():
    maps = torch.tensor([[[[1.0, 0.5], [0.4, 0]]]])
    told = {"maps": maps, "words": torch.ones(1, 1, 1), "weight": torch.ones(1)}
    scores = torch.ones(1, 1, 4, 1)
    soft, whole = (PaintBias(**told, statistic="max", whole=w)(scores) for w in (False, True))
    assert soft.flatten().tolist() == pytest.approx([1, 0.5, 0.4, 0])
    assert whole.flatten().tolist() == [1, 1, 0, 0]


def test_strengths_overlaps_and_batches():
    scores = torch.randn(1, 2, 4, 3).abs()
    maps = torch.tensor([[[[1.0, 0], [0, 0]], [[1.0, 1], [0, 0]]]])
    same = torch.tensor([[[0.0, 1, 0], [0, 1, 0]]]) * torch.tensor([1.0, -0.5])[:, None]
    bias = PaintBias(maps=maps, words=same, weight=torch.ones(1), statistic="max")
    expected = scores.max() * torch.tensor([0.5, -0.5, 0, 0])
    torch.testing.assert_close(bias(scores)[0, 0, :, 1], expected)
    context = Context(tokens=torch.randn(1, 3, 5), bias=bias)
    both = joined([context, context])
    assert both.bias.weight.shape == (2,) and rows(both, slice(1, 2)).bias.words.shape == (1, 2, 3)
    with pytest.raises(ValueError, match="7 places are no grid in the shape of a map 2x2"):
        bias(torch.randn(1, 1, 7, 3))


CAPTION = "a small cat left of a caterpillar and a cat"


def test_the_tokens_of_a_phrase():
    own = Tokens(word_tokens([CAPTION, "고양이 왼쪽에 여우"]), 16)
    assert own.places(CAPTION, "A  Cat").nonzero().flatten().tolist() == [8, 9]
    assert own.places(CAPTION, "cat").nonzero().flatten().tolist() == [2, 9]
    assert not own.places(CAPTION, "dog").any() and not own.places(CAPTION, " ").any()
    assert own.places("고양이 왼쪽에 여우", "왼쪽").nonzero().flatten().tolist() == [1]
    marks = ["<|startoftext|>", "<|endoftext|>", "[unk]", *CAPTION.split()]
    level = Tokenizer(models.WordLevel({w: k for k, w in enumerate(marks)}, unk_token="[unk]"))
    level.pre_tokenizer = pre_tokenizers.Whitespace()
    clip = ClipTokens(level.to_str(), 10)  # a mark first; the last cat is cut
    assert clip.places(CAPTION, "cat").nonzero().flatten().tolist() == [3]
    assert clip.encode([CAPTION])[0, 3] == level.token_to_id("cat")


def test_tokens_of_t5():
    from everyway.codecs.context_encoders import T5Tokens

    tokens = T5Tokens(T5_TOKENS, 4)
    assert tokens.places("a red fox", "Red Fox").tolist() == [False, True, True, False]
    assert not tokens.places("a red a fox", "fox").any()  # cut for the end mark


def test_plain_words():
    from everyway.codecs.plain import Words

    codec = Words(vocabulary=(), length=5, dim=4)
    assert codec.places("a red circle, a blue", "A blue").tolist() == [False] * 3 + [True, True]
    assert not codec.places("a red circle", "circles").any()


def test_tokens_of_pieces():
    """As T5's: pieces of words, which carry the space before them."""
    pieces = ["▁a", "▁cat", "er", "pillar", "▁on", "▁red", "▁", *"acdeilnoprt"]
    unigram = Tokenizer(models.Unigram([(p, -1.0) for p in pieces], 6, False))
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    text = "a caterpillar on a cat"
    names = unigram.encode(text).tokens
    assert [names[k] for k in phrase_tokens(unigram, text, "caterpillar")] == [
        "▁cat",
        "er",
        "pillar",
    ]
    assert phrase_tokens(unigram, text, "a cat") == [len(names) - 2, len(names) - 1]


def test_an_object_is_found_in_other_words(mini):
    codec = mini.system.codecs["text"]
    caption = codec.completed("fox below teapot on blue")  # a large teapot above a large fox, ...
    spelled = codec.tokens.tokenizer.encode(caption).tokens

    def told(phrase, text=caption):
        shares = codec.places(text, phrase).tolist()
        spelled = codec.tokens.tokenizer.encode(codec.phrased(text)).tokens
        return {word: share for word, share in zip(spelled, shares) if share}

    fox = {"large": QUALIFYING, "fox": 1.0}
    assert told("the fox") == told("여우") == told("a large fox") == pytest.approx(fox)
    assert told("blue background") == {"blue": 1, "background": 1}
    assert told("a penguin") == {}
    assert told("fox", "큰 여우 위에 작은 피자") == pytest.approx({"큰": QUALIFYING, "여우": 1.0})
    assert len(told(caption)) == len(set(spelled))


def canvas(text: str = "a fox and a teapot", phrases=("a fox", "a teapot"), **changes) -> Canvas:
    maps = torch.zeros(2, 96, 96)
    maps[0, :, :32], maps[1, :, 64:] = 1, 1
    settings = {"text": text, "maps": maps, "phrases": phrases, "strengths": (1.0, 1.0)}
    return Canvas(**settings | changes)


def test_the_middles_of_what_is_painted():
    maps = torch.zeros(4, 12, 12)
    maps[0, :6, :4] = maps[1, 6:, :4] = maps[2, :, 8:] = 1
    made = canvas(maps=maps, phrases=("fox", "fox", "teapot", "cat"), strengths=(1, 1, -1, 1))
    assert made.middles() == {"fox": pytest.approx((0.5, 1 / 6))}  # two regions; kept out; nowhere
    once = canvas(maps=maps, phrases=("fox", "cat", "teapot", "cat"), strengths=(1, -1, 1, 1))
    assert once.middles() == {
        "fox": pytest.approx((0.25, 1 / 6)),
        "teapot": pytest.approx((0.5, 5 / 6)),
    }


def test_only_what_is_conditional_is_painted(mini):
    system = mini.system
    task = system.tasks["text-to-image"]
    change = painting([canvas()], system, task)
    noise, asked = PerSampleNoise([1]), []
    states = system.encode({"text": ["a fox and a teapot"]})
    states |= {n: torch.randn(shape) for n, shape in system.shapes(1).items() if n != "text"}
    times = {c: torch.full((1,), t, dtype=torch.float64) for c, t in (("image", 0.7), ("text", 0))}
    contexts = system.null_contexts(1, "en")
    query = change(Query(states=states, times=times, contexts=contexts, keep=("image",)))

    def denoise(queries):
        asked.extend(queries)
        return system.denoiser(0)(queries)

    fresh = absent_states(system.processes, noise)
    both = guided(denoise, task, system.clocks, 1.5, fresh, processes=system.processes)
    both([query])
    conditional, unconditional = asked
    assert isinstance(conditional.contexts["text"].bias, PaintBias)
    assert unconditional.contexts["text"].bias is None
    plain = Query(states=states, times=times, contexts=contexts, keep=("image",))
    (painted, bare) = (system.denoiser(1)([q])[0]["image"] for q in (query, plain))
    assert (painted - bare).abs().max() > 0.01
    alone, absent = (system.denoiser(1)([q])[0]["image"] for q in asked)
    merged = system._clean(together(asked))["image"]  # as one forward, where the null has no paint
    torch.testing.assert_close(merged, torch.cat([alone, absent]), rtol=0, atol=1e-4)


def test_no_weight_is_no_paint(mini):
    system = mini.system
    change = painting([canvas()], system, system.tasks["text-to-image"], PaintWeight(value=0.0))
    states = system.encode({"text": ["a fox and a teapot"]})
    states |= {n: torch.randn(shape) for n, shape in system.shapes(1).items() if n != "text"}
    times = {c: torch.full((1,), t, dtype=torch.float64) for c, t in (("image", 0.7), ("text", 0))}
    plain = Query(states=states, times=times, contexts=system.null_contexts(1, "en"))
    a, b = (system.denoiser()([q])[0] for q in (plain, change(plain)))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-5)


def picture(left="#ff0000", right="#00ff00") -> Image.Image:
    made = Image.new("RGB", (48, 48), "white")
    made.paste(left, (0, 0, 16, 48))
    made.paste(right, (32, 0, 48, 48))
    return made


def test_a_map_is_read_by_its_colours():
    shares = painted_shares(picture("#f80604"), ["#ff0000", "#00ff00"], 96, "map.png")
    assert shares.shape == (2, 96, 96) and shares.mean((1, 2)).tolist() == pytest.approx(
        [1 / 3] * 2
    )
    assert shares[0, :, :30].min() == 1 and shares[1, :, :60].max() == 0
    with pytest.raises(
        RequestError, match="nothing of map.png is #0000ff; it has #ffffff, #ff0000"
    ):
        painted_shares(picture(), ["#0000ff"], 96, "map.png")


ASKED = {
    "kind": "text-to-image",
    "text": "a fox and a teapot on blue",
    "words": {"#FF0000": "a fox", "#00ff00": "a teapot:0.5"},
}


def test_a_painted_request_is_plain_data(mini):
    assert tuple(FORMS) == PAINT_FORMS
    request = GenerateRequest(**ASKED, paint="map.png")
    assert request.words == {"#ff0000": ("a fox", 1.0), "#00ff00": ("a teapot", 0.5)}
    assert GenerateRequest(**json.loads(request.model_dump_json())) == request
    assert request.paths == ("map.png",)
    own = mini.settled(request)
    assert (own.paint_weight, own.paint_form) == (0.4, "max")
    asked = GenerateRequest(**ASKED, paint="map.png", paint_form="std-square", paint_weight=0.5)
    assert paint_weight_of(mini.settled(asked), mini.system) == PaintWeight(
        value=0.5, growth="log-square", statistic="std", whole=True
    )


REFUSED = {
    "no words": ({"words": {}}, "a map to paint goes with words for its colours"),
    "no map": ({"paint": None}, "a map to paint goes with words for its colours"),
    "no text": ({"kind": "image", "text": None}, "give a text"),
    "a chain": ({"kind": "chain"}, "painted in text-to-image"),
    "colour": ({"words": {"red": "a fox"}}, "words.red.*should match"),
    "strength": ({"words": {"#ff0000": "a fox:11"}}, "less than or equal to 10"),
    "weight alone": (
        {"paint": None, "words": {}, "paint_weight": 1.0},
        "how words are painted goes with",
    ),
    "form": ({"paint_form": "mx"}, "paint form 'mx' is unknown; did you mean 'max'"),
    "not said": (
        {"words": {"#ff0000": "a cat"}},
        "'a cat' is not in 'a large fox left of a large teapot",
    ),
    "not on the map": ({"words": {"#123456": "a fox"}}, "nothing of .* is #123456"),
}


@pytest.mark.parametrize("changes, said", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_painted_is_told_in_one_line(mini, changes, said):
    with pytest.raises(UsageError, match=said) as error:
        mini.generate(**{**ASKED, "paint": picture(), "steps": 1, **changes})
    assert "\n" not in str(error.value)


def test_the_command_paints_and_replays(run):
    picture().save("map.png")
    words = ("--words", "#ff0000=a fox", "--words", "#00ff00=a teapot:0.5")
    asked = ("generate", "image", "--text", "a fox and a teapot on blue", "--steps", 3)
    code, out, err = run(*asked, "--paint", "map.png", *words, "--json")
    assert code == 0, err
    (row,) = json.loads(out)["results"]
    assert row["request"]["words"] == {"#ff0000": ["a fox", 1.0], "#00ff00": ["a teapot", 0.5]}
    assert "taken as: a large fox left of a large teapot, blue background" in row["facts"]["notes"]
    code, out, _ = run("replay", "out/00000.png")
    assert code == 0 and "the same picture, bit for bit" in out
    Path("map.png").rename("moved.png")
    code, _, err = run("replay", "out/00000.png")
    assert code == 2 and "give --paint PATH" in err
    assert run("replay", "out/00000.png", "--paint", "moved.png")[0] == 0
    picture("#ff0000", "#0000ff").save("moved.png")
    code, _, err = run("replay", "out/00000.png", "--paint", "moved.png")
    assert code == 2 and "is not the picture that it was made from any more" in err
    assert run(*asked, "--paint", "moved.png")[0] == 2


def test_more_than_one_text_encoder_is_painted():
    """T5's and CLIP's tokens of a phrase, each in its own context."""
    from everyway.generate import Model
    from everyway.systems import ediffi

    vocabulary = tuple("a and blue circle cross left on red right white".split())
    system = ediffi.build(ediffi.nano(vocabulary))
    for p in system.network.parameters():
        p.data = 0.6 * torch.randn(p.shape) / max(1, p[0].numel()) ** 0.5
    model = Model(name="nano", hash="", system=system, metadata={"image_size": 16})
    asked = {
        "kind": "text-to-image",
        "text": "a red circle and a blue cross on white",
        "paint": picture(),
        "words": {"#ff0000": "red circle", "#00ff00": "blue cross"},
        "steps": 2,
    }
    plain, off, on = (
        np.asarray(model.generate(**{**asked, **more})[0].image, dtype=int)
        for more in ({"paint": None, "words": {}}, {"paint_weight": 0}, {"paint_weight": 4})
    )
    assert np.abs(plain - off).max() <= 1 < np.abs(plain - on).max()
    task = system.tasks["text-to-image"]
    change = painting([canvas(asked["text"], ("red circle", "blue cross"))], system, task)
    contexts = system.contexts({"text": [asked["text"]]}) | system.null_contexts(1)
    t = {"image": torch.full((1,), 0.5, dtype=torch.float64)}
    made = change(Query(states={"image": torch.zeros(1, 3, 16, 16)}, times=t, contexts=contexts))
    assert {n for n, c in made.contexts.items() if c.bias is not None} == {"t5", "clip_text"}
    assert made.contexts["t5"].bias.words[0, 1].nonzero().flatten().tolist() == [5, 6]
