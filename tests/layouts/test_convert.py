"""Whole models out of others' files: opened, kept, filled, run, and written back as they were."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from everyway.apps import cli
from everyway.checkpoints import store
from everyway.checkpoints.tensor_files import LayoutError, size
from everyway.codecs.image_vae import ImageVAE
from everyway.contracts import Query
from everyway.layouts import convert, file_layout
from everyway.layouts.table import LAYOUTS
from everyway.nets.uvit import UViT
from everyway.systems import unidiffuser
from everyway.train.sources import Data
from formula import FOLDER, golden, normal
from published import (
    CLIP_TOKENS,
    GPT2_TOKENS,
    full,
    read,
    same,
    stored,
    tiny_clip,
    tiny_network,
    tiny_parts,
    write_tiny_files,
)

PROMPT = "a red fox on blue"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """The authors' files, tiny."""
    out = tmp_path_factory.mktemp("files")
    write_tiny_files(out)
    torch.save(tiny_network(0), out / "uvit_v0.pth")
    (out / "tokenizer.json").write_text(CLIP_TOKENS, encoding="utf-8")
    (out / "gpt2").mkdir()
    (out / "gpt2" / "tokenizer.json").write_text(GPT2_TOKENS, encoding="utf-8")
    return out


def parts(files: Path) -> dict[str, str]:
    return tiny_parts(files, tokenizer="tokenizer.json", reader="gpt2")


@pytest.fixture(scope="module")
def model(files) -> convert.Opened:
    return convert.open_model(str(files / "uvit_v1.pth"), parts=parts(files))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "model"
    convert.save(model, out)
    return out


# -- there and back ---------------------------------------------------------------------------


def test_a_whole_model_comes_back_to_the_byte(files, folder, tmp_path):
    written = convert.write_back(convert.open_model(str(folder)), "authors", tmp_path)
    assert [path.name for path in written] == [
        "uvit.pth",
        "autoencoder_kl.pth",
        "caption_decoder.pth",
    ]
    for path, name in zip(written, ("uvit_v1.pth", "autoencoder_kl.pth", "caption_decoder.pth")):
        expected = torch.load(files / name, weights_only=True)
        expected = {k: v for k, v in expected.items() if "clip.visual" not in k}
        assert same(torch.load(path, weights_only=True), expected)


