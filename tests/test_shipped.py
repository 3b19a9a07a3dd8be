"""What travels with the package: small, whole, told about on a card, and able to do its tasks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import everyway
from everyway import library
from everyway.checkpoints import card, store
from everyway.library import SHIPPED, shipped
from everyway.metrics.judge import JUDGES

MEGABYTES = {"mini": 24}
"""Of tensors, where it may be more than 8."""


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_is_small_and_has_a_card(name):
    folder = SHIPPED / name
    size = sum(tensor_bytes(path) for path in folder.glob("*.safetensors"))
    assert size <= MEGABYTES.get(name, 8) * 1_000_000
    sums = {*store.document(folder)["sha256"].values(), *pinned(name)}
    assert len(list(folder.glob("*.safetensors"))) == len(sums)
    assert "all correct" in (folder / "README.md").read_text(encoding="utf-8")


def test_tokens_draw_what_words_say():
    model = everyway.load("mini-vq")
    made = model.generate(kind="text-to-image", text="a large fox on blue", n=2)
    seen = JUDGES["lattice"].read([result.image for result in made])
    assert [scene.background for scene in seen] == ["blue", "blue"]


def test_a_shared_codec_that_is_named_by_its_digest_outlives_a_new_one(tmp_path, monkeypatch):
    """A model goes on with the codec that it was trained on after its owner has got another."""
    for name in ("mini", "mini-vq"):
        shutil.copytree(SHIPPED / "mini-vq", tmp_path / name)
    monkeypatch.setattr(library, "SHIPPED", tmp_path)
    former = store.document(tmp_path / "mini")["sha256"]["text"]
    rewrite(tmp_path / "mini", lambda held: held["sha256"].update(text="0" * 64))
    rewrite(tmp_path / "mini-vq", lambda held: held["sha256"].pop("text"))
    shared = {"text": "mini"}
    rewrite(tmp_path / "mini-vq", lambda held: held["config"]["config"].update(shared=shared))
    with pytest.raises(store.StoreError, match="missing; copy the whole model folder again"):
        everyway.load(tmp_path / "mini-vq")
    shared = {"text": f"mini@{former}"}
    rewrite(tmp_path / "mini-vq", lambda held: held["config"]["config"].update(shared=shared))
    model = everyway.load(tmp_path / "mini-vq")
    assert model.generate(kind="text-to-image", text="a fox on blue", steps=1)
    held = store.document(tmp_path / "mini-vq")
    assert "| text: that of `mini` |" in card.card(held["config"], held["facts"])


def tensor_bytes(path: Path) -> int:
    """Of a safetensors file, whose header's length is its first eight bytes."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def pinned(name: str) -> set[str]:
    """Digests of the files of a shipped model that others were trained on, and keep to."""
    configs = [store.document(SHIPPED / other)["config"]["config"] for other in shipped()]
    shared = [model.partition("@") for own in configs for model in own.get("shared", {}).values()]
    return {digest for owner, _, digest in shared if owner == name and digest}


def rewrite(folder, change) -> None:
    held = store.document(folder)
    change(held)
    (folder / "config.json").write_text(json.dumps(held), encoding="utf-8")


@pytest.mark.parametrize("text", ["a large fox on blue", "파란 배경에 큰 여우"])
def test_the_default_draws_what_a_short_prompt_says(text):
    """What it leaves unsaid is taken as usual, and told."""
    made = everyway.load("mini").generate(kind="text-to-image", text=text, n=6)
    seen = JUDGES["lattice"].read([result.image for result in made])
    assert sum(s.names == ("fox",) and s.background == "blue" for s in seen) >= 5
    assert any("taken as" in note for note in made[0].metadata["notes"])
