"""The command line on the shipped nano: what it makes, and one clear line for what it cannot."""

from __future__ import annotations

import errno
import json
import re
import shutil

import pytest
from PIL import Image

import everyway
from everyway.apps import cli, files
from everyway.generate import load
from everyway.library import SHIPPED
from everyway.record import write_png

FAST = ["--model", "nano", "--steps", "3"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A picture that everyway made, with its record inside."""
    out = tmp_path_factory.mktemp("made")
    text = "a red circle left on white"
    assert cli.main(["generate", "image", "--text", text, "--out", str(out), *FAST]) == 0
    return out / "00000.png"


def test_generate_writes_pictures_records_and_json(run, tmp_path):
    text = "a red circle left on white"
    code, out, err = run("generate", "image", "--text", text, "-n", 3, "--json", *FAST)
    answer = json.loads(out)
    assert code == 0 and len(answer["results"]) == 3
    assert [r["seed"] for r in answer["results"]] == [0, 1, 2]
    rows = [json.loads(r) for r in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [r["image"] for r in rows] == ["00000.png", "00001.png", "00002.png"]
    with Image.open(tmp_path / "out/00001.png") as image:
        assert image.text["parameters"].startswith(text) and "Seed: 1" in image.text["parameters"]
        assert json.loads(image.text["everyway"])["request"]["seed"] == 1


def test_picture_k_is_the_picture_of_seed_s_plus_k(run, tmp_path):
    words = ["generate", "image", "--text", "a red circle left on white", *FAST]
    run(*words, "-n", 4, "--out", "four")
    run(*words, "-n", 1, "--seed", 2, "--out", "one")
    third, alone = (Image.open(tmp_path / p) for p in ("four/00002.png", "one/00000.png"))
    assert third.tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "both"],
        ["generate", "both", "--clock-paths", "text=first", "--clock-paths", "image=0:0,.5:1,1:1"],
        ["generate", "image"],
        ["generate", "text"],
        ["generate", "text", "--image", "PICTURE"],
        ["generate", "image", "--text", "a red ring top on blue", "--given-noise", "text=0.3"],
        ["generate", "image", "--guidance-interval", "0.2,0.8", "--thresholds", "image=0.9"],
        ["vary", "image", "PICTURE"],
        ["vary", "text", "a red ring top on blue"],
        ["interpolate", "PICTURE", "PICTURE", "--frames", "2"],
        ["chain", "--text", "a red ring top on blue", "--rounds", "1"],
    ],
    ids=" ".join,
)
def test_every_use_and_its_replay(run, picture, tmp_path, words):
    words = [str(picture) if w == "PICTURE" else w for w in words]
    code, out, err = run(*words, *FAST, "--json")
    assert code == 0, err
    for row in json.loads(out)["results"]:
        assert row.get("image") or "text" in row
        if "image" in row:
            code, out, err = run("replay", tmp_path / "out" / row["image"])
            assert code == 0 and "bit for bit" in out


def test_replay_says_why_not(run, picture, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    code, _, err = run("replay", "plain.png")
    assert code == 2 and "carries no request" in err
    changed = Image.open(picture)
    changed.load()
    info = json.loads(changed.text["everyway"])
    row = info | {"facts": info["facts"] | {"model_hash": "0123"}}
    write_png(tmp_path / "other.png", changed.convert("RGB"), row)
    code, _, err = run("replay", "other.png")
    assert code == 2 and "was made by model 0123" in err
    write_png(tmp_path / "moved.png", Image.new("RGB", changed.size), info)
    code, out, _ = run("replay", "moved.png")
    assert code == 1 and "not the same" in out


def test_prompts_from_a_file_and_what_exists_is_skipped(run, tmp_path):
    lines = ['{"text": "a red ring top on blue"}', "", '{"kind": "text", "seed": 5}']
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    words = ["generate", "image", "--prompts", "p.jsonl", *FAST]
    code, out, _ = run(*words)
    assert code == 0 and "skipped" not in out
    code, out, _ = run(*words)
    assert code == 0 and out.count("skipped") == 2
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 2
    (tmp_path / "p.jsonl").write_text('{"text": ""}')
    code, _, err = run(*words)
    assert code == 2 and "line 1" in err


MISTAKES = {
    "empty prompt": (["generate", "image", "--text", "  "], "empty"),
    "very long prompt": (["generate", "image", "--text", "fox " * 2500], "at most 1000"),
    "unknown word": (["generate", "image", "--text", "a zebra on red", *FAST], "never read"),
    "unknown model": (["generate", "image", "--model", "nanoo"], "shipped: "),
    "unknown sampler": (["generate", "image", "--sampler", "dpm++4m"], "did you mean"),
    "unknown output": (["generate", "video"], "choose one of"),
    "unknown flag": (["generate", "image", "--wings", "2"], "--wings"),
    "unknown command": (["fly"], "invalid choice"),
    "no command": ([], "required"),
    "steps": (["generate", "image", "--steps", "0"], "steps=0"),
    "count": (["generate", "image", "-n", "0"], "n=0"),
    "not a number": (["generate", "image", "-n", "many"], "many"),
    "guidance": (["generate", "image", "--guidance", "nan"], "guidance"),
    "interval": (["generate", "image", "--guidance-interval", "0.2"], "give 2 values, a comma"),
    "thresholds": (["generate", "image", "--thresholds", "0.9"], "is not NAME=VALUE"),
    "threshold of none": (
        ["generate", "image", "--thresholds", "a=.9", *FAST],
        "thresholds are of",
    ),
    "seed": (["generate", "image", "--seed", "-1"], "seed=-1"),
    "missing picture": (["generate", "text", "--image", "no.png"], "there is no picture"),
    "unreadable picture": (["generate", "text", "--image", "bad.png"], "not a picture"),
    "wrong input": (["generate", "image", "--image", "bad.png"], "takes no --image"),
    "noise": (["generate", "image", "--text", "a", "--given-noise", "text=x"], "CLOCK=LEVEL"),
    "path": (["generate", "both", "--clock-paths", "text"], "CLOCK=PATH"),
    "path by no name": (["generate", "both", "--clock-paths", "text=slow"], "'first' or 'last'"),
    "path down": (["generate", "both", "--clock-paths", "text=0:0,1:.5", *FAST], "must rise"),
    "path of what is given": (
        [
            "generate",
            "image",
            "--text",
            "a red ring top on blue",
            "--clock-paths",
            "text=first",
            *FAST,
        ],
        "does not generate text",
    ),
    "noise of nothing": (
        [
            "generate",
            "image",
            "--text",
            "a red ring top on blue",
            "--given-noise",
            "image=0.5",
            *FAST,
        ],
        "is given",
    ),
    "unknown preset": (["train", "giga"], "neither a preset"),
    "unknown setting": (["train", "nano", "--set", "wings=2"], "no setting"),
    "setting of a wrong kind": (["train", "nano", "--set", "batch=many"], "whole number"),
    "budget": (["train", "nano", "--budget", "soon"], "90s, 30m or 2h"),
    "unknown suite": (["evaluate", "nano", "--suite", "moon"], "unknown"),
    "unknown row": (["evaluate", "nano", "--suite", "shapes", "--rows", "moon"], "no row"),
    "unknown data": (["data", "stars", "--out", "x"], "unknown"),
    "folder": (["data", "check", "nowhere"], "nowhere"),
    "no folder": (["data", "check"], "needs a folder"),
    "unknown replay": (["replay", "no.png"], "not a picture"),
    "unknown name": (["models", "giga"], "shipped: "),
}


@pytest.mark.parametrize("language", ["en", "ko"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_code_2(run, tmp_path, monkeypatch, name, language):
    monkeypatch.setenv("LANGUAGE", language)
    (tmp_path / "bad.png").write_bytes(b"this is not a picture")
    words, said = MISTAKES[name]
    code, out, err = run(*words)
    assert code == 2 and not out
    assert said in err if language == "en" else re.search("[가-힣]", err)
    assert err.startswith("everyway: ") and err.count("\n") == 1 and "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.png"]  # nothing half-written


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "config"])
def test_damaged_weights_are_one_line_and_code_1(run, tmp_path, harm):
    folder = tmp_path / "model"
    shutil.copytree(SHIPPED / "nano", folder)
    (weights,) = folder.glob("network-*.safetensors")
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif harm == "changed":
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(data)
    elif harm == "gone":
        weights.unlink()
    else:
        (folder / "config.json").write_text("{")
    code, out, err = run("generate", "image", "--model", folder)
    assert code == 1 and "copy" in err and err.count("\n") == 1 and not out
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    def full(self, path, *args, **kwargs):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, _, err = run("generate", "image", *FAST)
    assert code == 1 and "No space left on device" in err and err.count("\n") == 1
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".lock"]


def test_ctrl_c_is_130_and_keeps_what_was_finished(run, tmp_path, monkeypatch):
    real = everyway.generate.Model.run

    def interrupted(self, request):
        for event in real(self, request):
            yield event
            if isinstance(event, everyway.generate.Result):
                raise KeyboardInterrupt

    monkeypatch.setattr(everyway.generate.Model, "run", interrupted)
    code, _, err = run("generate", "image", "-n", 3, *FAST)
    assert code == 130 and "stopped" in err
    assert (tmp_path / "out/00000.png").exists()


def test_data_is_written_and_checked(run, tmp_path):
    assert run("data", "shapes", "--out", "s", "-n", 3)[0] == 0
    code, out, _ = run("data", "check", "s", "--out", "report")
    assert code == 0 and out.startswith("pictures: 3,") and (tmp_path / "report").exists()
    next((tmp_path / "s").glob("*.png")).write_bytes(b"")
    code, out, _ = run("data", "check", "s")
    assert code == 1 and "cannot be read" in out
    assert run("data", "emoji", "--out", "e", "-n", 2)[0] == 0
    assert json.loads(run("data", "check", "e", "--json")[1])["good"]


def test_models_and_evaluate(run):
    assert "nano" in run("models")[1]
    assert json.loads(run("models", "nano", "--json")[1])["name"] == "nano"
    assert "objects: fox 여우, " in run("models", "mini")[1]
    words = ["evaluate", "nano", "--suite", "shapes", "-n", 2, "--steps", 3]
    report = json.loads(run(*words, "--rows", "t2i,i2t", "--json")[1])
    assert set(report["rows"]) == {"t2i", "i2t"} and 0 <= report["t2i.all_correct"] <= 1
    assert report["protocol"]["n"] == 2
    assert "all_correct" in run(*words, "--rows", "classifier")[1]


def test_python_is_the_same_as_the_command(picture):
    made = load("nano").generate(
        kind="text-to-image", text="a red circle left on white", steps=3, seed=0
    )[0]
    assert files.same_pixels(picture, made.image)
