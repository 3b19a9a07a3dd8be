"""Requests in Python: what is refused in one line, and where each result stands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everyway import library
from everyway.data.folder import Folder
from everyway.data.sample import to_tensor
from everyway.generate import BATCH, Model, Preview, Result
from everyway.job import Job, jobs
from everyway.media import picture_tensor
from everyway.record import write_png
from everyway.request import GenerateRequest, RequestError
from everyway.system import System

TEXT = "a red ring top on blue"


@pytest.fixture
def picture(tmp_path) -> str:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def request(**settings) -> GenerateRequest:
    return GenerateRequest(**{"kind": "text-to-image", "text": TEXT, "steps": 1, **settings})


def same(a: Result, b: Result) -> bool:
    return np.array_equal(np.array(a.image), np.array(b.image)) and a.text == b.text


@pytest.mark.parametrize("given", ["a red circle", {"kind": "image"}, 5, ""])
def test_what_is_no_request_is_refused(nano, given):
    with pytest.raises(RequestError, match="is no GenerateRequest; give settings by name"):
        nano.generate(given)


def test_a_request_has_its_own_settings(nano):
    with pytest.raises(RequestError, match="a request has its own seed, n; give it alone"):
        nano.generate(request(), seed=7, n=3)


def test_results_are_counted_as_they_come(nano):
    """Batch by batch and round by round; seed and part say of which sample they are."""
    count, rounds = BATCH + 2, 2
    events = list(nano.run(request(kind="chain", n=count, rounds=rounds)))
    results = [e for e in events if isinstance(e, Result)]
    assert [r.index for r in results] == list(range(count * 2 * rounds))
    places = {(r.seed, r.part) for r in results}
    assert places == {(k, part) for k in range(count) for part in range(2 * rounds)}
    assert isinstance(events[0], Preview) and isinstance(events[-1], Result)


# -- many jobs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": [TEXT], "label": [1, 2]}, "there are 1 of text and 2 of label; give as many"),
        ({"text": [TEXT, " "]}, "the text is empty"),
        ({"text": [TEXT, None]}, "text-to-image needs a text"),
        ({"text": [TEXT, 5]}, "text=5"),
        ({"kind": "image-to-text", "image": 5}, "images.0=5"),
        ({"kind": "image-to-text", "image": ["none.png"]}, "no picture at 'none.png'"),
        ({"kind": "image-to-text", "image": b"none"}, "'[0-9a-f]{12}' is not a picture"),
        (
            {"kind": "image-to-text", "image": np.zeros((2, 2))},
            "ndarray like .* is no picture; give a path",
        ),
        ({"kind": "image-to-text", "image": "a", "images": ("b",)}, "image is one of images"),
        ({"kind": "jont"}, "did you mean 'joint'?"),
        ({"kind": "class-to-image", "label": 3}, "this model cannot do 'class-to-image'"),
        ({"text": TEXT, "given": {"style": "ink"}}, "input 'style' is unknown; .* image, text"),
    ],
)
def test_what_does_not_fit_is_told(nano, given, said):
    with pytest.raises(RequestError, match=said) as caught:
        nano.generate(**{"kind": "text-to-image", "steps": 1, **given})
    assert "\n" not in str(caught.value)


def test_a_picture_is_given_as_people_have_it(nano, picture):
    """A path, a Path, bytes, Pillow, an array or a tensor: one caption."""
    opened = Image.open(picture)
    array = np.asarray(opened)
    forms = [
        picture,
        Path(picture),
        Path(picture).read_bytes(),
        opened,
        array,
        to_tensor([array])[0],
    ]
    asked = {"kind": "image-to-text", "steps": 1}
    options = {nano.generate(image=form, seed=4, **asked)[0].text for form in forms}
    listed = nano.generate(image=forms, seed=3, **asked)
    assert options == {listed[1].text} and [r.seed for r in listed] == list(range(3, 9))
    assert opened.getpixel((0, 0)) == (255, 0, 0)  # it stays open


def test_lists_of_conditions(nano, picture):
    """n samples of each condition, whose seeds run on; each is what it is alone."""
    texts = [TEXT, "a green square right on black"]
    made = nano.generate(kind="text-to-image", text=texts, n=2, seed=5, steps=1)
    assert [(r.job, r.seed, r.request.text) for r in made] == [
        (0, 5, texts[0]), (0, 6, texts[0]), (1, 7, texts[1]), (1, 8, texts[1])
    ]  # fmt: skip
    assert same(made[2], nano.generate(request(text=texts[1], seed=7))[0])
    assert nano.generate(kind="text-to-image", text=[]) == []


def test_jobs_of_equal_settings_share_a_batch(nano, picture):
    """Two texts and a picture to describe, of three users; the files of a job are never opened."""
    files = {"upload": Path(picture).read_bytes()}
    described = GenerateRequest(kind="image-to-text", images=("upload",), seed=2, steps=1)
    work = [
        request(seed=1),
        Job(request=described, files=files),
        request(text="a green square right on black", seed=9, n=2),
    ]
    events = list(nano.run(work))
    batches = [e.jobs for e in events if isinstance(e, Preview)]
    assert batches == [(0, 2, 2), (1,)]
    results = [e for e in events if isinstance(e, Result)]
    assert [(r.index, r.job, r.seed) for r in results] == [
        (0, 0, 1), (1, 2, 9), (2, 2, 10), (3, 1, 2)
    ]  # fmt: skip
    assert same(results[2], nano.generate(request(text=work[2].text, seed=10))[0])
    assert (
        results[3].text
        == nano.generate(kind="image-to-text", image=picture, seed=2, steps=1)[0].text
    )
    with pytest.raises(RequestError, match="the job has no file 'upload'"):
        nano.generate(Job(request=described))


def test_a_job_that_cannot_be_done_stops_none_half_way(nano):
    events = nano.run([request(), request(kind="image-to-image", images=("none.png",))])
    with pytest.raises(RequestError, match="no picture at 'none.png'"):
        next(events)


def test_progress_counts_the_whole_run(nano):
    """Batches, rounds and steps, up to 1."""
    work = [request(kind="chain", rounds=2, n=BATCH + 4), request(steps=3)]
    done = [e.done for e in nano.run(work) if isinstance(e, Preview)]
    assert done == sorted(done) and len(set(done)) == len(done) == 4 + 4 + 3
    assert done[3] == pytest.approx(BATCH / (BATCH + 5)) and done[-1] == 1


def test_a_closed_run_computes_nothing_more(nano, monkeypatch):
    calls = []
    clean = System._clean
    monkeypatch.setattr(System, "_clean", lambda *options: calls.append(1) or clean(*options))
    events = nano.run(request(steps=20, n=2 * BATCH, guidance=1.0))
    steps = [next(events).step for _ in range(3)]
    events.close()
    assert steps == [1, 2, 3] and len(calls) == 3 and list(events) == []


def test_a_part_is_made_without_those_after_it(nano):
    wanted = nano.part(request(kind="chain", rounds=1000), 2)
    assert (wanted.part, wanted.index) == (2, 2)
    assert same(wanted, nano.generate(request(kind="chain", rounds=2))[2])


# -- results ----------------------------------------------------------------------------------


def test_a_saved_result_replays(nano, picture, tmp_path, run):
    """Of a picture in memory too, which is then given by its path."""
    (drawn,) = nano.generate(request(seed=3))
    drawn.save(tmp_path / "drawn.png")
    code, out, err = run("replay", "drawn.png", "--model", "nano")
    assert code == 0 and "bit for bit" in out, err
    (noised,) = nano.generate(kind="image-to-image", image=Image.open(picture), strength=0.5)
    noised.save(tmp_path / "noised.png")
    code, out, err = run("replay", "noised.png", "--model", "nano")
    assert code == 2 and "is gone; give --image PATH" in err
    code, out, err = run("replay", "noised.png", "--model", "nano", "--image", picture)
    assert code == 0 and "bit for bit" in out, err
    drawn.save(tmp_path / "other.png")
    code, out, err = run(
        "replay", "noised.png", "--model", "nano", "--image", tmp_path / "other.png"
    )
    assert code == 2 and "is not the picture that it was made from" in err


def test_a_text_is_saved_and_what_is_not_there_is_told(nano, tmp_path):
    (both,) = nano.generate(kind="joint", steps=1)
    both.save(tmp_path / "said.txt")
    assert (tmp_path / "said.txt").read_text("utf-8") == f"{both.text}\n"
    assert set(both.outputs) == {"image", "text"} and both.image is both.outputs["image"]
    for name in ("a.jpg", "a", "a.npy"):
        with pytest.raises(RequestError, match=r"cannot hold this result; give .*\.png"):
            both.save(tmp_path / name)
    assert not (tmp_path / "a.jpg").exists()


def test_what_differs_is_named(nano, tmp_path, run):
    """Threads, device and processor stand in the record; nothing is said that it cannot know."""
    (made,) = nano.generate(request(seed=3, model="nano"))
    assert set(made.metadata["machine"]) == {"device", "processor", "threads"}
    other = Image.new("RGB", made.image.size)
    machine = made.metadata["machine"] | {"threads": 7, "processor": "arm64 NEON"}
    for name, metadata in (("same", {}), ("moved", {"machine": machine, "torch": "1.0"})):
        row = dict(made.row) | {"facts": made.metadata | metadata}
        write_png(tmp_path / f"{name}.png", other, row)
    code, out, _ = run("replay", "moved.png")
    here = made.metadata["machine"]
    assert code == 1 and f"torch was 1.0, here it is {made.metadata['torch']}" in out
    assert f"threads was 7, here it is {here['threads']}" in out
    assert f"processor was arm64 NEON, here it is {here['processor']}" in out
    code, out, _ = run("replay", "same.png")
    assert code == 1 and "nothing that its record names differs" in out and "edited" not in out


@pytest.mark.parametrize("changed", [{"n": 10_000}, {"kind": "chain", "rounds": 5}])
def test_a_record_is_of_one_picture(nano, tmp_path, run, monkeypatch, changed):
    (made,) = nano.generate(request(model="nano"))
    part = 10 if "rounds" in changed else 0
    row = dict(made.row) | {"request": made.row["request"] | changed, "part": part}
    write_png(tmp_path / "many.png", made.image, row)
    monkeypatch.setattr(Model, "run", None)  # nothing is drawn
    code, _, err = run("replay", "many.png")
    assert code == 2 and "carries a request that is damaged" in err


@pytest.mark.parametrize("asked", [{"model": "hf:some/one"}, {"part": "hf:some/one"}])
def test_a_record_fetches_nothing_by_itself(nano, tmp_path, run, asked):
    (made,) = nano.generate(request(model=asked.get("model", "nano")))
    loaded = {"parts": {"text": asked["part"]}} if "part" in asked else {}
    row = dict(made.row) | {"facts": made.metadata | {"loaded": loaded}}
    write_png(tmp_path / "a.png", made.image, row)
    code, _, err = run("replay", "a.png")
    flag = "--part text=hf:some/one" if "part" in asked else "--model hf:some/one"
    assert code == 2 and f"it was made with hf:some/one, on the hub; to fetch it give {flag}" in err


@pytest.mark.parametrize(
    ("broken", "said"),
    [(float("nan"), "an output of 'image'"), (float("inf"), "an output of 'image'")],
)
def test_pixels_that_are_no_numbers_are_told(nano, monkeypatch, broken, said):
    decode = System.decode

    def overflown(self, states):
        return {k: v * broken if k == "image" else v for k, v in decode(self, states).items()}

    monkeypatch.setattr(System, "decode", overflown)
    with pytest.raises(library.ModelError, match=f"nano made {said} that is not finite"):
        nano.generate(request())
    assert nano.generate(kind="text", steps=1)[0].text


def test_previews_of_every_kind_of_output(nano):
    """Of a text, a picture, and both; the last is what is made."""
    for kind in ("text", "image", "joint"):
        events = list(nano.run(GenerateRequest(kind=kind, steps=3)))
        shown = [nano.frame(e.progress)[0] for e in events if isinstance(e, Preview)]
        assert len(shown) == 3 and all(frame.keys() == events[-1].outputs.keys() for frame in shown)


def test_frames_share_batches_of_the_ordinary_size(nano, monkeypatch):
    """However many they are; the pictures are the same, and progress rises to the end."""
    pictures = [r.image for r in nano.generate(kind="image", n=2, steps=2)]
    job = {"kind": "interpolate", "images": pictures, "frames": 5, "steps": 2}
    whole = nano.generate(**job)
    monkeypatch.setattr("everyway.generate.BATCH", 2)
    events = list(nano.run(jobs(job, nano.system)))
    parts = [e for e in events if isinstance(e, Result)]
    assert [r.part for r in parts] == [*range(5)] and parts[0].seed == parts[4].seed == 0
    assert [r.image.tobytes() for r in parts] == [r.image.tobytes() for r in whole]
    shown = [e for e in events if isinstance(e, Preview)]
    assert {len(e.jobs) for e in shown} == {1, 2} and shown[-1].done == 1
    assert [e.done for e in shown] == sorted(e.done for e in shown)
    assert parts[0].metadata["forwards"] > whole[0].metadata["forwards"]


# -- what a model sees ------------------------------------------------------------------------


def test_the_crop_is_told_and_is_that_of_training(nano, tmp_path, caplog):
    pixels = np.random.default_rng(0).integers(0, 256, (224, 301, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    (tmp_path / "wide.txt").write_text(TEXT)
    trained = Folder(tmp_path, size=nano.image_size).sample(0).image
    asked = picture_tensor([Image.fromarray(pixels)], nano.image_size)
    assert np.array_equal(to_tensor([trained]), asked)
    (made,) = nano.generate(kind="image-to-text", image=tmp_path / "wide.png", steps=1)
    (note,) = made.metadata["notes"]
    assert "wide.png is 301x224; its middle 224x224 is seen, at 64x64" in note
    assert note in caplog.text


def test_a_mask_beside_what_is_seen_is_refused(nano, tmp_path):
    Image.new("RGB", (60, 20)).save(tmp_path / "a.png")
    mask = Image.new("L", (60, 20))
    mask.paste(255, (0, 0, 10, 20))  # the middle begins at 20
    with pytest.raises(RequestError, match="frees nothing of the picture's middle 20x20"):
        nano.generate(kind="inpaint", image=tmp_path / "a.png", mask=mask, steps=1)
    mask.paste(255, (0, 0, 30, 20))
    assert nano.generate(kind="inpaint", image=tmp_path / "a.png", mask=mask, steps=1)


@pytest.mark.parametrize("sampler", ["dpm++3s", "dpm++2s"])
def test_too_small_a_strength_is_told_as_such(nano, picture, sampler):
    drawn = {"kind": "image-to-image", "image": picture, "sampler": sampler, "steps": 10}
    with pytest.raises(
        RequestError, match="strength 0.1 leaves 1 of 10 steps: .* needs [23] steps"
    ):
        nano.generate(**drawn, strength=0.1)
    assert nano.generate(**drawn, strength=0.3)


# -- noise of what is given -------------------------------------------------------------------


def test_noise_of_the_text_of_a_masked_picture(nano, picture):
    drawn = {"kind": "inpaint", "images": (picture,), "mask": picture, "seed": 1, "steps": 2}
    Image.new("RGB", (16, 16), "white").save(picture)
    made = [nano.generate(request(**drawn, given_noise=n))[0] for n in ({}, {"text": 0.5})]
    assert not same(*made)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "inpaint", "given_noise": {"image": 0.5}}, "image: inpaint is given text"),
        ({"kind": "inpaint", "text": None}, "text: inpaint is given nothing"),
        ({"kind": "image-to-image", "given_noise": {"x": 0.5}}, "x: image-to-image is given text"),
        ({"kind": "vary-image", "text": None}, "is for one task, vary-image is several"),
        ({"kind": "vary-image", "text": None, "given_noise": {"x": 0.1}}, "vary-image is several"),
        ({"kind": "chain", "images": ()}, "is for one task, chain is several"),
        ({"kind": "joint", "text": None, "images": ()}, "text: joint is given nothing"),
    ],
)
def test_noise_that_nothing_takes_is_refused(nano, picture, settings, said):
    base = {"images": (picture,), "given_noise": {"text": 0.5}, **settings}
    if base["kind"] == "inpaint":
        base["mask"] = picture
    with pytest.raises(RequestError, match=f"--given-noise.*{said}"):
        nano.generate(request(**base))


def test_a_mask_of_another_shape_is_refused(nano, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    Image.new("L", (20, 20)).save(tmp_path / "m.png")
    given = {"images": (str(tmp_path / "a.png"),), "mask": str(tmp_path / "m.png")}
    with pytest.raises(RequestError, match="the mask is 20x20, the picture 40x20"):
        nano.generate(kind="inpaint", steps=1, **given)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"null": "empty"}, "knows no null"),
        ({"tokens_per_step": 4}, "need the sampler purity"),
    ],
)
def test_what_the_model_cannot_use_is_refused(nano, settings, said):
    with pytest.raises(RequestError, match=said):
        nano.generate(request(**settings))
