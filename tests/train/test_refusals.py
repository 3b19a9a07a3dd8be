"""What a training refuses, in one line, and what it leaves as it was: nothing is half-written."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import everyway
from everyway import objective
from everyway.checkpoints import card, store
from everyway.train import folder, loop, sources, stack, train
from everyway.train.config import ConfigError, TrainConfig, resolve
from everyway.train.ema import EMA
from everyway.train.learner import Learner
from everyway.train.sources import Data
from everyway.train.state import StateError, TrainState
from everyway.train.systems import COUNTS, HISTORY, SystemLearner, steps_of

SMALL = dict(cache="64", batch="8", warmup="2", log_every="50")
SCORES = {"suite": "shapes", "protocol": {"n": 1}, "rows": {}}


def small(out: Path, **overrides: str) -> TrainConfig:
    return resolve("nano", {**SMALL, "steps": "3", **overrides}, out=str(out))


def refused(call, *args, **kwargs) -> str:
    """The one line of a ConfigError."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a run of three steps, before its first `log_every`."""
    out = tmp_path_factory.mktemp("finished")
    train(small(out))
    return out


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def metadata_of(out: Path) -> dict:
    return store.document(out / "model")["facts"]


def exported(out: Path) -> int:
    return steps_of(out / "model")


def contents(out: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


# -- settings ---------------------------------------------------------------------------------

WRONG = {
    "lr": ("inf", "nan", "-1"),
    "clip": ("nan", "-1", "inf"),
    "ema": ("5", "nan", "-0.1"),
    "budget_s": ("nan", "-5", "inf"),
    "save_every_s": ("nan", "-1"),
    "weight_decay": ("-1", "nan"),
    "warmup": ("-5",),
    "beta1": ("1", "-0.1", "nan"),
    "beta2": ("1.5",),
    "cooldown": ("1", "-0.5", "nan"),
    "drop": ("nan",),
    "seed": ("-1", "4294967296"),
    "log_every": ("0",),
    "sample_every": ("-1",),
    "flip": ("2",),
    "to_image": ("-0.1", "nan", "0.9"),
    "out": ("",),
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in WRONG.items() for v in vs])
def test_a_setting_out_of_its_range_is_named(name, value):
    assert refused(resolve, "nano", {name: value}).startswith(f"{name} is ")


@pytest.mark.parametrize(
    ("preset", "overrides", "said"),
    [
        ("nano", {"system": "foo"}, "choose uvit, unidiffuser, vq_diffusion"),
        ("nano", {"system": "vq_diffusion"}, "preset is 'nano'; it should be mini-vq, coco"),
        ("nano", {"system": "uvit", "shift": "2"}, "there is no setting 'shift'"),
        ("nano", {"times": "importance"}, "times is 'importance'; choose 'tasks', 'uniform'"),
        ("nano", {"patch": "3"}, "patch=3 has no effect on preset 'nano'"),
        ("nano", {"depth": "-1"}, "depth is '-1'; it should be greater than or equal to 0"),
        ("nano", {"depth": "2"}, "depth=2 has no effect"),
        ("nano", {"skip": "zz"}, "there is no setting 'skip'"),
        ("mini", {"tokens": "nope"}, "there is no setting 'tokens'"),
        ("nano", {"to_image": "0.7", "image_alone": "0.4"}, "shares, from 0 to 1 together"),
        ("nano", {"times": "uniform", "to_text": "0.2"}, "to_text='0.2' has no effect"),
        ("codec-vq", {"init": "mini"}, "there is no setting 'init'"),
        ("mini", {"init": "mini", "codecs": "nope"}, "a training that starts from init"),
    ],
)
def test_a_setting_that_would_not_be_read_is_refused(preset, overrides, said):
    assert said in refused(resolve, preset, overrides)


def test_codecs_that_were_not_made_yet_say_how(tmp_path):
    recipe = Path(__file__).parents[2] / "recipes" / "uvit-mscoco-small.toml"
    config = resolve(str(recipe), {"codecs": "runs/none"})
    said = refused(config.model.system, Data("shapes", 0))
    assert "everyway convert autoencoder_kl.pth --out runs/none --part text_states=" in said


def test_what_a_preset_has_of_its_own_goes_with_init():
    assert resolve("mini", {"init": "mini", "patch": "1"}).model.codecs == "runs/codecs"
    given = {"system": "uvit", "times": "uniform", "skip": "add"}
    assert resolve("nano", given).model.skip == "add"


