"""What a training makes its latents of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from everyway.data.folder import Folder, write_folder
from everyway.data.lattice import Lattice
from everyway.data.shapes import Shapes
from everyway.data.styles import WithStyle
from everyway.systems import ediffi
from everyway.train import devices, sources
from everyway.train.config import ConfigError, resolve
from everyway.train.latents import Latents
from everyway.train.learner import Share
from everyway.train.systems import SystemLearner, prepared


@pytest.fixture(autouse=True)
def alone():
    devices.joined("cpu")


def keys(data, count: int) -> list[str]:
    return [sources.sample_at(data, row, count).key for row in range(count)]


def latents(**settings):
    config = resolve("nano", settings)
    system, lines = prepared(config), []
    return system, config, sources.cached(system, config, lines.append), lines


def test_of_a_larger_folder_the_pictures_are_spread_evenly(tmp_path):
    shapes = Shapes(seed=1)
    write_folder(tmp_path, (replace(shapes.sample(k), key=f"{k}") for k in range(6)))
    folder = Folder(tmp_path)
    assert keys(folder, 3) == ["0", "2", "4"]
    assert keys(folder, 6) == [*"012345"]


def test_how_many_of_a_folder_are_taken_is_told(tmp_path):
    shapes = Shapes(seed=1)
    write_folder(tmp_path / "data", (shapes.sample(k) for k in range(6)))
    *_, lines = latents(data=str(tmp_path / "data"), out=str(tmp_path / "run"), cache=3)
    assert lines[0] == "encoded 3 of 3 samples"
    assert lines[1].startswith("3 of the 6 pictures of") and "cache=6 takes all" in lines[1]


def test_a_picture_that_moves_to_another_class_is_seen(tmp_path):
    """Names and order stay: only the folders differ."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write_folder(tmp_path / "a", (replace(Shapes(seed=1).sample(k), key=f"{k}") for k in range(3)))
    before = Folder(tmp_path).stamp()
    for path in (tmp_path / "a").glob("2.*"):
        path.rename(tmp_path / "b" / path.name)
    assert Folder(tmp_path).stamp() != before


def test_another_picture_or_caption_of_the_same_name_is_seen(tmp_path):
    shapes, stamps = Shapes(seed=1), set()
    write_folder(tmp_path, [replace(shapes.sample(0), key="a")])
    stamps.add(Folder(tmp_path).stamp())
    write_folder(tmp_path, [replace(shapes.sample(1), key="a")])
    stamps.add(Folder(tmp_path).stamp())
    (tmp_path / "a.txt").write_text("a pear on a plate of silver\n", encoding="utf-8")
    stamps.add(Folder(tmp_path).stamp())
    assert len(stamps) == 3
    assert Folder(tmp_path).stamp() in stamps


def test_endless_data_is_taken_from_its_start():
    shapes = Shapes(seed=1)
    assert keys(shapes, 3) == [shapes.sample(k).key for k in range(3)]


def test_a_mirrored_picture_is_a_sample_of_its_own():
    shapes = Shapes(seed=1)
    own, mirrored, other = (sources.sample_at(shapes, row, 2, flip=True) for row in range(3))
    assert other.key == shapes.sample(1).key and own.captions == mirrored.captions
    assert np.array_equal(mirrored.image[:, ::-1], own.image)


def test_pictures_whose_captions_say_left_are_not_mirrored(tmp_path):
    with pytest.raises(ConfigError, match="captions of shapes say left and right"):
        latents(out=str(tmp_path), cache=3, flip=1)


def test_every_state_of_a_mirrored_sample_is_of_the_mirrored_picture(tmp_path):
    write_folder(tmp_path / "data", (Shapes(seed=1).sample(k) for k in range(3)))
    given = dict(data=str(tmp_path / "data"), out=str(tmp_path), cache=3, flip=1)
    system, config, made, _ = latents(**given)
    assert len(made) == 6
    data = sources.data_of(system, config)
    for row in range(6):
        sample = sources.sample_at(data, row, 3, flip=True)
        picture = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        for name, state in system.encode({"image": picture}).items():
            found = made.shards[0][name][row].float()
            torch.testing.assert_close(found, state, rtol=1e-3, atol=1e-3)


def test_a_text_that_is_made_states_everything():
    """Captions that leave things unsaid are conditions; a text to be made is one of the others."""
    config = resolve("nano", {"data": "lattice", "cache": "64"})
    system = prepared(config)
    assert isinstance(data := sources.data_of(system, config), Lattice) and data.complete == 0.5
    samples = [data.sample(index) for index in range(64)]
    latents = Latents(shards=[sources.encode(system, samples)], complete=data.complete)
    learner = SystemLearner(system, latents, config)
    share = Share(seed=0, step=0, size=512, rows=slice(0, 512), device=torch.device("cpu"))
    x0, _, times, _, _ = learner.batch(share)
    whole = {text for s in samples for text in s.captions[:2]}
    said = system.modalities["text"].codec.decode(x0["text"])
    whole = set(system.modalities["text"].codec.decode(system.encode({"text": [*whole]})["text"]))
    unsaid = torch.tensor([text not in whole for text in said])
    assert not unsaid[times["text"] > 0].any()
    assert 0.3 < unsaid[times["text"] == 0].float().mean() < 0.7


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_sample_without_what_a_condition_reads_has_its_null(share):
    words = sources.Data("lattice-with-style", 0).words
    system = ediffi.build(replace(ediffi.nano(words), sources={"style": "style"}))
    data = WithStyle(share=share)
    samples = [data.sample(index) for index in range(12)]
    found = sources.encode(system, samples)["context.style"][:, 0]
    assert found.shape == (12, 1, 48)
    null = system.conditions["style"].null().context().tokens[0]
    for sample, tokens in zip(samples, found):
        if sample.raw["style"] is None:
            assert torch.equal(tokens, null)
        else:
            small = sources.pictures([replace(sample, image=sample.raw["style"])])
            own = system.contexts({"style": small})["style"].tokens[0]
            torch.testing.assert_close(tokens, own, atol=0.02, rtol=0)