def test_a_pipeline_of_diffusers_there_and_back(files, folder, tmp_path):
    """Into its folders, which its own classes read, and out of them again."""
    from diffusers import AutoencoderKL
    from diffusers.pipelines.deprecated.unidiffuser import UniDiffuserModel, UniDiffuserTextDecoder
    from transformers import CLIPTextModel, CLIPVisionModelWithProjection

    model = convert.open_model(str(folder))
    written = convert.write_back(model, "diffusers", tmp_path)
    assert len(written) == 5
    classes = {
        "unet": UniDiffuserModel,
        "vae": AutoencoderKL,
        "text_decoder": UniDiffuserTextDecoder,
        "image_encoder": CLIPVisionModelWithProjection,
        "text_encoder": CLIPTextModel,
    }
    for name, kind in classes.items():
        read_by_them = kind.from_pretrained(tmp_path / name)
        (path,) = (tmp_path / name).glob("*.safetensors")
        found = {k.removeprefix("text_model."): v for k, v in load_file(path).items()}
        own = {k.removeprefix("text_model."): v for k, v in read_by_them.state_dict().items()}
        assert same({k: v for k, v in own.items() if k in found}, found), name
        assert own.keys() - found.keys() == set(), name
    (tmp_path / "model_index.json").write_text("{}")
    for name, part in (
        ("clip_tokenizer", "tokenizer.json"),
        ("text_tokenizer", "gpt2/tokenizer.json"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text((files / part).read_text())
    again = convert.open_model(str(tmp_path))
    assert not convert.missing_parts(again)
    for name, entries in model.components.items():
        if name != convert.ASIDE:
            assert same(read(again.components[name]), read(entries)), name
    ours, theirs = (dict(m.config["config"]) for m in (model, again))
    assert theirs["codec_config"].pop("image") == ours["codec_config"].pop("image")
    assert ours == theirs


def test_authors_files_straight_to_diffusers(files, tmp_path):
    model = convert.open_model(str(files / "uvit_v0.pth"))
    (path,) = convert.write_back(model, "diffusers", tmp_path)
    again = convert.open_model(str(path.parent))
    assert same(read(again.components["network"]), read(model.components["network"]))
    assert again.config["config"]["data_type"] is False


def test_uvit_there_and_back(tmp_path):
    """The smallest released one, whole, and in half the bytes."""
    state = read(stored(full()["uvit_cifar10_small"][1]))
    torch.save({"nnet": {"w": torch.ones(1)}, "nnet_ema": state}, tmp_path / "all.pth")
    model = convert.open_model(str(tmp_path / "all.pth"))
    assert model.parameters == 44_255_328 and model.metadata["image_size"] == 32
    assert model.metadata["source"]["network"]["preset"] == "cifar10_small"
    convert.save(model, tmp_path / "kept")
    (path,) = convert.write_back(convert.open_model(str(tmp_path / "kept")), "authors", tmp_path)
    assert same(torch.load(path, weights_only=True), state)
    convert.save(model, tmp_path / "half", torch.bfloat16)
    half = convert.open_model(str(tmp_path / "half"))
    assert size(half.components["network"]) == 2 * 44_255_328
    with pytest.raises(LayoutError, match="no part of this model has a layout of diffusers"):
        convert.write_back(half, "diffusers", tmp_path)


# -- filled and run ---------------------------------------------------------------------------


def test_a_restored_model_has_every_tensor(model, folder):
    for opened in (model, convert.open_model(str(folder))):
        system = convert.restored(opened)
        modules = {"network": system.network, **system.codecs}
        assert modules.keys() == {"network", "image", "image_embed", "text"}
        for name, module in modules.items():
            tensors = {**module.state_dict(), **dict(module.named_buffers())}
            assert not any(t.is_meta for t in tensors.values())
            assert same(module.state_dict(), read(opened.components[name])), name


def test_a_restored_model_is_the_built_one(model):
    """Filled on the meta device or loaded into fresh weights: the same answers, bit for bit."""
    filled = convert.restored(model)
    fresh = unidiffuser.build(model.config["config"])
    for name, module in {"network": fresh.network, **fresh.codecs}.items():
        module.load_state_dict(read(model.components[name]))
        module.eval()
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    raw = {"image": picture, "text": [PROMPT]}
    states = [system.encode(raw) for system in (filled, fresh)]
    assert same(*states)
    assert {k: tuple(v.shape[1:]) for k, v in states[0].items()} == {
        "image": (4, 8, 8),
        "image_embed": (1, 32),
        "text": (77, 16),
    }
    times = {"image": torch.tensor([0.5]).double(), "text": torch.tensor([0.0]).double()}
    query = Query(states=states[0], times=times, keep=("image", "image_embed"))
    assert same(filled.denoiser()([query])[0], fresh.denoiser()([query])[0])
    assert torch.equal(filled.decode(states[0])["image"], fresh.decode(states[0])["image"])
    assert filled.decode(states[0])["text"] == fresh.decode(states[0])["text"]
    assert (filled.sampler, filled.guidance, filled.steps) == ("dpm++fast", 8.0, 50)


@pytest.mark.parametrize("kind", ["text-to-image", "image-to-text", "joint", "image", "text"])
def test_every_use_of_a_converted_model(folder, tmp_path, kind):
    from PIL import Image

    from everyway.generate import load

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    given = {
        "text-to-image": {"text": PROMPT},
        "image-to-text": {"images": (str(tmp_path / "red.png"),)},
    }
    (made,) = load(str(folder), device="cpu").generate(kind=kind, steps=2, **given.get(kind, {}))
    assert (made.image is not None) == (kind not in ("image-to-text", "text"))
    assert (made.text is not None) == (kind not in ("text-to-image", "image"))
    assert made.image is None or made.image.size == (64, 64)


def test_other_sizes_are_drawn_by_resized_positions(files, tmp_path):
    """The same weights, 96x96 pixels of 12x12 latents; the network sees its positions resized."""
    from everyway.generate import load

    source, drawn = str(files / "uvit_v1.pth"), {"drawn_size": "12"}
    model = convert.open_model(source, parts=parts(files), hints=drawn)
    assert model.metadata["image_size"] == 96
    convert.save(model, tmp_path / "wide")
    wide = load(str(tmp_path / "wide"), device="cpu")
    assert wide.system.modalities["image"].shape == (4, 12, 12)
    (made,) = wide.generate(kind="text-to-image", text=PROMPT, steps=2)
    assert made.image.size == (96, 96)
    with pytest.raises(ValueError, match="drawn_size 13 is no multiple of patch 2"):
        convert.open_model(source, hints={"drawn_size": "13"})


def test_the_kind_of_data_is_told_to_v1_alone(files, model):
    system = convert.restored(model)
    states = {k: torch.zeros(v) for k, v in system.shapes(2).items()}
    times = {c: torch.full((2,), 0.5).double() for c in ("image", "text")}
    answers = {
        null: system.network(states, times, system.null_contexts(2, null))["image"]
        for null in ("", "clean", "web")
    }
    assert torch.equal(answers[""], answers["clean"]) and torch.equal(
        system.network(states, times)["image"], answers["clean"]
    )
    assert not torch.equal(answers["web"], answers["clean"])
    v0 = convert.open_model(str(files / "uvit_v0.pth"), parts=parts(files))
    assert not convert.restored(v0).conditions


def test_bf16_weights_answer_nearly_the_same(model, tmp_path):
    whole, half = convert.restored(model), convert.restored(model, torch.bfloat16)
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    assert half.codecs["image"].whiten.scale.dtype == torch.float32
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    a, b = (s.codecs["image"].encode(picture) for s in (whole, half))
    c, d = (s.codecs["image"].decode(a) for s in (whole, half))
    assert b.dtype == d.dtype == torch.float32
    for exact, near in ((a, b), (c, d)):  # 2^-8 a layer; norms here are over single channels
        assert 0 < float((exact - near).norm() / exact.norm()) < 4e-2
    assert half.codecs["text"].decode(torch.zeros(1, 77, 16))
    raw = {"image": picture, "text": [PROMPT]}
    exact, near = whole.encode(raw), half.encode(raw)
    for name, state in near.items():
        assert state.dtype == torch.float32
        assert float((exact[name] - state).norm() / exact[name].norm()) < 4e-2, name
    convert.save(model, tmp_path / "half", torch.bfloat16)
    kept = convert.restored(convert.open_model(str(tmp_path / "half")), torch.bfloat16)
    assert same(kept.network.state_dict(), half.network.state_dict())
    assert torch.equal(kept.codecs["image"].whiten.scale, half.codecs["image"].whiten.scale)


@pytest.mark.slow
def test_the_published_autoencoder_in_bf16():
    """Against the authors' numbers: largest difference over largest value."""
    layout = file_layout.named(LAYOUTS, "autoencoder-kl")
    part = file_layout.read(stored(full()["autoencoder_kl"][1]), layout, {})
    with store.unfilled():
        codec = ImageVAE(**part.settings)
    store.fill(codec, part.entries, torch.bfloat16).eval()
    meta, arrays = golden("real_autoencoder_kl", FOLDER.with_name("uvit_real"))
    given = [meta["inputs"][k] for k in ("image", "z")]
    image, z = (normal(row["key"], tuple(row["shape"])) for row in given)
    with torch.inference_mode():
        found = {
            "moments": codec.posterior(image.clamp(-1, 1)).parameters,
            "decoded": codec.reconstruct(codec.whiten.inverse(z)),
        }
    for name, value in found.items():
        expected = arrays[f"out.{name}"].ravel()
        own = value.float().flatten()[:: meta["outputs"][name]["stride"]].numpy()
        assert abs(own - expected).max() / abs(expected).max() < 2e-2


def test_tied_weights_are_in_memory_once(model):
    text = convert.restored(model).codecs["text"]
    assert text.decoder.lm_head.weight is text.decoder.transformer.wte.weight


def test_published_sizes_are_those_of_the_released_networks():
    from everyway.layouts.unidiffuser import published

    for version in (0, 1):
        sizes = unidiffuser.PUBLISHED[f"v{version}"]
        config = unidiffuser.full(sizes, {})
        assert config.network() == published(version=version)
        assert unidiffuser.version_of(sizes) == f"v{version}"
        assert sum(config.weights.values()) == pytest.approx(1)
        assert config.weights["image"] == pytest.approx(16384 / 21824)


def test_a_published_size_is_trained_on_the_codecs_of_a_model(model, tmp_path, monkeypatch):
    convert.save(model, tmp_path / "whole")
    sizes = {name: model.config["config"][name] for name in unidiffuser.PUBLISHED["v1"]}
    monkeypatch.setitem(unidiffuser.PUBLISHED, "v1", sizes)
    own = unidiffuser.Training(preset="v1", codecs=str(tmp_path / "whole"))
    made, former = own.system(Data("shapes", 0)), convert.restored(model)
    assert made.codecs.keys() == former.codecs.keys()
    for name, codec in made.codecs.items():
        theirs = former.codecs[name].state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in codec.state_dict().items()), name
    fresh, learned = made.network.state_dict(), former.network.state_dict()
    assert fresh.keys() == learned.keys()
    assert not torch.equal(fresh["embed.image.weight"], learned["embed.image.weight"])


# -- what is missing or wrong -----------------------------------------------------------------


def test_a_lone_network_names_what_it_lacks(files, tmp_path):
    lone = convert.open_model(str(files / "uvit_v1.pth"))
    needed = convert.missing_parts(lone)
    assert [n.split("=")[0] for n in needed] == [*parts(files)][:2] + [
        "text",
        "text_states",
        "tokenizer",
        "reader",
    ]
    with pytest.raises(ValueError, match="lacks codecs.*--part image=autoencoder_kl.pth") as caught:
        convert.restored(lone)
    assert "\n" not in str(caught.value)
    convert.save(lone, tmp_path / "lone")
    whole = convert.open_model(str(tmp_path / "lone"), parts=parts(files))
    assert not convert.missing_parts(whole) and convert.restored(whole).codecs


def test_a_codec_may_come_first(files, tmp_path):
    alone = convert.open_model(str(files / "autoencoder_kl.pth"))
    assert convert.missing_parts(alone) == ["network=uvit_v1.pth"]
    convert.save(alone, tmp_path / "codec")
    rest = {k: v for k, v in parts(files).items() if k != "image"}
    whole = convert.open_model(
        str(tmp_path / "codec"), parts={"network": str(files / "uvit_v1.pth"), **rest}
    )
    assert not convert.missing_parts(whole) and convert.restored(whole).codecs


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"picture": "x"}, "part 'picture' is unknown"),
        ({"image": "caption_decoder.pth"}, "is of no known layout; known are .*autoencoder-kl"),
        ({"image": "none.pth"}, "no file or folder"),
        ({"tokenizer": "clip-text"}, "holds no tokenizer"),
        ({"reader": "none.json"}, "holds no tokenizer"),
    ],
)
def test_wrong_parts_are_one_line(files, wrong, said):
    paths = {k: str(files / v) for k, v in wrong.items()}
    with pytest.raises(ValueError, match=said) as caught:
        convert.open_model(str(files / "uvit_v1.pth"), parts=paths)
    assert "\n" not in str(caught.value)


