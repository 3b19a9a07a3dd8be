"""The command line in its shell: help, completion, encodings, and several commands at once."""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image, PngImagePlugin

from everyway import __version__
from everyway.apps import cli, files
from everyway.request import GenerateRequest

FAST = ["--model", "nano", "--steps", "1"]


def rows(out) -> list[dict]:
    return [json.loads(row) for row in (out / files.ROWS).read_text("utf-8").splitlines()]


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    return found.choices


# -- help and completion ----------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_flag_has_a_help_with_its_default(command):
    for action in commands()[command]._actions:
        assert action.help, f"{command} {action.option_strings or action.dest}"
        if action.option_strings and not action.required and action.dest != "help":
            assert "default" in action.help, f"{command} {action.option_strings}"


def test_flags_are_the_fields_of_a_request():
    flags = {action.dest: action for action in commands()["generate"]._actions}
    for name, field in GenerateRequest.model_fields.items():
        assert field.description, name
    for name in ("text", "seed", "steps", "sampler", "purity_weight", "null"):
        words = GenerateRequest.model_fields[name].description.rstrip(".")[1:]
        assert words in flags[name].help
        assert flags[name].default == GenerateRequest.model_fields[name].default


def ends(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        cli.main([*words])
    return done.value.code


def test_version_and_help_end_well(capsys):
    assert ends("--version") == 0 and capsys.readouterr().out == f"everyway {__version__}\n"
    assert ends("train", "--help") == 0
    out = capsys.readouterr().out
    assert "presets: nano, mini, small, mini-vq" in out
    assert all(name in out for name in ("sample_every", "weight_decay", "20000"))


def imported(*words: str) -> set[str]:
    """Heavy modules that a command needed."""
    code = (
        "import sys\nfrom everyway.apps.cli import main\n"
        "try: code = main(sys.argv[1:])\nexcept SystemExit as done: code = done.code\n"
        "heavy = {'torch', 'pydantic', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "print(code, *heavy, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    code, *heavy = done.stderr.split()
    assert code == "0", done.stderr
    return set(heavy)


def test_help_imports_what_it_shows_alone():
    assert imported("--help") == imported("--version") == set()
    for command in cli.COMMANDS:
        assert "torch" not in imported(command, "--help")


def completed(line: str, tmp_path) -> set[str]:
    """What a shell is told, as argcomplete asks for it."""
    answer = tmp_path / "answer"
    env = os.environ | {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-m", "everyway.apps.cli"], env=env, check=True)
    return {word.strip() for word in answer.read_text().split("\n")}


def test_a_shell_completes_commands_flags_and_names(tmp_path):
    assert completed("everyway gen", tmp_path) == {"generate"}
    assert {"--seed", "--steps"} <= completed("everyway generate image --s", tmp_path)
    assert completed("everyway generate image --sampler dpm++2", tmp_path) == {"dpm++2m", "dpm++2s"}
    assert completed("everyway train na", tmp_path) >= {"nano"}


# -- encodings --------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch, tmp_path):
    """Run a command whose output has an encoding -> (exit code, standard output)."""
    monkeypatch.chdir(tmp_path)

    def call(encoding: str, *words: str) -> tuple[int, str]:
        held = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, encoding))
        code = cli.main([*words])
        sys.stdout.flush()
        return code, held.getvalue().decode(encoding)

    return call


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp949", "utf-8"])
def test_a_caption_that_a_terminal_cannot_show_ends_nothing(terminal, monkeypatch, encoding):
    said, row_of = "파란 배경에 🦊", files.row_of
    monkeypatch.setattr(files, "row_of", lambda *given: row_of(*given) | {"text": said})
    code, out = terminal(encoding, "generate", "text", "-n", "2", *FAST)
    assert code == 0 and out.count("seed") == 2
    code, out = terminal(encoding, "generate", "text", "-n", "2", "--json", *FAST)
    assert code == 0 and [row["text"] for row in json.loads(out)["results"]] == [said] * 2


def test_a_name_that_is_not_utf8_loses_nothing(run, tmp_path):
    name = os.fsdecode(b"pic\xffture.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "plain.png")
    os.rename(tmp_path / "plain.png", tmp_path / name)
    assert run("generate", "text", "--image", name, *FAST)[0] == 0
    assert run("vary", "image", name, *FAST)[0] == 0
    assert [row["request"]["images"] for row in rows(tmp_path / "out")] == [[name]] * 2
    assert run("replay", "out/00000.png")[0] == 0
    (tmp_path / "p.jsonl").write_text(json.dumps({"images": [name]}))
    again = ["generate", "text", "--prompts", "p.jsonl", *FAST]
    code, out, _ = run(*again)
    assert code == 0 and "skipped" in out


def test_a_training_reads_a_folder_whose_name_is_not_utf8(run, tmp_path):
    name = os.fsdecode(b"da\xffta")
    assert run("data", "shapes", "-n", 8, "--out", "data")[0] == 0
    os.rename(tmp_path / "data", tmp_path / name)
    small = [word for pair in ("steps=1", "cache=8", "batch=4") for word in ("--set", pair)]
    assert run("train", "nano", "--data", name, "--out", "run", *small, "--quiet")[0] == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["source"]["data"] == name
    rows = ["evaluate", "run", "-n", 2, "--steps", 1, "--rows", "t2i,i2t"]
    code, out, _ = run(*rows)  # on what it learned
    assert code == 0 and out.count("picture") == 2
    code, _, err = run("train", "nano", "--data", name, "--out", name, *small)
    assert code == 2 and "is not UTF-8" in err and err.count("\n") == 1


@pytest.mark.parametrize("number", ["1_0", "१", "٣", "１０", "0x2", "1e", "--1", " "])
@pytest.mark.parametrize(
    "words",
    [
        ["generate", "image", "-n=N"],
        ["generate", "image", "--seed=N"],
        ["generate", "image", "--guidance=N"],
        ["generate", "image", "--given-noise=text=N"],
        ["interpolate", "a", "b", "--frames=N"],
        ["data", "shapes", "-n=N"],
        ["data", "shapes", "--seed=N"],
        ["evaluate", "nano", "-n=N"],
        ["train", "nano", "--set=steps=N"],
        ["train", "nano", "--set=lr=N"],
        ["train", "nano", "--budget=Nm"],
        ["generate", "image", "--prompts", "p", "--shard=N/N"],
    ],
    ids=lambda words: " ".join(words),
)
def test_numbers_are_plain_digits(run, tmp_path, words, number):
    code, out, err = run(*(word.replace("N", number) for word in words))
    assert code == 2 and not out and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_numbers_in_a_file_of_requests_are_plain_digits(run, tmp_path):
    for value in ("1_0", "१", True):
        (tmp_path / "p.jsonl").write_text(json.dumps({"n": value}))
        code, _, err = run("generate", "image", "--prompts", "p.jsonl", *FAST)
        assert code == 2 and "plain digits" in err


# -- several commands, and files ----------------------------------------------------------------


def test_two_commands_number_their_results_as_one(nano, tmp_path):
    """Texts leave no picture behind whose name would be taken."""
    request = nano.settled(GenerateRequest(kind="text", steps=1, n=2, model="nano"))
    first, second = nano.generate(request)
    ours, theirs = files.Folder(tmp_path), files.Folder(tmp_path)
    for folder in (ours, theirs, ours, theirs, theirs, ours):
        folder.save(first, request)
    assert [row["index"] for row in rows(tmp_path)] == [*range(6)]


def test_pictures_are_numbered_without_gaps(run, tmp_path):
    assert run("chain", "--text", "a red ring", "--rounds", 2, *FAST)[0] == 0
    assert run("generate", "text", "-n", 2, *FAST)[0] == 0
    assert run("generate", "both", *FAST)[0] == 0
    assert [row.get("image") for row in rows(tmp_path / "out")] == [
        "00000.png",
        None,
        "00001.png",
        None,
        None,
        None,
        "00002.png",
    ]


def test_a_number_whose_picture_was_deleted_is_not_given_again(run, tmp_path):
    assert run("generate", "image", "-n", 2, *FAST)[0] == 0
    (tmp_path / "out/00001.png").unlink()
    assert run("generate", "image", *FAST)[0] == 0
    assert rows(tmp_path / "out")[-1]["image"] == "00002.png"


def test_shards_of_a_file_make_it_once(run, tmp_path):
    (tmp_path / "p.txt").write_text("a red ring\na blue ring\n\na green ring\n")
    words = ["generate", "image", "--prompts", "p.txt", *FAST]
    assert run(*words, "--shard", "1/2")[0] == 0
    assert [row["request"]["text"] for row in rows(tmp_path / "out")] == [
        "a red ring",
        "a green ring",
    ]
    assert run(*words, "--shard", "2/2")[0] == 0
    assert len(rows(tmp_path / "out")) == 3
    assert run(*words)[1].count("skipped") == 3
    for wrong in ("0/2", "3/2", "1", "a/b"):
        assert run(*words, "--shard", wrong)[0] == 2
    code, _, err = run("generate", "image", "--shard", "1/2", *FAST)
    assert code == 2 and "--prompts" in err


@pytest.mark.parametrize("cut", [b'{"index": 1, "se', b"\0\0\0", b'{"index": 1, "text": "\xea\xb0'])
def test_a_row_cut_by_a_power_loss_is_made_anew(run, tmp_path, cut):
    (tmp_path / "p.txt").write_text("a red ring\na blue ring\n")
    words = ["generate", "image", "--prompts", "p.txt", *FAST]
    assert run(*words)[0] == 0
    path = tmp_path / "out" / files.ROWS
    first = path.read_bytes().split(b"\n")[0]
    path.write_bytes(first + b"\n" + cut)
    code, out, err = run(*words)
    assert code == 0 and out.count("skipped") == 1, err
    assert [row["request"]["text"] for row in rows(tmp_path / "out")] == [
        "a red ring",
        "a blue ring",
    ]


def test_a_row_that_only_lacks_its_end_is_kept(tmp_path):
    path = tmp_path / files.ROWS
    path.write_bytes(b'{"a": 1}\n{"b": 2}')
    files.append_line(path, '{"c": 3}')
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n{"c": 3}\n'


def test_a_row_that_only_lacks_its_end_is_counted(run, tmp_path):
    assert run("generate", "text", *FAST)[0] == 0
    path = tmp_path / "out" / files.ROWS
    path.write_bytes(path.read_bytes().rstrip())
    assert run("generate", "text", *FAST)[0] == 0
    assert [row["index"] for row in rows(tmp_path / "out")] == [0, 1]


def test_a_record_of_many_samples_is_not_drawn(run, tmp_path, monkeypatch):
    assert run("generate", "image", *FAST)[0] == 0
    with Image.open(tmp_path / "out/00000.png") as image:
        row = json.loads(image.text["everyway"])
        row["request"]["n"] = 10_000
        info = PngImagePlugin.PngInfo()
        info.add_text("everyway", json.dumps(row))
        image.save(tmp_path / "greedy.png", pnginfo=info)
    monkeypatch.setattr("everyway.generate.load", None)
    code, _, err = run("replay", "greedy.png")
    assert code == 2 and "this picture alone" in err


# -- requests from a file ---------------------------------------------------------------------


def test_a_line_is_a_prompt_or_an_object(run, tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    (tmp_path / "p").write_text('a red ring\n{"text": "a blue ring", "seed": 3}\n')
    assert run("generate", "image", "--prompts", "p", *FAST)[0] == 0
    made = [(row["request"]["text"], row["seed"]) for row in rows(tmp_path / "out")]
    assert made == [("a red ring", 0), ("a blue ring", 3)]
    (tmp_path / "q").write_text("a.png\n")
    assert run("generate", "text", "--prompts", "q", *FAST)[0] == 0
    assert rows(tmp_path / "out")[-1]["request"]["images"] == ["a.png"]
    code, _, err = run("generate", "both", "--prompts", "q", *FAST)
    assert code == 2 and "line 1" in err


def test_nothing_to_do_is_said_before_a_model_loads(run, tmp_path):
    (tmp_path / "p").write_text("a red ring\na blue ring\n")
    words = ["generate", "image", "--prompts", "p", "--model", "nano"]  # steps are the model's own
    assert run(*words)[0] == 0
    assert "torch" not in imported(*words)
    assert len(rows(tmp_path / "out")) == 2
    steps = rows(tmp_path / "out")[0]["request"]["steps"]
    assert run(*words, "--steps", steps)[1].count("skipped") == 2  # asked otherwise, the same work


def test_the_last_words_are_path_seed_and_seconds(run, tmp_path):
    out = run("generate", "image", "-n", 2, "--seed", 5, *FAST)[1].splitlines()
    assert len(out) == 2
    path, seed, seconds = out[-1].split("  ")
    assert (tmp_path / path).is_file() and seed == "seed 6" and seconds.endswith(" s")
