"""A command starts with what its request reads, and leaves the machine to others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from everyway import library
from everyway.codecs.text_tokens import word_tokens
from everyway.data.lattice import LEXICON, Lattice
from everyway.generate import load
from everyway.request import GenerateRequest, RequestError
from everyway.systems import unidiffuser

SLOW = ("diffusers", "transformers", "accelerate", "peft", "scipy", "sympy", "torch._dynamo")
"""Libraries that take longer to import than the model takes to draw."""
PROGRAM = f"""
import sys
from everyway.apps.cli import main

code = main(sys.argv[1:])
import torch

print(code, torch.get_num_threads(), [name for name in {SLOW} if name in sys.modules])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as the shipped default is, untrained."""
    texts = (c for i in range(200) for c in Lattice().sample(i).captions)
    spec = {"tokenizer": word_tokens(texts), "length": 12, "dim": 64, "lexicon": LEXICON.to_json()}
    codecs = {
        "image": {"kind": "CellPCA", "cell": 32, "channels": 192},
        "image_embed": {"kind": "ThumbnailPCA", "side": 24, "channels": 64},
        "text": {"kind": "TokenTable", **spec},
    }
    made = tmp_path_factory.mktemp("start") / "model"
    library.save(made, unidiffuser.build(unidiffuser.sized("mini", codecs)), {"image_size": 96})
    return made


def test_only_what_a_small_model_needs_is_imported_and_it_runs_on_one_thread(folder, tmp_path):
    words = ["generate", "image", "--model", str(folder), "--text", "a fox", "--steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words, "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1:] == ["0 1 []"], done.stderr


def test_the_language_is_that_asked_for_or_the_prompts(folder):
    model = load(folder)

    def null(**settings):
        return model.settled(GenerateRequest(**settings)).null

    assert null(kind="text", language="ko") == "ko"
    assert null(kind="text-to-image", text="여우", language="en") == "ko"  # what is read is Korean
    assert null(kind="text") == ""
    with pytest.raises(RequestError, match="language 'de' is unknown"):
        null(kind="text", language="de")


def test_words_that_were_not_understood_are_told_beside_the_result(folder):
    (made,) = load(folder).generate(
        kind="text-to-image", text="a fox wearing a pizzza, a dog and a cow", steps=1
    )
    assert made.metadata["notes"] == [
        "taken as: a large dog left of a large fox, white background",
        "one or two objects are drawn; left out: cow",
        "not understood: wearing, pizzza (did you mean pizza?)",
    ]
