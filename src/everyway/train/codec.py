"""A codec as a learner: samples in the order of their numbers, and a measure at the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everyway.checkpoints import codec_folder
from everyway.checkpoints.store import write_text
from everyway.codecs.text_tokens import Tokens, train_tokens
from everyway.data.folder import Folder
from everyway.layouts import convert
from everyway.train import data_changes, sources
from everyway.train.config import TrainConfig
from everyway.train.devices import PartialState
from everyway.train.learner import Learner, Share

_log = logging.getLogger(__name__)
SETTINGS: dict[str, Any] = dict(
    data="emoji", steps=1_000_000, budget_s=1800.0, batch=16, optimiser="adamw", lr=1e-3,
    weight_decay=0.01, warmup=50, cooldown=0.4, ema=0.998, precision="fp32", log_every=50,
    save_every_s=60.0,
)  # fmt: skip
"""Settings that the trainings of codecs have by default: half an hour."""
MEASURED = 10**6
"""The number of the first sample on which whitening is measured."""


class CodecLearner(Learner):
    """name: of the codec's files.  codec: the module that is exported, a part of this one."""

    name: str

    def __init__(self, config: TrainConfig, size: int = 64, tokens: Tokens | None = None) -> None:
        """size: side of the pictures in pixels.  tokens: the tokenizer, for codecs that read
        captions; those of a folder that are too long for it are left out."""
        super().__init__()
        torch.manual_seed(config.seed)  # initial weights only
        self.config = config
        reads = (lambda caption: tokens.encode([caption])) if tokens else None
        captioned = tokens is not None
        self.seen, self.unseen = sources.streams(config, size, captioned, reads)
        if sources.is_own(name := config.source.data) and PartialState().is_main_process:
            data_changes.tell(config.folder, Folder(name, captioned=captioned), _log.warning)

    @property
    def codec(self) -> nn.Module:
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What builds the codec, as plain data."""
        raise NotImplementedError

    def finish(self, out: Path) -> dict[str, Any]:
        """Measures what is measured after training; returns metadata."""
        raise NotImplementedError

    def pictures(self, share: Share) -> Tensor:
        return sources.pictures(self.seen(share.samples)).to(share.device)

    def folder(self, out: Path) -> Path:
        """Where the codec's files are written."""
        return Path(getattr(self.config.model, "codecs", "") or out)

    @torch.no_grad()
    def export(self, weights: Mapping[str, Tensor], run: Mapping[str, Any], out: Path) -> None:
        self.load_state_dict(weights)
        self.eval().to("cpu")
        minutes = round(run["seconds"] / 60, 1)
        metadata = {"steps": run["steps"], "minutes": minutes, **run["losses"], **self.finish(out)}
        folder, dtype = self.folder(out), convert.DTYPES[self.config.run.weights]
        codec_folder.write(folder, self.name, self.codec, self.settings(), metadata, dtype)

    def exported(self, out: Path) -> int:
        metadata = self.folder(out) / f"{self.name}.facts.json"
        try:
            return json.loads(metadata.read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, LookupError):
            return -1


def tokenizer(config: TrainConfig, captions: int = 40_000, size: int = 2000) -> str:
    """The JSON of the BPE that encoder and text share, made where the folder of codecs has none."""
    path = Path(config.model.codecs) / "tokenizer.json"
    if path.exists():
        return path.read_text(encoding="utf-8")
    seen, _ = sources.streams(config, captioned=True)
    rows = (seen(range(i, i + 1))[0] for i in range(captions // 2))
    spec = train_tokens((caption for sample in rows for caption in sample.captions), size)
    write_text(path, spec)
    return spec


def in_turn(samples: list, numbers: range) -> list[str]:
    """One caption a sample, its captions in turn."""
    return [s.captions[i % len(s.captions)] for i, s in zip(numbers, samples)]
