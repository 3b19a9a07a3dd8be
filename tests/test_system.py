"""What a system keeps apart, finds, batches and refuses; and systems and networks within others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from everyway import library
from everyway.checkpoints import store
from everyway.codecs.plain import Labels, Pixels
from everyway.contracts import Context, Query
from everyway.generate import Model, Result
from everyway.guidance import Guided, branches
from everyway.media import medium
from everyway.nets.tokens import ContextTokens, Patches, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.placement import Placement
from everyway.plan import Stage
from everyway.process.config import gaussian
from everyway.request import GenerateRequest, RequestError
from everyway.system import Condition, Modality, Null, System, dropped
from everyway.systems import SYSTEMS
from everyway.tasks import GENERATE as MADE
from everyway.tasks import Branch, Task

SIZE = dict(length=2, dim=4)


class Encoder(nn.Module):
    """Texts as context tokens; counts how often it runs."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer, self.runs = nn.Linear(1, 2 * width), 0

    @torch.no_grad()
    def encode(self, raw):
        self.runs += 1
        return self.layer(torch.tensor([[float(len(text))] for text in raw])).unflatten(1, (2, -1))

    def decode(self, state):
        return ["?"] * len(state)


def network(*conditioning) -> UViT:
    layout = (
        TimeToken(clock="image"),
        *conditioning,
        Patches(name="image", channels=3, size=4, patch=2),
    )
    return UViT(UViTConfig(layout=layout, dim=16, depth=2, heads=2, init="unit")).eval()


def picture(**changes) -> Modality:
    whole = dict(name="image", clock="image", shape=(3, 4, 4), process=gaussian("cosine"))
    return Modality(**{**whole, "codec": Pixels(size=4), **changes})


def system(conditioning=("text",), null=True, codec=None, **changes) -> System:
    """A picture under texts, each with a learned null or an encoded empty one."""
    codec = codec or Encoder()
    empty = Null(make=lambda: Context(tokens=codec.encode([""])), codec=codec)
    nulls = {"learned": dropped(2, 4)} if null else {"empty": empty}
    task = Task(
        name="text-to-image", roles={"image": MADE}, contexts=dict.fromkeys(conditioning, 1.0)
    )
    whole = dict(
        name="tiny",
        network=network(*(ContextTokens(name=n, **SIZE, null=null) for n in conditioning)),
        modalities={"image": picture()},
        tasks={task.name: task},
        conditions={
            n: Condition(name=n, source="text", codec=codec, nulls=nulls) for n in conditioning
        },
        sampler="ddim",
        steps=3,
    )
    return System(**{**whole, **changes})


def query(own: System, batch: int = 3, **contexts) -> Query:
    generator = torch.Generator().manual_seed(0)
    states = {"image": torch.randn(batch, 3, 4, 4, generator=generator)}
    conditioning = contexts or {
        "text": Context(tokens=torch.randn(batch, 2, 4, generator=generator))
    }
    times = {"image": torch.full((batch,), 0.5, dtype=torch.float64)}
    return Query(states=states, times=times, contexts=conditioning, keep=("image",))


# -- nulls ------------------------------------------------------------------------------------


def test_a_null_is_that_of_the_network_which_is_asked():
    """Also after another one (the mean of a training) took its place."""
    own = system()
    other = replace(own, network=network(ContextTokens(name="text", **SIZE, null=True)))
    lost = own.null_contexts(3)
    expected = {"text": Context(tokens=other.network.nulls["text"].detach().expand(3, -1, -1))}
    found, wanted = other.denoiser()([query(other, **lost), query(other, **expected)])
    assert torch.equal(found["image"], wanted["image"])


def test_an_empty_text_is_encoded_once():
    own = system(null=False)
    codec = own.conditions["text"].codec
    first = own.null_contexts(2)["text"].tokens
    assert torch.equal(own.null_contexts(2)["text"].tokens, first) and codec.runs == 1
    codec.load_state_dict({k: v + 1 for k, v in codec.state_dict().items()})
    assert not torch.equal(own.null_contexts(2)["text"].tokens, first) and codec.runs == 2
    codec.load_state_dict({k: v + 1 for k, v in codec.state_dict().items()})
    with torch.inference_mode():
        kept = own.null_contexts(1)["text"].tokens
    assert not kept.is_inference() and codec.runs == 3
    codec.to(torch.device("cpu"))  # offloaded and back
    assert own.null_contexts(4)["text"].tokens.shape == (4, 2, 4) and codec.runs == 3