def test_tokenizers_that_do_not_fit_are_told(files):
    swapped = {**parts(files), "reader": str(files / "tokenizer.json")}
    model = convert.open_model(str(files / "uvit_v1.pth"), parts=swapped)
    with pytest.raises(ValueError, match="the reader has 11 tokens and the decoder network 10"):
        convert.restored(model)
    swapped = {**parts(files), "tokenizer": str(files / "gpt2")}
    with pytest.raises(ValueError, match="no <|startoftext|>"):
        convert.restored(convert.open_model(str(files / "uvit_v1.pth"), parts=swapped))


def test_parts_that_do_not_fit_each_other_are_told(files, tmp_path):
    state = tiny_clip("text").state_dict()
    convert_part = {**parts(files), "text_states": str(tmp_path / "other.safetensors")}
    named = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
    narrow = {k: v[..., :32].contiguous() if v.shape[-1:] == (64,) else v for k, v in named.items()}
    narrow = {k: v[:32].contiguous() if v.shape[:1] == (64,) else v for k, v in narrow.items()}
    save_file(narrow, tmp_path / "other.safetensors")
    model = convert.open_model(str(files / "uvit_v1.pth"), parts=convert_part)
    with pytest.raises(LayoutError, match="text does not fit the model's config.*narrow.weight"):
        convert.restored(model)


