"""Files as people have them: averages by any name, prefixes, folders of half precision, and what is
no weights at all."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from everyway import library
from everyway.apps import cli
from everyway.checkpoints import store
from everyway.checkpoints.tensor_files import LayoutError, StoreError, held
from everyway.codecs.encoders import SMALL_TEXT, SMALL_VISION
from everyway.codecs.image_vae import SMALL
from everyway.codecs.text_latent import SMALL_DECODER
from everyway.codecs.text_tokens import train_tokens
from everyway.generate import load
from everyway.layouts import convert, file_layout, files
from everyway.layouts.table import LAYOUTS
from everyway.layouts.vq_diffusion import WHOLE
from everyway.library import SHIPPED
from everyway.systems import unidiffuser
from published import (
    CLIP_TOKENS,
    GPT2_TOKENS,
    read,
    same,
    tiny_caption,
    tiny_network,
    tiny_parts,
    write_tiny_files,
)
from published_vq import tiny_model


def refused(call, *args, error: type = LayoutError, **options) -> str:
    with pytest.raises(error) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def network() -> dict:
    return tiny_network()


# -- which set of a file ----------------------------------------------------------------------

AVERAGES = ("ema", "state_dict_ema", "params_ema", "ema_model", "model_ema", "nnet_ema", "swa")


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("model", ["model", "state_dict", "params"])
def test_averages_by_any_name_are_taken_and_told(tmp_path, name, model):
    sets = {model: {"w": torch.zeros(2)}, name: {"w": torch.ones(2)}}
    torch.save({**sets, "optimizer": {"w": torch.ones(2)}}, tmp_path / "a.pth")
    found = files.open_tensors(tmp_path / "a.pth")
    assert found.entries["w"].read()[0] == 1 and found.taken == f"{name} (not {model})"
    other = files.open_tensors(tmp_path / "a.pth", model)
    assert other.entries["w"].read()[0] == 0 and other.taken == f"{model} (not {name})"


@pytest.mark.parametrize("within", ["module", "shadow", "params"])
def test_averages_within_another_are_taken(tmp_path, within):
    many = {f"w{n}": torch.zeros(2) for n in range(30)}
    ema = {"decay": torch.tensor(0.999), within: {k: v + 1 for k, v in many.items()}}
    torch.save({"model": many, "ema": ema, "schema": many}, tmp_path / "a.pth")
    found = files.open_tensors(tmp_path / "a.pth")
    assert found.taken.startswith(f"ema.{within} (not model") and len(found.entries) == 30


def test_a_few_numbers_are_no_average(tmp_path):
    many = {f"w{n}": torch.zeros(2) for n in range(30)}
    torch.save({"model": many, "ema": {"decay": torch.tensor(0.999)}}, tmp_path / "a.pth")
    assert files.open_tensors(tmp_path / "a.pth").taken == "model (not ema)"


def test_what_was_taken_is_said_by_the_command_and_of_a_loaded_model(
    tmp_path, network, capsys, monkeypatch
):
    write_tiny_files(tmp_path)
    torch.save({"model": network, "params_ema": dict(network)}, tmp_path / "both.pth")
    assert cli.main(["convert", str(tmp_path / "both.pth"), "--out", str(tmp_path / "kept")]) == 0
    assert "80 tensors; weights: params_ema (not model)\n" in capsys.readouterr().out
    (tmp_path / "tokenizer.json").write_text(CLIP_TOKENS, encoding="utf-8")
    (tmp_path / "reader.json").write_text(GPT2_TOKENS, encoding="utf-8")
    parts = tiny_parts(tmp_path, tokenizer="tokenizer.json", reader="reader.json")
    note = load(str(tmp_path / "both.pth"), "cpu", parts=parts).note
    assert note.endswith("; network of params_ema (not model)") and "\n" not in note


# -- prefixes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "model.", "module._orig_mod.", "_orig_mod.module.model."]
)
def test_prefixes_and_nests_of_them_come_back(network, prefix):
    named = {prefix + name: held(value) for name, value in network.items()}
    layout = file_layout.recognised(named, LAYOUTS, Path("x"))
    part = file_layout.read(named, layout, {})
    assert layout.name == "unidiffuser" and part.prefix == prefix
    back = file_layout.theirs(layout, part.entries, part.settings, part.aside, part.prefix)
    assert same(read(back), read(named))


def test_an_averaged_model_of_pytorch(network):
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1)).state_dict()
    counter = {k: held(v) for k, v in averaged.items() if not k.startswith("module.")}
    assert counter
    named = {f"module.{name}": held(value) for name, value in network.items()}
    layout = file_layout.recognised(named | counter, LAYOUTS, Path("x"))
    part = file_layout.read(named | counter, layout, {})
    assert (layout.name, part.prefix, part.dropped) == ("unidiffuser", "module.", 1)


def test_a_whole_model_may_have_a_prefix(tmp_path):
    state = tiny_model("class")
    torch.save({f"module._orig_mod.{k}": v for k, v in state.items()}, tmp_path / "a.pth")
    found = convert.open_model(str(tmp_path / "a.pth"))
    parts = {n: found.components[n] for n in ("network", "image")}
    plain = WHOLE.split({k: held(v) for k, v in state.items()})
    assert set(plain) == {"network", "image"} and all(parts.values())


# -- folders ----------------------------------------------------------------------------------


def shards(folder: Path, state: dict, index: str, write) -> None:
    suffix = ".bin" if ".bin" in index else ".safetensors"
    names = dict(zip(state, (f"part-{n}{suffix}" for n in range(len(state)))))
    for key, name in names.items():
        write({key: state[key]}, folder / name)
    (folder / index).write_text(json.dumps({"weight_map": names}))


FOLDERS = {
    "fp16": lambda to, w: save_file(w, to / "diffusion_pytorch_model.fp16.safetensors"),
    "fp16 of transformers": lambda to, w: save_file(w, to / "model.fp16.safetensors"),
    "fp16 bin": lambda to, w: torch.save(w, to / "pytorch_model.fp16.bin"),
    "bin shards": lambda to, w: shards(to, w, "pytorch_model.bin.index.json", torch.save),
    "fp16 shards": lambda to, w: shards(to, w, "model.safetensors.index.fp16.json", save_file),
    "fp16 bin shards": lambda to, w: shards(
        to, w, "diffusion_pytorch_model.bin.index.fp16.json", torch.save
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_half_precision_and_of_shards_hold_weights(tmp_path, kind):
    state = {"a": torch.ones(2), "b": torch.zeros(3)}
    FOLDERS[kind](tmp_path, state)
    assert same(read(files.open_tensors(tmp_path).entries), state)


def test_full_precision_goes_before_half_and_safetensors_before_bin(tmp_path):
    for n, name in enumerate(("non_ema.safetensors", "fp16.safetensors", "bin", "safetensors")):
        path = tmp_path / f"diffusion_pytorch_model.{name}"
        (torch.save if name == "bin" else save_file)({"a": torch.full((1,), float(n))}, path)
        if name != "bin":
            assert files.open_tensors(tmp_path).entries["a"].read() == n
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    assert files.open_tensors(tmp_path).entries["a"].read() == 2


def test_an_index_names_files_of_its_own_folder(tmp_path):
    (tmp_path / "in").mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "secret.safetensors")
    places = {"weight_map": {"a": "../secret.safetensors"}}
    (tmp_path / "in" / "model.safetensors.index.json").write_text(json.dumps(places))
    assert "names no files" in refused(files.open_tensors, tmp_path / "in", error=StoreError)


# -- beside weights ---------------------------------------------------------------------------


def test_what_pytorch_takes_beside_weights_is_taken(tmp_path, network):
    beside = {"dtype": torch.float32, "seen": {1, 2}, "counts": Counter("aab"), "size": (3,)}
    torch.save({"nnet": network, "args": beside, **beside}, tmp_path / "a.pth")
    assert len(convert.open_model(str(tmp_path / "a.pth")).components["network"]) == 80


# -- bounded by what the files hold -----------------------------------------------------------


def at_once(call, *args, **options) -> str:
    """The one line of the StoreError that it raises within a few seconds."""
    begun = time.perf_counter()
    line = refused(call, *args, error=StoreError, **options)
    assert time.perf_counter() - begun < 10
    return line


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> dict[str, Path]:
    """Shipped models, and one with the codecs of a published one, small."""
    text = {
        "tokenizer": train_tokens(["a red circle"], 100),
        "length": 8,
        "dim": 8,
        "text": {**SMALL_TEXT, "hidden_size": 16, "intermediate_size": 16},
        "decoder": {**SMALL_DECODER, "n_embd": 16},
    }
    vision = {**SMALL_VISION, "hidden_size": 16, "intermediate_size": 16, "projection_dim": 8}
    config = unidiffuser.UniDiffuserConfig(
        image_channels=4, image_size=16, patch=4, embed_dim=8, text_length=8, text_dim=8, dim=16,
        depth=2, heads=2, codecs="trained", codec_config={
            "image": {"autoencoder": {**SMALL, "block_out_channels": [32]}, "fold": 4},
            "image_embed": {"vision": vision}, "text": text,
        },
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("trained") / "model"
    library.save(folder, unidiffuser.build(config), {"image_size": 64})
    return {name: SHIPPED / name for name in ("nano", "mini-vq")} | {"trained": folder}


def changed(folder: Path, home: Path, place: str, value: object) -> Path:
    """A copy of a model with another number in its config."""
    folder.mkdir()
    for path in home.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    *parents, last = place.split(".")
    inner = document["config"]["config"]
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize("many", [10**6, 10**9, 10**30])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("nano", "depth"),
        ("mini-vq", "network.depth"),
        ("mini-vq", "codec.codes"),
        ("trained", "codec_config.image_embed.vision.num_hidden_layers"),
        ("trained", "codec_config.text.decoder.n_layer"),
    ],
)
def test_layers_without_end_are_refused_at_once(tmp_path, homes, name, place, many):
    folder = changed(tmp_path / "model", homes[name], place, many)
    assert "config.json" in at_once(load, folder, "cpu")
    for origin in ("authors", "diffusers"):
        with pytest.raises((StoreError, LayoutError)):
            convert.write_back(convert.open_model(str(folder)), origin, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("trained", "codec_config.image_embed.vision.hidden_size", "9"),
        ("trained", "codec_config.text.decoder.n_layer", None),
        ("mini-vq", "text.tokenizer", "x"),
        ("mini-vq", "network.layout", 0),
        ("nano", "image_size", -(10**9)),
    ],
)
def test_settings_of_other_kinds_are_one_line(tmp_path, homes, name, place, value):
    """Such as transformers and tokenizers have errors of their own for."""
    line = at_once(load, changed(tmp_path / "model", homes[name], place, value), "cpu")
    assert "config.json" in line


def test_numbers_in_names_are_bounded_by_how_many_names_there_are(network):
    far = {k.replace("in_blocks.1.", f"in_blocks.{10**9}."): held(v) for k, v in network.items()}
    begun = time.perf_counter()
    layout = file_layout.recognised(far, LAYOUTS, Path("x"))
    assert "missing: ins.{i}" in refused(file_layout.read, far, layout, {})
    assert time.perf_counter() - begun < 5


def test_a_side_is_bounded_by_the_tables():
    entries = WHOLE.split({k: held(v) for k, v in tiny_model("text").items()})["network"]
    (layout,) = (row for row in LAYOUTS if row.name == "vq-diffusion")
    for side in (0, -1, 10**6):
        line = refused(file_layout.read, entries, layout, {"side": side})
        assert f"side cannot be {side}" in line


def test_a_model_without_its_system_is_refused(tmp_path):
    folder = changed(tmp_path / "model", SHIPPED / "nano", "depth", 2)
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del document["config"]["system"]
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    assert "'system' is missing" in refused(load, folder, "cpu", error=StoreError)


def test_a_missing_function_of_a_system_is_no_fault_of_a_model(monkeypatch):
    from everyway.systems import unidiffuser

    monkeypatch.delattr(unidiffuser, "missing_parts")
    with pytest.raises(ImportError, match="no function missing_parts"):
        convert.open_model("nano")


# -- no numbers of a network ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_whole_numbers_are_no_weights(network, kind):
    for change in (network.keys(), ["norm.bias"]):
        wrong = {k: held(v.to(kind) if k in change else v) for k, v in network.items()}
        layout = file_layout.recognised(wrong, LAYOUTS, Path("x"))
        assert "weights are floats, but these are not" in refused(
            file_layout.read, wrong, layout, {}
        )


def test_whole_numbers_in_a_folder_of_ours_are_no_weights(tmp_path):
    config, tensors, metadata = store.load(SHIPPED / "nano")
    tensors["network"] = {k: v.to(torch.int64) for k, v in tensors["network"].items()}
    store.save(tmp_path / "model", config, tensors, metadata)
    line = refused(load, tmp_path / "model", "cpu", error=StoreError)
    assert "weights are floats, but these are not" in line


def test_tensors_of_no_numbers_are_no_weights(network):
    wrong = {k: held(v) for k, v in network.items()} | {"norm.bias": held(torch.zeros(0, 10**9))}
    layout = file_layout.recognised(wrong, LAYOUTS, Path("x"))
    assert "norm.bias" in refused(file_layout.read, wrong, layout, {})


@pytest.mark.parametrize("head", [torch.float16, torch.float64, torch.bfloat16])
def test_a_tied_layer_of_another_format_is_compared_by_its_numbers(head):
    name = "module.gpt.lm_head.weight"
    state = {k: held(v) for k, v in tiny_caption().items()}
    state[name] = held(torch.ones_like(tiny_caption()[name]).to(head))
    layout = file_layout.recognised(state, LAYOUTS, Path("x"))
    assert "tied" in refused(file_layout.read, state, layout, {})


def write(path: Path, value: object) -> None:
    if path.suffix == ".json":
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    elif path.suffix == ".npy":
        np.save(path, value, allow_pickle=True)
    elif path.suffix == ".pt":
        torch.save(value, path)
    else:
        path.write_bytes(b"")


USED = {
    "an object.json": {"a": 1},
    "words.json": ["a", "b"],
    "nested.json": [[1, 2], [3]],
    "beyond.json": [1, 2**70],
    "no.json": "{",
    "below.json": [-1, 2],
    "floats.npy": np.ones(3) / 2,
    "objects.npy": np.array([{"a": 1}], dtype=object),
    "empty.npy": np.zeros(0, np.int64),
    "table.npy": np.zeros((2, 2), np.int64),
    "weights.pt": {"a": torch.ones(2)},
    "half.pt": torch.ones(3, dtype=torch.bfloat16),
    "other.txt": b"",
    "folder.npy": None,
}


@pytest.mark.parametrize("name", USED)
def test_files_that_are_no_list_of_codes_are_one_line(tmp_path, name):
    torch.save({"model": tiny_model("text")}, tmp_path / "a.pth")
    path = tmp_path / name
    path.mkdir() if USED[name] is None else write(path, USED[name])
    line = refused(
        convert.open_model, str(tmp_path / "a.pth"), parts={"used": str(path)}, error=ValueError
    )
    assert name in line and "list of codes" in line


@pytest.mark.parametrize("codes", [[1, 1, 2], [3, 1], [0, 10**5]])
def test_codes_that_do_not_fit_the_codec_are_one_line(tmp_path, codes):
    torch.save({"model": tiny_model("class")}, tmp_path / "a.pth")
    write(tmp_path / "used.json", codes)
    opened = convert.open_model(
        str(tmp_path / "a.pth"), parts={"used": str(tmp_path / "used.json")}
    )
    assert "codes" in refused(convert.restored, opened, error=ValueError)
