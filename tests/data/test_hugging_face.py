"""Data sets of the Hugging Face library, and columns that are told; every form of the same pairs
gives the batches that a folder gives, bit for bit."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from everyway.apps.cli import main
from everyway.data.check import check
from everyway.data.columns import COLUMNS, read_name
from everyway.data.folder import Folder, FolderError
from everyway.train import devices, sources
from everyway.train.config import resolve
from everyway.train.learner import Share
from everyway.train.systems import SystemLearner, prepared

datasets = pytest.importorskip("datasets")
COUNT = 5
CAPTIONS = [f"a red circle {k}" for k in range(COUNT)]
LABELS = [1, 0, 1, -1, 0]


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """The same pairs as files, tables beside files, shards, and data sets; by the data's name."""
    at = tmp_path_factory.mktemp("forms")
    datasets.disable_progress_bars()
    files = [at / "files" / f"{k}.png" for k in range(COUNT)]
    for place in ("files", "jsonl", "csv", "parquet"):
        (at / place).mkdir()
        for k, file in enumerate(files):
            rng = np.random.default_rng(k)
            pixels = rng.integers(0, 255, (20, 26, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(at / place / file.name)
    for k, file in enumerate(files):
        file.with_suffix(".txt").write_text(CAPTIONS[k])
    rows = [{"file_name": f.name, "text": said} for f, said in zip(files, CAPTIONS)]
    (at / "jsonl" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table = datasets.Dataset.from_list(rows)
    table.to_csv(str(at / "csv" / "metadata.csv"))
    table.to_parquet(str(at / "parquet" / "metadata.parquet"))
    with tarfile.open(at / "shard.tar", "w") as tar:
        for file in sorted((at / "files").iterdir()):
            tar.add(file, file.name)
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "blip": datasets.Value("string"),
            "caption": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=["dog", "cat"]),
        }
    )
    columns = {"picture": [*map(str, files)], "blip": [c.upper() for c in CAPTIONS]}
    whole = datasets.Dataset.from_dict(
        columns | {"caption": CAPTIONS, "kind": LABELS}, features=features
    )
    whole.save_to_disk(at / "saved")
    datasets.DatasetDict(train=whole, test=whole.select([2])).save_to_disk(at / "splits")
    (at / "hub" / "data").mkdir(parents=True)
    whole.to_parquet(at / "hub" / "data" / "train-00000-of-00001.parquet")
    whole.select([2]).to_parquet(at / "hub" / "data" / "test-00000-of-00001.parquet")
    return at


SETS = ("saved", "splits", "hub", "hub/data/train-*.parquet")
FORMS = ("jsonl", "csv", "parquet", "shard.tar", *SETS)


def batches(name, out) -> list[dict[str, torch.Tensor]]:
    """What the trainer learns from in its first two steps."""
    devices.joined("cpu")
    config = resolve("nano", {"data": str(name), "batch": 8}, out=str(out))
    system = prepared(config)
    learner = SystemLearner(system, sources.cached(system, config), config)
    device = torch.device("cpu")
    shares = [Share(seed=0, step=k, size=8, rows=slice(0, 8), device=device) for k in (0, 1)]
    drawn = [learner.batch(share) for share in shares]
    return [encoded | times for _, encoded, times, *_ in drawn]


def test_every_form_gives_the_trainer_the_same_batches(forms, tmp_path):
    wanted = batches(forms / "files", tmp_path / "files")
    assert not torch.equal(wanted[0]["image"], wanted[1]["image"])
    for number, form in enumerate(FORMS):
        made = batches(forms / form, tmp_path / str(number))
        for own, other in zip(wanted, made, strict=True):
            assert own.keys() == other.keys(), form
            assert all(torch.equal(own[k], other[k]) for k in own), form


@pytest.mark.parametrize("form", SETS)
def test_a_data_set_has_classes_in_its_own_order(forms, form):
    data = Folder(str(forms / form), captioned=True)
    assert data.classes == ("dog", "cat")
    assert [s.label for s in data] == [1, 0, 1, None, 0]
    assert data.stamp() == Folder(str(forms / form), captioned=True).stamp()
    found = check(str(forms / form))
    assert found.good and found.classes == {"cat": 2, "dog": 2} and found.captions == COUNT


def test_what_is_told_behind_the_name(forms, capsys):
    told = Folder(f"{forms / 'hub'}?caption=blip&split=test", captioned=True)
    assert told.captions(0) == (CAPTIONS[2].upper(),) and len(told) == 1
    name, columns = read_name("a?b.png")
    assert name == "a?b.png" and columns is COLUMNS
    for wrong, said in (
        ("?caption=said", "has no column 'said' for caption; it has picture, blip"),
        ("?split=dev", "has no split 'dev' but train, test; choose one: "),
        ("?captoin=blip", "tells of 'captoin'; what can be told is image, caption, label, split"),
    ):
        assert main(["data", "check", f"{forms / 'hub'}{wrong}"]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_a_column_of_a_table_beside_files_is_told(forms, tmp_path):
    rows = ["file_name,blip,class", *(f"{k}.png,a cup {k},cup" for k in range(COUNT))]
    for file in (forms / "files").glob("*.png"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    with pytest.raises(FolderError, match="none of the 5 pictures"):
        Folder(tmp_path, captioned=True)
    data = Folder(f"{tmp_path}?caption=blip", captioned=True)
    assert data.captions(3) == ("a cup 3",) and data.classes == ("cup",)


def test_rows_without_a_picture_or_a_text_are_named(forms, tmp_path, caplog):
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    files = [str(forms / "files" / "0.png"), None, str(forms / "files" / "1.png")]
    table = datasets.Dataset.from_dict({"image": files, "text": ["a", "b", None]}, features)
    table.save_to_disk(tmp_path / "set")
    found = check(str(tmp_path / "set"))
    assert found.unreadable == (("00000001", "the row has no picture"),)
    assert found.missing_captions == ("00000002",)
    assert [s.captions for s in Folder(str(tmp_path / "set"), captioned=True)] == [("a",)]


def test_no_pictures_and_no_library_are_one_line(forms, tmp_path, monkeypatch):
    datasets.Dataset.from_list([{"a": "b"}]).save_to_disk(tmp_path / "words")
    with pytest.raises(FolderError, match=r"no pictures among a; name their column: .*\?image="):
        Folder(str(tmp_path / "words"))
    with pytest.raises(FolderError, match="cannot be opened: there is no such file"):
        Folder(str(tmp_path / "*.parquet"))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(FolderError, match=r"needs the library datasets: pip install 'everyway\["):
        Folder("hf:owner/name")