def test_hub_ids_are_downloaded_and_paths_are_not(files, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        if name == "some/nothing":
            raise OSError("404\nmore")
        return str(files / "clip-image")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert convert.local("hf:openai/clip-vit-base-patch32") == files / "clip-image"
    for path in ("models/uvit_v1.pth", "openai/clip-vit-base-patch32"):
        assert convert.local(path) == Path(path)
    assert convert.local(str(files)) == files and asked == ["openai/clip-vit-base-patch32"]
    with pytest.raises(ValueError, match=r"is not a model of the hub .* \(404\)$"):
        convert.local("hf:some/nothing")


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        code = cli.main(["convert", *[str(w) for w in words]])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_command_there_and_back(run, files, tmp_path):
    given = [w for k, v in parts(files).items() for w in ("--part", f"{k}={v}")]
    code, out, err = run(files / "uvit_v1.pth", "--out", "model", *given)
    assert code == 0 and not err
    assert "network: unidiffuser, of no published size, 80 tensors" in out
    assert "4 kept unread, 1 left out" in out and "before it can be used" not in out
    code, out, _ = run("model", "--to", "authors", "--out", "back", "--json")
    assert code == 0 and len(json.loads(out)["files"]) == 3
    expected = torch.load(files / "uvit_v1.pth", weights_only=True)
    assert same(torch.load(tmp_path / "back/uvit.pth", weights_only=True), expected)


def test_the_command_says_what_is_still_needed(run, files, tmp_path):
    code, out, _ = run(files / "uvit_v1.pth", "--out", "model", "--dtype", "bf16")
    assert code == 0 and "before it can be used: --part image=autoencoder_kl.pth" in out
    tensors = store.open_folder(tmp_path / "model")[1]["network"]
    assert {e.dtype for e in tensors.values()} == {torch.bfloat16}
    code, out, _ = run(files / "uvit_v1.pth", "--out", "model", "--set", "heads=2", "--json")
    assert json.loads(out)["needed"][0] == "image=autoencoder_kl.pth"
    assert store.open_folder(tmp_path / "model")[0]["config"]["heads"] == 2


MISTAKES = {
    "no file": (["none.pth"], 2, "no file or folder"),
    "layout": (["FILE", "--layout", "uvitt"], 2, "'uvitt' is unknown"),
    "wrong layout": (
        ["FILE", "--layout", "autoencoder-kl"],
        2,
        "as autoencoder-kl: the file does not",
    ),
    "dtype": (["FILE", "--dtype", "fp8"], 2, "dtype 'fp8' is unknown"),
    "part": (["FILE", "--part", "image"], 2, "is not NAME=VALUE"),
    "heads": (["FILE", "--set", "heads=7"], 2, "cannot be divided among 7 heads"),
    "to": (["FILE", "--to", "authros"], 2, "did you mean 'authors'"),
    "weights": (["FILE", "--weights", "ema"], 2, "holds no weights called 'ema'"),
    "cut": (["CUT"], 1, "damaged or truncated"),
    "code": (["CODE"], 1, "nothing of it was run"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(run, files, tmp_path, mistake):
    import os

    class Code:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"a": Code()}, tmp_path / "code.pth")
    (tmp_path / "cut.pth").write_bytes((files / "uvit_v1.pth").read_bytes()[:90_000])
    words, expected, said = MISTAKES[mistake]
    names = {"FILE": files / "uvit_v1.pth", "CUT": "cut.pth", "CODE": "code.pth"}
    code, out, err = run(*[names.get(w, w) for w in words], "--out", "made")
    assert code == expected and said in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "made").exists() and not (tmp_path / "ran").exists()


