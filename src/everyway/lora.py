"""LoRA: two small matrices beside each linear layer of a network, whose own weights stay.

    y = W x + weight * alpha / rank * B A x        A (rank, in), B (out, rank), at first 0

One network makes every modality, so one LoRA moves every direction at once.  In a file the matrices
have the names that PEFT gives them, and its metadata says which model they are for.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from everyway.atomic import atomic_write
from everyway.errors import UsageError
from everyway.validation import first_fault

PREFIX = "base_model.model."
"""What PEFT puts before the names of a network's layers."""
TRAINED = "default"
"""PEFT's name of the adapter that is trained, which is not in a file's names."""


class LoRAError(UsageError):
    """A LoRA that cannot be used; the message says how to mend it."""


class Facts(BaseModel):
    """The metadata of a file, which may have more than this.

    base, base_hash: the model that it was trained on, by name and by `Model.hash`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    base: str
    base_hash: str
    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True, eq=False)
class LoRA:
    """A LoRA file.  name: its path, or what it is called in errors.  digest: its sha256.  tensors:
    by their names in it."""

    name: str
    digest: str
    facts: Facts
    tensors: Mapping[str, Tensor]

    @property
    def layers(self) -> list[str]:
        """The layers of the network that it is beside."""
        names = (name.removeprefix(PREFIX) for name in self.tensors)
        return list(dict.fromkeys(name.rpartition(".lora_")[0] for name in names))

    def check_base(self, name: str, hash: str) -> None:
        """LoRAError for a model that it was not trained on."""
        own = self.facts
        if own.base_hash != hash:
            raise LoRAError(
                f"{self.name} is a LoRA of {own.base} ({own.base_hash}), and this model is {name} "
                f"({hash}); give the model that it was trained on"
            )


# -- networks ---------------------------------------------------------------------------------


def linear_layers(network: nn.Module, words: Iterable[str] = ()) -> list[str]:
    """The names of its linear layers; words: only those whose names have one of them.

    Layers that rearrange what they are given are none.  Raises LoRAError where there are none.
    """
    names = [name for name, layer in network.named_modules() if type(layer) is nn.Linear]
    words = [*words]
    found = [n for n in names if not words or any(word in n for word in words)]
    if not found:
        of = f" whose name has {' or '.join(words)}" if words else ""
        some = f"; there are {', '.join(names[:8])} ..." if names else ""
        raise LoRAError(f"this network has no linear layer{of}{some}")
    return found


def check_rank(network: nn.Module, rank: int, layers: Sequence[str]) -> None:
    """LoRAError for a rank that no matrix of these layers can have."""
    most = max(min(network.get_submodule(name).weight.shape) for name in layers)
    if rank > most:
        raise LoRAError(
            f"lora={rank} is a higher rank than any layer of this network has; give {most} or "
            "less, of which 4 to 64 are usual"
        )


def add(network: nn.Module, rank: int, alpha: float, layers: Sequence[str], seed: int) -> None:
    """A fresh LoRA in the network, of which nothing else is trained from now on.

    seed: of A, drawn from a generator that the rest of the process does not share.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _injected(network, layers, rank, alpha, TRAINED)


def adapted(network: nn.Module, loras: Sequence[tuple[LoRA, float]]) -> nn.Module:
    """A network that shares the weights of `network`, with these LoRAs beside them.

    loras: each with its weight, by which what it adds is multiplied.
    Raises LoRAError for one that does not fit.
    """
    held = chain(network.parameters(), network.buffers())
    made = copy.deepcopy(network, {id(tensor): tensor for tensor in held})
    for number, (lora, _) in enumerate(loras):
        _fill(made, lora, str(number))
    peft = _peft()
    for layer in made.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            own = [str(number) for number in range(len(loras)) if str(number) in layer.lora_A]
            layer.set_adapter(own, inference_mode=True)
            for number in own:
                layer.set_scale(number, loras[int(number)][1])
    return made.requires_grad_(False)


