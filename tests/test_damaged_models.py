"""Model folders with a wrong config, options that nothing reads: one line, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from everyway import library
from everyway.checkpoints import store
from everyway.checkpoints.store import StoreError
from everyway.checkpoints.tensor_files import LayoutError
from everyway.generate import load
from everyway.layouts import convert

GONE = object()
HARMS = {
    "config null": ("config", None),
    "config a list": ("config", []),
    "config empty": ("config", {}),
    "settings null": ("config.config", None),
    "settings a list": ("config.config", []),
    "system a number": ("config.system", 5),
    "system unknown": ("config.system", "unet"),
    "facts null": ("facts", None),
    "facts a list": ("facts", []),
    "facts text": ("facts", "none"),
    "size text": ("facts.image_size", "big"),
    "size null": ("facts.image_size", None),
    "size 0": ("facts.image_size", 0),
    "training": ("facts.training", 5),
    "history": ("facts.history", [{}]),
    "source": ("facts.source", {"network": 5}),
    "no sums": ("sha256", {}),
    "shared": ("config.config.shared", 5),
    "tied": ("tied", 5),
    "tied to nothing": ("tied", {"network": {"other": "unknown"}}),
    "extra": ("config.config.colour", "red"),
    "missing": ("config.config.depth", GONE),
    "codecs": ("config.config.codecs", "other"),
    "no codecs": ("config.config.codecs", "trained"),
    "codec settings": ("config.config.codec_config", {"vocabulary": 5}),
    "no codec settings": ("config.config.codec_config", {}),
    "words": ("config.config.codec_config", {"vocabulary": [1, 2]}),
    "weights": ("config.config.weights", {"image": "much"}),
    "few weights": ("config.config.weights", {"image": 1.0}),
    "sampler": ("config.config.sampler", 5),
    "guidance": ("config.config.guidance", float("nan")),
    "channels": ("config.config.image_channels", -1),
    "heads below 0": ("config.config.heads", -1),
    "no heads": ("config.config.heads", 0),
    "no patches": ("config.config.patch", 0),
    **{
        f"{name} {value}": (f"config.config.{name}", value)
        for name in ("dim", "depth", "heads", "patch")
        for value in ("4", None, 4.5)
    },
}


def damaged(folder: Path, place: str, value: object) -> Path:
    """A copy of nano with another value in its config.json."""
    shutil.copytree(library.SHIPPED / "nano", folder)
    path = folder / "config.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    *parents, last = place.split(".")
    inner = document
    for name in parents:
        inner = inner[name]
    inner.pop(last, None) if value is GONE else inner.update({last: value})
    path.write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_config_is_one_line(tmp_path, harm):
    folder = damaged(tmp_path / "model", *HARMS[harm])
    with pytest.raises(StoreError, match="model/config.json.*(copy it again|anew)$") as caught:
        load(folder, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", ["facts null", "size text", "extra", "heads below 0", "tied"])
def test_a_damaged_folder_is_not_converted(run, tmp_path, harm):
    damaged(tmp_path / "model", *HARMS[harm])
    code, _, err = run("convert", "model", "--out", "out")
    assert code == 1 and err.startswith("everyway: model/config.json") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_nested_config_is_refused_as_a_fault_of_the_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(StoreError, match="config.json is not a model's config"):
        store.document(tmp_path)


def test_a_token_network_of_wrong_numbers(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(library.SHIPPED / "mini-vq", folder)
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    document["config"]["config"]["network"]["heads"] = -1
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(StoreError, match="heads cannot be -1; get the model anew"):
        convert.restored(convert.open_model(str(folder)))


# -- converted --------------------------------------------------------------------------------


@pytest.mark.parametrize("origin", ["authors", "diffusers"])
def test_what_no_layout_holds_is_not_written(run, tmp_path, origin):
    """nano leaves settings to the defaults, and norms where the published networks do not."""
    code, _, err = run("convert", "nano", "--to", origin, "--out", "out")
    assert code == 2 and f"no layout of {origin} can hold this model's network" in err
    assert not (tmp_path / "out").exists()


def test_settings_that_a_folder_leaves_out_are_the_defaults(run, tmp_path):
    from everyway.systems import unidiffuser

    settings = dict(unidiffuser.PUBLISHED["v0"], image_size=8, text_length=77, dim=32, depth=2)
    settings |= {"heads": 2, "text_dim": 8, "embed_dim": 12, "norm": "post"}
    del settings["qkv_bias"], settings["data_type"]
    vocabulary = {"codec_config": {"vocabulary": ["a"]}}
    system = unidiffuser.build({**settings, **vocabulary})
    config = {"system": "unidiffuser", "config": {**settings, **vocabulary}}
    store.save(tmp_path / "post", config, {"network": system.network.state_dict()}, {})
    assert run("convert", "post", "--to", "diffusers", "--out", "out")[0] == 0
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    assert config["attention_bias"] is False and config["use_data_type_embedding"] is False
    again = convert.open_model(str(tmp_path / "out" / "unet"))
    assert again.config["config"]["dim"] == 32


def test_a_fault_of_the_second_part_leaves_no_first(tmp_path, monkeypatch):
    """Every config is made before a file is written."""
    from everyway.layouts import file_layout

    written = []
    opened = convert.open_model("nano")
    layouts = [object(), object()]
    monkeypatch.setattr(convert, "_held_by", lambda *given: {one: ({}, {}) for one in layouts})
    monkeypatch.setattr(file_layout, "write", lambda *given: written.append(given))
    monkeypatch.setattr(file_layout, "beside", lambda layout, own: own["x"] if layout else "")
    with pytest.raises(StoreError, match="'x' is missing"):
        convert.write_back(opened, "diffusers", tmp_path)
    assert not written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--layout", "zzz"), "layout=zzz: .*nano says it itself; leave it out"),
        (("--weights", "zz"), "weights=zz: .*nano says it itself"),
        (("--set", "heads=4"), "heads=4: .*nano says it itself"),
        (("--set", "heads=abc"), "heads=abc: give a whole number"),
        (("--set", "null=zzz"), "only null=fresh can be set"),
    ],
)
def test_options_that_nothing_reads_are_refused(run, tmp_path, words, said):
    code, _, err = run("convert", "nano", *words, "--out", "out")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "out").exists()
    with pytest.raises(LayoutError, match=said):
        name, _, value = words[1].partition("=")
        own = {name: value} if value else {}
        options = {} if value else {words[0].strip("-"): words[1]}
        convert.open_model("nano", hints=own, **options)
    with pytest.raises(LayoutError, match=said):
        load("nano", settings=own or options)


def test_a_file_of_one_set_has_none_by_name(tmp_path):
    (path,) = (library.SHIPPED / "nano").glob("network-*")
    with pytest.raises(LayoutError, match="holds no weights called 'ema'; leave it out"):
        convert.open_model(str(path), weights="ema")


def test_a_pipeline_without_parts_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no part that is known"):
        load(tmp_path)


def test_a_shipped_name_is_converted(run, tmp_path):
    assert run("convert", "nano", "--out", "out")[0] == 0
    assert store.fingerprint(tmp_path / "out") == store.fingerprint(library.SHIPPED / "nano")


# -- loaded -----------------------------------------------------------------------------------


def test_a_path_is_a_name(nano):
    made = load(library.SHIPPED / "nano", "cpu")
    assert (made.name, made.hash) == ("nano", nano.hash)
    assert library.metadata_of(library.SHIPPED / "nano") == nano.metadata


@pytest.mark.parametrize("name", ["meta", "privateuseone", "hpu", "", None])
def test_devices_that_hold_no_numbers_are_refused(name):
    with pytest.raises(library.ModelError, match="cannot be used .*; leave --device out") as caught:
        load("nano", name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