def test_contexts_at_their_weights():
    own = system(null=False)
    given, nulls = own.contexts({"text": ["abc"]}), own.null_contexts(1)
    full, none, half = (own.weighed(given, nulls, {"text": w})["text"] for w in (1.0, 0.0, 0.5))
    assert full is given["text"] and none is nulls["text"]
    torch.testing.assert_close(half.tokens, (full.tokens + none.tokens) / 2)
    learned = system()
    blended = learned.weighed(given, learned.null_contexts(1), {"text": 0.25})["text"]
    assert blended.weight.tolist() == [0.25]  # by the network, which has the null
    with pytest.raises(ValueError, match="needs a context 'text', and there is none"):
        own.weighed({}, nulls, {"text": 1.0})
    with pytest.raises(ValueError, match="needs a null context 'text'"):
        own.weighed({}, {}, {})


# -- one forward or several -------------------------------------------------------------------


def test_conditional_and_unconditional_are_one_forward_or_one_each():
    own = system()
    asked = [query(own), query(own, **own.null_contexts(3))]
    sizes: list[int] = []
    forward = own.network.forward

    def spy(states, times, contexts=None, keep=None):
        sizes.append(len(states["image"]))
        return forward(states, times, contexts, keep)

    own.network.forward = spy
    together, alone = own.denoiser(rows_a_call=0)(asked), own.denoiser(rows_a_call=1)(asked)
    assert sizes == [6] + [1] * 6
    for a, b in zip(together, alone):
        torch.testing.assert_close(a["image"], b["image"], rtol=0, atol=1e-5)
    sizes.clear()
    longer = query(own, text=Context(tokens=torch.randn(3, 2, 4)))
    own.denoiser(rows_a_call=0)(
        [asked[0], replace(longer, states={"image": torch.randn(3, 3, 8, 8)})]
    )
    assert sizes == [3, 3]  # of other shapes


# -- guidance ---------------------------------------------------------------------------------


def guide(own: System, task: Task, w, **options) -> Guided:
    return Guided(
        denoise=own.denoiser(),
        task=task,
        clocks=own.clocks,
        w=w,
        absent_noise=lambda name, shape: torch.zeros(shape),
        null_contexts=own.null_contexts(3),
        processes=own.processes,
        **options,
    )


def test_every_sample_has_its_own_guidance():
    own = system()
    task, asked = own.tasks["text-to-image"], query(own)
    w = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    (made,) = guide(own, task, w)([asked])
    for k in range(3):
        (one,) = guide(own, task, float(w[k]))([asked])
        torch.testing.assert_close(made["image"][k], one["image"][k], rtol=0, atol=1e-6)


def test_branches_leave_out_what_they_name_and_add_up():
    own = system(conditioning=("subject", "style"))
    parts = (
        Branch(keep=("image",), without=("subject",), weight=3.0),
        Branch(keep=("image",), without=("style",)),
    )
    task = replace(own.tasks["text-to-image"], guidance=parts)
    conditioning = {n: Context(tokens=torch.randn(3, 2, 4)) for n in ("subject", "style")}
    asked, nulls = query(own, **conditioning), own.null_contexts(3)
    made = guide(own, task, 2.0)
    assert made.forwards(asked) == 3 and branches(task) == parts
    c, a, b = own.denoiser()(
        [
            asked,
            *(replace(asked, contexts=conditioning | {n: nulls[n]}) for n in ("subject", "style")),
        ]
    )
    (found,) = made([asked])
    expected = c["image"] + 2 * (c["image"] - a["image"]) + (c["image"] - b["image"])
    torch.testing.assert_close(found["image"], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="names an unknown"):
        replace(task, guidance=(Branch(keep=("image",), without=("sound",)),))