def test_a_setting_goes_by_its_path_or_its_last_word_and_tables_nest(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('system = "unidiffuser"\nlr = 1\n[model.times]\nshift = 3\n[run]\nout = "x"\n')
    config = resolve(str(path), {"optim.lr": "0.5", "to_text": "0.1"})
    assert (config.optim.lr, config.run.out) == (0.5, "x")
    assert (config.model.times.shift, config.model.times.to_text) == (3, 0.1)
    assert resolve("nano", {"times": "uniform"}).model.times.distribution == "uniform"


@pytest.mark.parametrize(
    "line",
    ["steps = 1.9", "steps = true", "lr = true", "steps = inf", "data = 3"],
)
def test_a_toml_value_of_another_kind_is_refused(line, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f"{line}\n")
    assert line.split()[0] in refused(resolve, str(path))


def test_whole_numbers_of_toml_may_be_written_as_floats(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("steps = 1e6\nlr = 1\n")
    config = resolve(str(path))
    assert (config.steps, config.optim.lr) == (1_000_000, 1.0)
    assert isinstance(config.optim.lr, float)


@pytest.mark.parametrize("name", ["gpu", "foo", "meta", "cuda:99"])
def test_a_device_that_cannot_be_used(name, tmp_path):
    assert f"device {name!r} cannot be used" in refused(train, small(tmp_path / "x", device=name))
    assert not (tmp_path / "x").exists()


# -- the run folder -----------------------------------------------------------------------------


def test_a_refused_training_claims_no_folder(tmp_path):
    assert "data 'typo' is unknown" in refused(train, small(tmp_path / "run", data="typo"))
    assert not (tmp_path / "run").exists()


def test_a_deleted_config_binds_as_the_state_does(copied):
    (copied / "config.json").unlink()
    assert "another lr" in refused(train, small(copied, lr="0.5"))
    assert not (copied / "config.json").exists()
    assert train(small(copied, steps="4"))["step"] == 4


def test_the_settings_of_a_training_that_never_began_bind_nothing(tmp_path):
    (tmp_path / "config.json").write_text(small(tmp_path, lr="0.5").to_json())
    folder.compare(small(tmp_path))
    (tmp_path / "log.jsonl").touch()
    assert "another lr" in refused(folder.compare, small(tmp_path))


def test_one_training_a_folder(copied):
    """Of two at once the second is refused, and leaves all as it was."""
    before = contents(copied)
    with folder.locked(copied):
        assert f"another training runs in {copied}" in refused(train, small(copied, steps="4"))
    assert contents(copied) == before


def test_a_killed_training_leaves_no_lock(copied):
    def hold(ready):
        with folder.locked(copied):
            ready.set()
            signal.pause()

    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(ready,))
    process.start()
    assert ready.wait(20)
    assert "another training runs" in refused(train, small(copied, steps="4"))
    process.kill()
    process.join()
    assert train(small(copied, steps="4"))["step"] == 4


def test_a_run_of_a_former_version_is_one_line(copied):
    from safetensors.torch import save_file

    save_file({"network.x": torch.zeros(1)}, copied / "state.safetensors", {"facts": "{}"})
    with pytest.raises(
        StateError,
        match="state.safetensors is of another version; delete it to start this run again",
    ):
        train(small(copied))


@pytest.mark.parametrize("text", ["[]", "no JSON", '{"steps": "x"}', '{"steps": true}', "\xff"])
def test_a_config_that_is_none_of_a_training_is_named(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    assert f"{path} is not the config of a training" in refused(train, small(tmp_path))
    assert path.read_bytes() == text.encode("latin-1")


def test_a_model_folder_is_no_run_folder(tmp_path):
    shutil.copytree(Path(everyway.__file__).parent / "shipped" / "nano", tmp_path / "nano")
    before = contents(tmp_path)
    assert "no setting 'config'" in refused(train, small(tmp_path / "nano"))
    assert contents(tmp_path) == before


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "taken").touch()
    for out in (tmp_path / "taken", tmp_path / "taken" / "run"):
        assert "taken is no folder to write to" in refused(train, small(out))


# -- what is kept -------------------------------------------------------------------------------


def test_losses_are_told_before_the_first_log_every(finished):
    losses = metadata_of(finished)["losses"]
    assert {"image", "text"} <= set(losses)
    (row,) = (finished / "log.jsonl").read_text().splitlines()
    assert losses == {k: v for k, v in json.loads(row).items() if k not in ("step", "seconds")}


def test_a_finished_training_leaves_its_model_alone(copied):
    card.add_scores(copied / "model", SCORES)
    before = contents(copied / "model")
    again = train(small(copied))
    assert contents(copied / "model") == before
    assert again["losses"] == metadata_of(copied)["losses"] != {}
    assert metadata_of(copied)["scores"]["shapes"]["protocol"] == {"n": 1}


def test_a_model_that_is_missing_or_of_other_steps_is_exported_again(copied):
    given = metadata_of(copied)
    next((copied / "model").glob("network-*")).unlink()
    train(small(copied))
    assert [metadata_of(copied)[k] for k in ("losses", "history")] == [
        given[k] for k in ("losses", "history")
    ]
    assert exported(copied) == 3
    older = {**given, "history": [{**given["history"][-1], "steps": 1}]}
    store.set_metadata(copied / "model", older)
    train(small(copied))
    assert metadata_of(copied)["history"][-1]["steps"] == 3


def test_a_second_interrupt_is_let_pass_until_all_is_saved(tmp_path, monkeypatch):
    save = TrainState.save

    def interrupted(self, *args):
        signal.raise_signal(signal.SIGTERM)
        save(self, *args)

    def twice(progress):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainState, "save", interrupted)
    former = signal.getsignal(signal.SIGINT)  # a background job of a script ignores it
    metadata = train(small(tmp_path, steps="9", log_every="2"), progress=twice)
    assert metadata["stopped"] and metadata["step"] == 2
    assert exported(tmp_path) == 2
    assert signal.getsignal(signal.SIGINT) is former


