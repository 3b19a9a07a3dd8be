"""A model of somebody's own pictures is judged on them, and on nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from everyway.data.folder import write_folder
from everyway.data.sample import Sample
from everyway.errors import UsageError
from everyway.metrics.judge import judge_of, judge_of_folder
from everyway.metrics.report import evaluate

SAID = ("a red ring left on white", "a blue cross top on yellow", "a green square right on black")


@pytest.fixture(scope="module")
def samples():
    """Three pictures of noise, two of which share a caption."""
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    captions = ((SAID[0], "red"), (SAID[1],), (SAID[1],))
    return [Sample(image=p, captions=c) for p, c in zip(pictures, captions)]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of pictures of which those of one caption are of one colour."""
    path = tmp_path_factory.mktemp("own")
    colours = ("red", "blue", "green")
    pictures = (np.asarray(Image.new("RGB", (16, 16), colour)) for colour in colours)
    write_folder(path, (Sample(image=p, captions=(c,)) for p, c in zip(pictures, SAID)))
    return str(path)


def learned(model, data):
    return replace(model, metadata={**model.metadata, "training": {"data": data}})


def test_a_judge_of_a_folder_reads_what_is_in_it(samples):
    judge = judge_of_folder(samples)
    pictures = [Image.fromarray(s.image) for s in samples]
    faded = [Image.blend(p, Image.new("RGB", p.size, "gray"), 0.2) for p in pictures]
    assert judge.read(pictures) == judge.read(faded) == [0, 1, 2]
    assert judge.parse(SAID[0]) == judge.parse("RED") == {0}
    assert judge.parse(SAID[1]) == judge.parse("cross, blue; on the top of yellow") == {1, 2}
    assert judge.compare(judge.parse(SAID[1]), 2) == {"picture": True}
    assert judge.compare(judge.parse(SAID[1]), 0) == {"picture": False}
    assert judge.compare(judge.parse("zebra"), 0) == {"picture": False}
    near, exact = judge.crispness([faded[0], pictures[0]])
    assert 10 < near < 40 < exact


def test_a_model_is_judged_on_what_it_learned(nano, own, run):
    model = learned(nano, own)
    told = []
    report = evaluate(model, n=3, settings={"steps": 1}, track=lambda *where: told.append(where))
    assert report["suite"] == "folder" and set(report["rows"]["t2i"]) == {"picture", "all_correct"}
    assert report["rows"].keys() == {"t2i", "i2t", "joint", "codec", "classifier"}
    assert report["classifier.all_correct"] == report["codec.all_correct"] == 1
    assert report["crispness"].keys() == {"t2i", "joint", "image", "codec"}
    assert [done for _, done in told] == sorted(done for _, done in told) and told[-1][1] <= 1
    assert dict.fromkeys(row for row, _ in told).keys() == {"image", *report["rows"]}
    assert judge_of(model).prompts == tuple(sorted(SAID, key=SAID.index))


def test_other_data_than_its_own_is_refused(nano, own, tmp_path):
    for suite in ("scenes", "shapes"):
        with pytest.raises(UsageError, match=f"{suite} is of other data than .*choose folder"):
            evaluate(learned(nano, own), suite, n=1)
    with pytest.raises(UsageError, match="choose shapes"):
        evaluate(nano, "scenes", n=1)
    with pytest.raises(UsageError, match="is not here; give --data FOLDER"):
        evaluate(learned(nano, str(tmp_path / "gone")), n=1)
    with pytest.raises(UsageError, match="not known what nano learned; .*--data FOLDER"):
        evaluate(replace(nano, metadata={}), n=1)


def test_pictures_that_are_given_count(nano, own, run):
    words = ["evaluate", "nano", "--data", own, "-n", 2, "--steps", 1, "--rows", "t2i"]
    code, out, err = run(*words, "--json")
    report = json.loads(out)
    assert code == 0 and report["suite"] == "folder" and report["rows"]["t2i"]["picture"]["n"] == 2


def test_a_scene_suite_asks_what_is_left_unsaid():
    from everyway.data.lattice import Lattice, parse_caption
    from everyway.metrics.report import _partial
    from everyway.metrics.scenes import score

    for k in range(50):
        scene = Lattice(seed=3, count=1 + k % 2).scene(k)
        stated = parse_caption(_partial(scene, (3, k)))
        assert stated != scene.canonical() and all(score(stated, scene).values())