def test_requests_reach_interval_thresholds_and_paths():
    model = Model(name="tiny", hash="", system=system(), metadata={"image_size": 4})
    one = dict(kind="text-to-image", text="abc", guidance=4.0)

    def forwards(**settings) -> int:
        (made,) = model.generate(**one, **settings)
        return made.metadata["forwards"]

    assert forwards() == 6 and forwards(guidance_interval=(0.0, 0.5)) == 4
    strong = one | {"guidance": 60.0}
    plain, clipped = (model.generate(**strong, thresholds=t)[0].image for t in ({}, {"image": 0.9}))
    assert plain.tobytes() != clipped.tobytes()
    assert forwards(clock_paths={"image": "first"}) == 4  # at rest in the second half
    assert forwards(clock_paths={"image": ((0, 0), (0.4, 0.6), (1, 1))}) == 6
    asked = GenerateRequest(**one, clock_paths={"image": ((0, 0), (1, 1))}, thresholds={"image": 1})
    assert GenerateRequest.model_validate_json(asked.model_dump_json()) == asked
    for wrong, said in (
        ({"thresholds": {"sound": 0.9}}, "thresholds are of image here"),
        ({"guidance_interval": (0.5, 0.1)}, "from the lower time"),
        ({"clock_paths": {"text": "first"}}, "does not generate text"),
        ({"clock_paths": {"image": ((0, 0), (1, 0.5))}}, "must rise"),
        ({"clock_paths": {"image": "slow"}}, "clock_paths"),
    ):
        with pytest.raises(RequestError, match=said) as caught:
            model.generate(**one, **wrong)
        assert "\n" not in str(caught.value)


# -- what would be lost in silence ------------------------------------------------------------


def test_a_state_and_a_condition_of_one_name_are_two_components():
    state, conditioning = Encoder(), Encoder()
    both = {"image": picture(), "text": picture(name="text", clock="text", codec=state)}
    own = system(codec=conditioning, modalities=both, tasks={}, network=nn.Linear(1, 1))
    assert own.codecs == {"text": state, "text_condition": conditioning}
    weights = own.weights()
    assert set(weights) == {"network", "text", "text_condition"}
    assert not torch.equal(
        weights["text"]["layer.weight"], weights["text_condition"]["layer.weight"]
    )
    encoded, contexts = own.encode({"text": ["ab"]}), own.contexts({"text": ["ab"]})
    assert torch.equal(encoded["text"], state.encode(["ab"]))
    assert torch.equal(contexts["text"].tokens, conditioning.encode(["ab"]))
    shared = system(codec=conditioning, conditioning=("text", "style"))
    assert shared.codecs == {"text": conditioning}  # one that serves several is there once


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modalities": {"image": picture(), "thumb": picture(name="thumb")}}, "decode to"),
        ({"modalities": {"thumb": picture(name="thumb")}}, "no tokens of modality 'thumb'"),
        ({"modalities": {"image": picture(clock="thumb")}}, "no tokens of clock 'thumb'"),
        ({"network": network()}, "no tokens of condition 'text'"),
        ({"tasks": {"t": Task(name="t", roles={"sound": MADE})}}, "has clocks"),
        (
            {"tasks": {"t": Task(name="t", roles={"image": MADE}, contexts={"sound": 1})}},
            "has contexts",
        ),
    ],
)
def test_what_would_overwrite_or_lose_something_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        system(**changes)


def test_several_raw_results_on_one_clock_are_kept_apart():
    both = {"image": picture(), "thumb": picture(name="thumb", raw="thumb")}
    thumb = Patches(name="thumb", channels=3, size=4, patch=2)
    words = ContextTokens(name="text", **SIZE, null=True)
    own = system(modalities=both, network=network(words, thumb))
    made = own.decode({name: torch.zeros(1, 3, 4, 4) for name in both})
    assert set(made) == {"image", "thumb"} and own.raws == {"image", "thumb", "text"}
    with pytest.raises(ValueError, match="weighs 'text' by 2"):
        Task(name="t", roles={"image": MADE}, contexts={"text": 2.0})


# -- several networks, several systems --------------------------------------------------------


class Experts(nn.Module):
    """One network for late times and one for early ones, as one network."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = network(), network()

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"low": self.low, "high": self.high}

    def needed(self, times, contexts) -> list[str]:
        return ["high" if bool(times["image"][0] > 0.5) else "low"]

    def forward(self, states, times, contexts=None, keep=None):
        return self.components[self.needed(times, contexts)[0]](states, times, contexts, keep)


def experts(config) -> System:
    task = Task(name="image", roles={"image": MADE})
    return system(
        conditioning=(), name="experts", network=Experts(), tasks={"image": task}, config=config
    )


def cascade(config) -> System:
    """Experts draw a picture, and another system draws it again."""
    wider = picture(codec=Pixels(size=4, gain=9.0))
    task = Task(name="image", roles={"image": MADE})
    again = system(conditioning=(), tasks={"image": task}, modalities={"image": wider})
    return replace(experts({}), name="cascade", systems={"again": again}, config=config)


@pytest.fixture
def known(monkeypatch):
    """A module of systems by the names of this file's functions."""
    for made in (experts, cascade):
        owed = {"build": staticmethod(made), "missing_parts": lambda config: [], "image_size": len}
        module = type("module", (), owed)
        monkeypatch.setitem(SYSTEMS, made.__name__, made.__name__)
        monkeypatch.setitem(__import__("sys").modules, made.__name__, module)