def test_an_interrupt_while_the_last_state_is_saved_is_no_stop(tmp_path, monkeypatch):
    save = TrainState.save
    monkeypatch.setattr(
        TrainState, "save", lambda *args: (signal.raise_signal(signal.SIGINT), save(*args))
    )
    metadata = train(small(tmp_path))
    assert not metadata["stopped"] and metadata["step"] == 3


# -- numbers that are not finite ----------------------------------------------------------------


@pytest.mark.parametrize("log_every", ["1", "50"])
def test_a_training_that_diverges_stops_and_keeps_what_was(copied, monkeypatch, log_every):
    before = contents(copied)
    losses = objective.losses

    def broken(*args):
        return {k: v * torch.nan for k, v in losses(*args).items()}

    monkeypatch.setattr(objective, "losses", broken)
    with pytest.raises(StateError, match="diverged by step .* smaller lr"):
        train(small(copied, steps="5", log_every=log_every))
    after = contents(copied)
    kept = [k for k in before if "tensorboard" not in k and k != str(copied / "config.json")]
    assert kept and all(before[k] == after[k] for k in kept)


class One(Learner):
    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)


def state_of(learner: Learner) -> TrainState:
    return TrainState(learner, torch.optim.AdamW(learner.parameters()), EMA(learner, 0.9))


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    state = state_of(One())
    state.save(tmp_path / "state", {})
    state.learner.layer.weight.data[0, 0] = torch.inf
    for call in (lambda: state.save(tmp_path / "state", {}), lambda: loop._average(state)):
        with pytest.raises(StateError, match="diverged by step 0"):
            call()
    with pytest.raises(StateError, match="is of another network"):
        state_of(One(3)).restore(tmp_path / "state")
    assert state.step == state_of(One()).step == 0


def test_an_importance_of_losses_that_are_not_finite():
    """Where times are drawn by the losses, the very step is named."""
    learner = SystemLearner.__new__(SystemLearner)
    Learner.__init__(learner)
    learner.memory = {HISTORY: torch.zeros(10), COUNTS: torch.zeros(10)}
    learner.index = torch.arange(4)
    with pytest.raises(StateError, match="diverged by step 1"):
        learner.learn(0, {"image": torch.tensor([1.0, torch.nan, 1.0, 1.0])})
    assert torch.isfinite(learner.memory[HISTORY]).all()


def test_a_folder_with_the_name_of_a_built_in_set(tmp_path, monkeypatch) -> None:
    """It is the set, whole, for what is measured and for what is learned; who names it is asked."""
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()
    Image.new("RGB", (16, 16)).save("shapes/a.png")
    Path("shapes/a.txt").write_text("a square")
    assert not sources.is_own("shapes") and sources.is_own("./shapes")
    assert stack.resolved("nano", {}, "run", None).model.codecs == resolve("nano", {}).model.codecs
    assert "give ./shapes" in refused(sources.refuse_two_meanings, "shapes")
    sources.refuse_two_meanings("./shapes")