def test_a_bit_changed_within_is_found_before_anything_is_kept(run, files, tmp_path):
    data = bytearray((files / "uvit_v1.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "bad.pth").write_bytes(data)
    code, _, err = run("bad.pth", "--out", "made")
    assert code == 1 and "damaged" in err and not list((tmp_path / "made").glob("*"))


# -- memory -----------------------------------------------------------------------------------

MEASURE = """
import re, sys, torch
from everyway.checkpoints import store
from everyway.layouts import file_layout
from everyway.checkpoints.tensor_files import size
from everyway.nets.uvit import UViT, UViTConfig
from everyway.layouts import convert
from everyway.systems import unidiffuser

def peak():  # of this process; what getrusage says is also its parent's before the exec
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])

source, what, dtype = *sys.argv[1:3], convert.DTYPES[sys.argv[3]]
begun, model = peak(), convert.open_model(source)
if what == "convert":
    convert.save(model, sys.argv[4], dtype)
else:
    own = model.config["config"]
    if model.config["system"] == "uvit":
        config = UViTConfig.from_json(own["network"])
    else:
        config = unidiffuser.UniDiffuserConfig(**own).network()
    with store.unfilled():
        network = UViT(config)
    store.fill(network, model.components["network"], dtype)
    assert not any(p.is_meta for p in network.parameters())
bytes = size(model.components["network"], dtype)
print((peak() - begun) / bytes, peak() / bytes)
"""


def measured(source: Path, what: str, dtype: str, *out: Path) -> tuple[float, float]:
    """Peak memory of a new process over the bytes of the weights: what it grew by, and all."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc")
    words = [sys.executable, "-c", MEASURE, source, what, dtype, *out]
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown, whole = map(float, done.stdout.split())
    print(what, dtype, f"grown {grown:.3f}, whole {whole:.3f}")
    return grown, whole


def test_one_tensor_is_read_at_a_time(files, tmp_path):
    """In their own number format; what is filled stays in the format asked for."""
    model = convert.open_model(str(files / "uvit_v1.pth"))
    alive, most = set(), []

    def counted(entry):
        def load(dtype):
            tensor = entry.read(dtype)
            alive.add(id(tensor))
            weakref.finalize(tensor, alive.discard, id(tensor))
            most.append(len(alive))
            return tensor

        return replace(entry, load=load)

    entries = {name: counted(entry) for name, entry in model.components["network"].items()}
    with store.unfilled():
        network = UViT(unidiffuser.UniDiffuserConfig(**model.config["config"]).network())
    store.fill(network, entries, torch.bfloat16)
    assert len(most) == len(entries) and max(most) <= 2
    store.save_stored(tmp_path / "kept", model.config, {"network": entries}, {}, torch.bfloat16)
    assert len(most) == 2 * len(entries) and max(most) <= 2


@pytest.mark.slow
def test_memory_is_bounded_from_every_kind_of_file(tmp_path):
    torch.save(read(stored(full()["uvit_imagenet64_mid"][1])), tmp_path / "a.pth")
    for dtype in ("fp32", "bf16"):
        kept = tmp_path / dtype
        grown, _ = measured(tmp_path / "a.pth", "convert", dtype, kept)
        assert grown < 0.25, (dtype, grown)  # a tensor at a time
        for source in (tmp_path / "a.pth", kept):
            grown, _ = measured(source, "fill", dtype)
            assert grown < 1.1, (source, dtype, grown)


@pytest.mark.slow
def test_the_largest_network_there_and_back_in_bounded_memory(tmp_path):
    """952M parameters in real files; 8 GB of disk and 5 GB of memory."""
    shapes = full()["unidiffuser_v1"][1]
    torch.save(read(stored(shapes)), tmp_path / "uvit_v1.pth")
    for dtype in ("fp32", "bf16"):
        source = tmp_path / "uvit_v1.pth"
        grown, _ = measured(source, "fill", dtype)
        assert grown < 1.05, (dtype, grown)
    words = ["everyway", "convert", str(tmp_path / "uvit_v1.pth"), "--out", str(tmp_path / "kept")]
    assert cli.main(words[1:]) == 0
    (tmp_path / "uvit_v1.pth").unlink()
    assert (
        cli.main(["convert", str(tmp_path / "kept"), "--to", "authors", "--out", str(tmp_path)])
        == 0
    )
    found = torch.load(tmp_path / "uvit.pth", weights_only=True, mmap=True)
    assert found.keys() == shapes.keys()
    expected = stored(shapes)
    assert all(torch.equal(found[k], expected[k].read()) for k in shapes)
