"""Emoji Scenes: deterministic, held-out pairs apart, pictures that show what the record says."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from everyway.data.emoji import (
    COLOURS,
    CURRICULUM,
    HEADS,
    IGNORE,
    KOREAN,
    OBJECTS,
    EmojiScenes,
    MissingFont,
    find_font,
    parse_caption,
    scene_of,
    targets,
)
from everyway.data.sample import Scene
from everyway.data.scenes import heldout_pair


def test_vocabulary_is_large_and_unique():
    assert len(OBJECTS) >= 200 and len(set(KOREAN.values())) == len(OBJECTS)
    assert {"fox", "teapot", "clock", "tree", "broccoli", "ice", "dog", "cat"} <= set(OBJECTS)
    assert HEADS["second"] == len(OBJECTS) + 1


def test_a_sample_is_a_function_of_seed_and_index():
    a, b = EmojiScenes(seed=3).sample(41), EmojiScenes(seed=3).sample(41)
    assert a.captions == b.captions and a.record == b.record
    assert np.array_equal(a.image, b.image)
    assert a.image.shape == (64, 64, 3) and a.image.dtype == np.uint8
    assert not np.array_equal(a.image, EmojiScenes(seed=4).sample(41).image)


def test_record_round_trips_through_json():
    data = EmojiScenes(seed=1)
    for index in range(50):
        scene = data.scene(index)
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
    with pytest.raises(ValueError, match="record of a scene"):
        Scene.from_json({"objects": [{"colour": "red"}]})
    with pytest.raises(ValueError, match="place 'moon'"):
        Scene.from_json({"objects": [{"name": "fox", "place": "moon"}]})


def test_heldout_pairs_never_meet_in_training():
    train, held = EmojiScenes(seed=2), EmojiScenes(seed=2, split="heldout", count=2)
    scenes = [train.scene(i) for i in range(4000)]
    pairs = [s.names for s in scenes if len(s.objects) == 2]
    assert 0.45 < len(pairs) / len(scenes) < 0.55
    assert not any(heldout_pair(*pair) for pair in pairs)
    assert all(heldout_pair(*held.scene(i).names) for i in range(500))
    assert heldout_pair("fox", "teapot") == heldout_pair("teapot", "fox")
    every = [heldout_pair(a, b) for i, a in enumerate(OBJECTS) for b in OBJECTS[:i]]
    assert abs(np.mean(every) - 0.1) < 0.01


def test_background_and_place_are_where_the_record_says():
    data = EmojiScenes(seed=5, count=1)
    y, x = (np.mgrid[0:64, 0:64] + 0.5) / 64 - 0.5
    for index in range(300):
        scene = data.scene(index)
        image = data.render(scene, index).astype(int)
        rim = np.median(image[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
        assert abs(rim - COLOURS[scene.background]).max() <= 8
        object_ = abs(image - rim).max(-1) > 12
        if object_.sum() < 30:
            continue  # white on white and the like
        rows, columns = np.nonzero(object_.any(1))[0], np.nonzero(object_.any(0))[0]
        mid_y, mid_x = (y[rows[[0, -1]], 0].mean(), x[0, columns[[0, -1]]].mean())
        where = {"left": -mid_x, "right": mid_x, "top": -mid_y, "bottom": mid_y}
        place = scene.objects[0].place
        if place == "middle":
            assert max(abs(mid_x), abs(mid_y)) < 0.09
        else:
            assert where[place] > 0.08


def test_targets_and_back():
    for split, seed in (("train", 6), ("heldout", 7)):
        data = EmojiScenes(seed=seed, split=split)
        for index in range(300):
            scene = data.scene(index)
            classes = targets(scene)
            assert scene_of({k: max(v, 0) for k, v in classes.items()}) == scene
            assert all(v == IGNORE or 0 <= v < HEADS[k] for k, v in classes.items())


def test_render_takes_what_a_prompt_states():
    data = EmojiScenes(seed=8)
    asked = parse_caption("a fox left of a teapot on blue")
    assert data.render(asked, 1).shape == (64, 64, 3)
    assert np.array_equal(data.render(asked, 1), data.render(asked, 1))
    assert EmojiScenes(size=32).render(asked).shape == (32, 32, 3)


def test_a_scene_is_quick_to_draw():
    data = EmojiScenes(seed=9)
    scenes = [data.scene(i) for i in range(400)]
    for i, scene in enumerate(scenes):
        data.render(scene, i)
    began = time.process_time()
    for i, scene in enumerate(scenes):
        data.render(scene, i)
    assert (time.process_time() - began) / 400 < 0.003  # about 0.0003 on a free core


def test_whole_captions_state_everything():
    data = EmojiScenes(seed=8, whole=1.0)
    for index in range(20):
        whole = data.scene(index).canonical()
        assert all(parse_caption(c).canonical() == whole for c in data.sample(index).captions)
    said = [EmojiScenes(seed=8, whole=share).sample(3).captions for share in (0.0, 0.0, 1.0)]
    assert said[0] == said[1] != said[2]


def test_plain_captions_have_one_phrasing():
    data = EmojiScenes(seed=8, count=1, whole=1.0, plain=1.0)
    for index in range(20):
        (thing,), background = (scene := data.scene(index)).objects, scene.background
        english, korean = data.sample(index).captions
        assert f"{thing.size} {thing.name} " in english
        assert english.endswith(f", {background} background") and " 배경, " in korean
    two = EmojiScenes(seed=8, count=2, whole=1.0, plain=1.0)
    for index in range(20):
        scene, (english, _) = two.scene(index), two.sample(index).captions
        first, second = scene.objects
        assert english.index(first.name) < english.rindex(second.name)
        assert f" {scene.relation} " in english and english.endswith(
            f", {scene.background} background"
        )
    said = [EmojiScenes(seed=8, plain=share).sample(3).captions for share in (0.0, 0.0, 1.0)]
    assert said[0] == said[1] != said[2]


def test_portraits_show_every_object_in_turn_and_say_its_name():
    data = EmojiScenes(seed=6)
    for index in (0, 7, len(OBJECTS) + 7):
        portrait = data.portrait(index)
        (only,) = Scene.from_json(portrait.record).objects
        assert (only.name, only.size, only.place) == (
            OBJECTS[index % len(OBJECTS)],
            "large",
            "middle",
        )
        assert [parse_caption(text).names for text in portrait.captions] == [(only.name,)] * 2
    assert not np.array_equal(portrait.image, data.portrait(7).image)


def test_lessons_go_from_portraits_to_everything():
    shown = {
        name: [EmojiScenes(seed=3, **stage).sample(i) for i in range(300)]
        for name, stage in CURRICULUM.items()
    }
    portraits = {n: np.mean(["portrait" in s.key for s in part]) for n, part in shown.items()}
    pairs = {n: np.mean([len(s.record["objects"]) == 2 for s in p]) for n, p in shown.items()}
    whole = {
        n: np.mean([parse_caption(s.captions[0]) == Scene.from_json(s.record) for s in part])
        for n, part in shown.items()
    }
    assert portraits["emoji-portraits"] == 1 and 0.25 < portraits["emoji-singles"] < 0.42
    assert portraits["emoji"] == 0 and pairs["emoji-singles"] == 0
    assert 0.25 < pairs["emoji"] < 0.42
    assert whole["emoji-portraits"] == whole["emoji-singles"] == 1 and 0.5 < whole["emoji"] < 0.85


def test_bad_settings_and_a_missing_font_are_named(tmp_path):
    with pytest.raises(ValueError, match="split 'test'"):
        EmojiScenes(split="test")
    with pytest.raises(ValueError, match="portraits is 2"):
        EmojiScenes(portraits=2)
    with pytest.raises(MissingFont, match="no emoji font at"):
        find_font(str(tmp_path / "none.ttf"))
    bad = tmp_path / "bad.ttf"
    bad.write_bytes(b"not a font")
    with pytest.raises(MissingFont, match="not a usable"):
        EmojiScenes(font=str(bad)).sample(0)


def test_the_message_says_how_to_get_the_font(monkeypatch):
    monkeypatch.setattr("everyway.data.emoji.FONT_FOLDERS", ())
    with pytest.raises(FileNotFoundError, match="apt-get install fonts-noto-color-emoji"):
        find_font()


def test_boxes_hold_the_objects():
    data = EmojiScenes(seed=12)
    for index in range(200):
        image, boxes = data.draw(data.scene(index), index)
        outside = np.ones((64, 64), bool)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            outside[top:bottom, left:right] = False
        assert len(np.unique(image[outside], axis=0)) == 1