@pytest.mark.parametrize("build", [experts, cascade])
def test_parts_of_networks_and_systems_within_systems_are_stored(build, known, tmp_path):
    own = build({})
    parts = {"network.low", "network.high"}
    parts |= {"again.network"} if build is cascade else set()
    assert set(own.components) == parts
    library.save(tmp_path / "model", own, {"image_size": 4})
    library.save(tmp_path / "model", own, {"image_size": 4})  # once more over it
    files = {path.name.rpartition("-")[0] for path in (tmp_path / "model").glob("*.safetensors")}
    assert files == parts == set(store.document(tmp_path / "model")["sha256"])
    back = library.load(tmp_path / "model", device="cpu").system
    for name, module in own.components.items():
        for a, b in zip(module.parameters(), back.components[name].parameters()):
            assert torch.equal(a, b)
    mean = {k: v + 1 for k, v in own.network.state_dict().items()}
    high = own.weights(mean)["network.high"]
    assert all(torch.equal(v, mean[f"high.{k}"]) for k, v in high.items())


def test_an_expert_gives_way_to_the_next_one(monkeypatch):
    moved: list[tuple[str, str]] = []
    own = experts({}).placed(Placement(device=torch.device("cuda"), memory="low"))
    names = {id(m): name for name, m in own.networks.items()}
    monkeypatch.setattr(
        "everyway.placement._move", lambda m, device: moved.append((names[id(m)], str(device)))
    )
    for t in (0.9, 0.1):
        asked = query(own)
        with own._using(own.network, {"image": torch.full_like(asked.times["image"], t)}):
            pass
    assert moved == [
        ("network.low", "cpu"),
        ("network.high", "cuda"),
        ("network.high", "cpu"),
        ("network.low", "cuda"),
    ]
    offload = Placement(device=torch.device("cuda"), memory="offload")
    assert [str(offload.home(n)) for n in ("network.low", "again.network", "text")] == [
        "cuda", "cuda", "cpu"
    ]  # fmt: skip


def test_weights_beside_the_components_are_refused():
    own = Experts()
    own.extra = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="weights beside its components"):
        system(conditioning=(), network=own, tasks={}).components  # noqa: B018


def test_a_stage_names_its_system(known, monkeypatch):
    """The second stage begins with what the first one drew."""
    own, asked = cascade({}), []
    model = Model(name="cascade", hash="", system=own, metadata={"image_size": 4})
    first, again = own.tasks["image"], own.systems["again"].tasks["image"]
    stages = (Stage(task=first, shown=False), Stage(task=again, system="again", begin=0.5))
    monkeypatch.setattr("everyway.generate.plan", lambda request, tasks: stages)
    forward = own.systems["again"].network.forward

    def spy(states, times, contexts=None, keep=None):
        asked.append(float(times["image"][0]))
        return forward(states, times, contexts, keep)

    own.systems["again"].network.forward = spy
    events = list(model.run(GenerateRequest(kind="image", steps=4, seed=1)))
    (made,) = [e for e in events if isinstance(e, Result)]
    assert made.image.size == (4, 4) and made.metadata["forwards"] == 4 + 2
    previews = [e for e in events if not isinstance(e, Result)]
    assert [e.system for e in previews] == [""] * 4 + ["again"] * 2
    last = previews[-1].progress.states
    shown = medium("image", {}).show(
        own.systems["again"].decode(last)["image"][0]
    )  # by its own codec
    assert made.image.tobytes() == shown.tobytes()
    assert shown.tobytes() != medium("image", {}).show(own.decode(last)["image"][0]).tobytes()
    assert asked == [0.5, 0.25]
    frame, _ = model.frame(previews[-1].progress, system=previews[-1].system)
    decoded = own.systems["again"].decode(previews[-1].progress.clean)
    assert frame["image"].tobytes() == medium("image", {}).show(decoded["image"][0]).tobytes()


def test_labels_have_a_null_only_if_there_is_one():
    condition = Condition(name="label", source="label", codec=Labels(classes=3), nulls={})
    with pytest.raises(ValueError, match="no null label; draw with a guidance of 1"):
        condition.null()