def merged(network: nn.Module, loras: Sequence[tuple[LoRA, float]]) -> nn.Module:
    """A network with these LoRAs in its weights: W + weight * alpha / rank * B A, summed over them.

    Its outputs are those of `adapted` but for rounding.  The weights of `network` stay as they are.
    Raises LoRAError for a LoRA that does not fit.
    """
    made = adapted(copy.deepcopy(network), loras)
    lora_layer = _peft().tuners.lora.LoraLayer
    for name, layer in [*made.named_modules()]:
        if isinstance(layer, lora_layer):
            layer.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(made.get_submodule(parent), leaf, layer.get_base_layer())
    return made


def _fill(network: nn.Module, lora: LoRA, number: str) -> None:
    """One LoRA into a network, under the name of its number."""
    known = dict(network.named_modules())
    if lost := [name for name in lora.layers if name not in known]:
        raise LoRAError(f"{lora.name} is of a network with a layer {lost[0]!r}, which is not here")
    _injected(network, lora.layers, lora.facts.rank, lora.facts.alpha, number)
    device = next(network.parameters()).device
    tensors = {k.removeprefix(PREFIX): v.float().to(device) for k, v in lora.tensors.items()}
    try:
        _peft().set_peft_model_state_dict(network, tensors, number, low_cpu_mem_usage=True)
    except (RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise LoRAError(f"{lora.name} does not fit the network: {reason}") from None
    del network.peft_config  # PEFT's own note, which it warns of where several are added


def _injected(
    network: nn.Module, layers: Sequence[str], rank: int, alpha: float, name: str
) -> None:
    """The matrices of a LoRA by PEFT; those that will be filled are not drawn."""
    peft = _peft()
    exactly = "|".join(map(re.escape, layers))
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=exactly)
    fresh = name == TRAINED
    peft.inject_adapter_in_model(config, network, name, low_cpu_mem_usage=not fresh)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise LoRAError('LoRA needs PEFT: pip install "everyway[lora]"') from None
    return peft


# -- files ------------------------------------------------------------------------------------


def is_matrix(name: str) -> bool:
    """Whether a tensor of a network in which a LoRA is trained belongs to it."""
    return f".{TRAINED}." in name and ".lora_" in name


def write(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Written atomically.  weights: as `add` names them.  Raises OSError."""
    tensors = {
        f"{PREFIX}{name.replace(f'.{TRAINED}.', '.')}": value.detach().cpu().contiguous()
        for name, value in weights.items()
    }
    Facts.model_validate(facts)
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, {"format": "pt", "facts": json.dumps(facts)}))


def lora_of(content: bytes, name: str) -> LoRA:
    """The LoRA in the content of a file.  name: what it is called in errors.  Raises LoRAError for
    a file that is none."""
    facts = facts_of(content, name)
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise LoRAError(f"{name} is damaged or truncated ({error}); copy it again") from None
    matrix = re.compile(rf"{re.escape(PREFIX)}.+\.lora_[AB]\.weight")
    if odd := [key for key in tensors if not matrix.fullmatch(key)]:
        raise LoRAError(f"{name} has tensors that are no LoRA's, as {odd[0]}; give another")
    digest = hashlib.sha256(content).hexdigest()
    return LoRA(name=name, digest=digest, facts=facts, tensors=tensors)


def steps_of(path: Path) -> int:
    """How long a LoRA was trained, or -1 where there is none whole."""
    try:
        return dict(lora_of(path.read_bytes(), path.name).facts).get("steps", -1)
    except (OSError, LoRAError):
        return -1


def facts_of(content: bytes, name: str) -> Facts:
    """The metadata of a file, without reading its tensors.

    Raises LoRAError for a file that is no LoRA of ours.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + min(length, 2**26)])
        return Facts.model_validate(json.loads(header["__metadata__"]["facts"]))
    except ValidationError as error:
        raise LoRAError(f"{name} is no LoRA that was trained here: {first_fault(error)}") from None
    except (ValueError, LookupError, TypeError):
        raise LoRAError(
            f"{name} is no LoRA that was trained here; give the lora.safetensors of a training"
        ) from None
