"""Image tokens: diffusers' encoder and decoder with a quantiser between them, and what it learns.

B pictures, D channels of a code, h x w the grid of tokens, L = h w tokens, row by row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn
from torch.nn import functional as F

from everyway.errors import UsageError


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantised:
    """vectors: (B, D, h, w), through which gradients go as if nothing had been rounded.
    codes: (B, L) int64.  loss: what training adds for the quantiser.  revived: how many dead codes
    were given a new place."""

    vectors: Tensor
    codes: Tensor
    loss: Tensor
    revived: int = 0


SMALL: dict[str, Any] = {
    "encoder": {
        "in_channels": 192,
        "out_channels": 32,
        "down_block_types": ["DownEncoderBlock2D"],
        "block_out_channels": [64],
        "layers_per_block": 1,
        "mid_block_add_attention": False,
    },
    "decoder": {
        "in_channels": 32,
        "out_channels": 192,
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [96],
        "layers_per_block": 0,
    },
    "quantiser": {"kind": "ema", "codes": 1024, "dim": 16},
}
"""64x64 pictures, folded to 8x8x192, as 64 tokens of 1024 codes.  1.1M parameters.

Every convolution is at 8x8: after 2.5 minutes on a CPU it was 1.5 dB better than levels of 16x16
and 8x8 (folded by 4), and as good as a decoder that ends at 16x16, which costs half more a step."""


class Nearest(nn.Module):
    """The nearest of `codes` learned vectors (codes, dim), pulled towards what the encoder makes.

    loss = |sg(z) - e|^2 + commitment |z - sg(e)|^2, a mean over elements (van den Oord et al.,
    "Neural Discrete Representation Learning", 2017, arXiv 1711.00937).
    """

    def __init__(self, codes: int, dim: int, commitment: float = 0.25) -> None:
        super().__init__()
        self.commitment = commitment
        self.codes = nn.Parameter(torch.empty(codes, dim).uniform_(-1 / codes, 1 / codes))

    def assign(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """z (B, D, h, w) -> codes (B, L)."""
        return nearest(rows(z), self.codes).reshape(len(z), -1)

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantised:
        codes = self.assign(z)
        e = grid(self.codes[codes], z.shape[-2:])
        loss = F.mse_loss(e, z.detach()) + self.commitment * F.mse_loss(z, e.detach())
        return Quantised(vectors=z + (e - z).detach(), codes=codes, loss=loss)


class MovingCodes(nn.Module):
    """The nearest of `codes` vectors, each the moving average of what was assigned to it.

    N <- decay N + (1 - decay) n,  m <- decay m + (1 - decay) sum z,  e = m / N (van den Oord et
    al., 2017, appendix A.1).  A code whose N falls below `dead` times the mean starts again at a
    vector of the batch, drawn with odds of its squared distance from its code.  A fresh codebook
    is all dead, so that the first batch in training gives it its first places.
    """

    codes: Tensor
    cluster_size: Tensor
    cluster_sum: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        commitment: float = 0.25,
        decay: float = 0.99,
        dead: float = 0.03,
    ) -> None:
        super().__init__()
        self.commitment, self.decay, self.dead = commitment, decay, dead
        self.register_buffer("codes", torch.randn(codes, dim))
        self.register_buffer("cluster_size", torch.zeros(codes))  # N
        self.register_buffer("cluster_sum", torch.zeros(codes, dim))  # m

    def assign(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """z (B, D, h, w) -> codes (B, L)."""
        return nearest(rows(z), self.codes).reshape(len(z), -1)

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantised:
        """In training mode the codes move; `generator` then draws places for dead ones."""
        revived = self.learn(rows(z.detach()), generator) if self.training else 0
        codes = self.assign(z)
        e = grid(self.codes[codes], z.shape[-2:])
        loss = self.commitment * F.mse_loss(z, e)
        return Quantised(vectors=z + (e - z).detach(), codes=codes, loss=loss, revived=revived)

    @torch.no_grad()
    def learn(self, z: Tensor, generator: torch.Generator | None = None) -> int:
        """One update from vectors z (M, D); returns how many dead codes were revived."""
        codes = nearest(z, self.codes)
        count = torch.bincount(codes, minlength=len(self.codes)).to(z.dtype)
        self.cluster_size.lerp_(count, 1 - self.decay)
        self.cluster_sum.lerp_(torch.zeros_like(self.codes).index_add_(0, codes, z), 1 - self.decay)
        dead = self.cluster_size < self.dead * self.cluster_size.mean()
        error = (z - self.codes[codes]).square().sum(1)
        live = ~dead
        self.codes[live] = self.cluster_sum[live] / self.cluster_size[live, None]
        if revived := int(dead.sum()):
            odds = error.cpu() + 1e-12
            drawn = torch.multinomial(odds, revived, revived > len(z), generator=generator)
            self.codes[dead] = z[drawn.to(z.device)]
            self.cluster_size[dead] = self.cluster_size.mean()
            self.cluster_sum[dead] = self.codes[dead] * self.cluster_size[dead, None]
        return revived


class Gumbel(nn.Module):
    """Codes chosen by logits; training draws by a hard Gumbel-softmax, gradients by the soft one.

    divergence: weight of KL(softmax of the logits | uniform), which keeps codes in use.
    temperature: tau of the softmax.  Source: Jang et al., 2016, arXiv 1611.01144.
    """

    def __init__(
        self, codes: int, dim: int, divergence: float = 5e-4, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.divergence, self.temperature = divergence, temperature
        self.logits = nn.Conv2d(dim, codes, 1)
        self.codes = nn.Parameter(torch.randn(codes, dim))

    def assign(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """z (B, D, h, w) -> codes (B, L): the likeliest, or a draw where a generator is given."""
        return self._soft(self.logits(z), generator).argmax(1).flatten(1)

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Quantised:
        logits = self.logits(z)
        soft = self._soft(logits, generator)
        codes = soft.argmax(1)
        hard = F.one_hot(codes, len(self.codes)).movedim(-1, 1) - soft.detach() + soft
        vectors = torch.einsum("bkhw,kd->bdhw", hard, self.codes)
        log = logits.log_softmax(1)
        loss = self.divergence * (log.exp() * (log + np.log(len(self.codes)))).sum(1).mean()
        return Quantised(vectors=vectors, codes=codes.flatten(1), loss=loss)

    def _soft(self, logits: Tensor, generator: torch.Generator | None) -> Tensor:
        """softmax((logits + Gumbel noise) / tau) over axis 1."""
        if generator is not None:
            noise = torch.empty(logits.shape, device=generator.device)
            logits = logits - noise.exponential_(generator=generator).log().to(logits.device)
        return (logits / self.temperature).softmax(1)


KINDS: dict[str, type[nn.Module]] = {"nearest": Nearest, "ema": MovingCodes, "gumbel": Gumbel}


def rows(z: Tensor) -> Tensor:
    """(B, D, h, w) -> (B h w, D)."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def grid(vectors: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, L, D) -> (B, D, h, w)."""
    return vectors.movedim(-1, 1).reshape(len(vectors), -1, *shape).contiguous()


def nearest(z: Tensor, codes: Tensor) -> Tensor:
    """(M, D), (codes, D) -> (M,): codes of least squared distance, |z|^2 left out; in float32."""
    with torch.autocast(z.device.type, enabled=False):
        z, codes = z.float(), codes.float()
        return torch.addmm(codes.square().sum(1), z, codes.T, alpha=-2).argmin(1)


def use_of(codes: Tensor, classes: int) -> dict[str, float]:
    """How evenly codes (any shape) of `classes` are used.

    codes_used: the share of the classes that occur.  perplexity: exp(entropy), `classes` at most.
    """
    often = torch.bincount(codes.flatten(), minlength=classes).double()
    share = often / often.sum()
    return {
        "codes_used": round((often > 0).double().mean().item(), 4),
        "perplexity": round(torch.special.entr(share).sum().exp().item(), 1),
    }


class Truncation(nn.Module):
    """The codes that are in use as ranks 0 .. K-1, for a diffusion that need not know the others.

    used: strictly increasing codes out of `codes`.  An unused code gets rank 0.
    """

    code_of: Tensor
    rank_of: Tensor

    def __init__(self, used: Sequence[int], codes: int) -> None:
        super().__init__()
        code_of = torch.as_tensor(used, dtype=torch.int64, device="cpu")  # in no file
        if code_of.ndim != 1 or not len(code_of) or code_of[0] < 0 or code_of[-1] >= codes:
            raise UsageError(f"used codes must be a list of numbers from 0 to {codes - 1}")
        if (code_of.diff() <= 0).any():
            raise UsageError("used codes must be strictly increasing; sort them and drop doubles")
        rank_of = torch.zeros(codes, dtype=torch.int64, device="cpu")
        rank_of[code_of] = torch.arange(len(code_of), device="cpu")
        self.register_buffer("code_of", code_of, persistent=False)
        self.register_buffer("rank_of", rank_of, persistent=False)

    def ranks(self, codes: Tensor) -> Tensor:
        return self.rank_of[codes]

    def codes(self, ranks: Tensor) -> Tensor:
        return self.code_of[ranks]


def used_codes(path: Path) -> list[int]:
    """The list of used codes in a file: a JSON list, or a vector as .npy or .pt.

    A vector may also be the table code -> rank; the first code of a rank is then the used one.
    Raises ValueError for anything else.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise UsageError(f"{path} is not a list of codes; give a .json, .npy or .pt file")
    try:
        table = np.asarray(_READERS[path.suffix](path))
    except Exception as error:  # each reader has errors of its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UsageError(f"{path} holds no list of codes ({reason:.200})") from None
    if table.dtype.kind not in "iu" or table.ndim != 1 or not table.size or table.min() < 0:
        raise UsageError(f"{path} holds no list of codes: whole numbers from 0, in one row")
    table = table.astype(np.int64)
    if path.suffix == ".json" or (np.diff(table) > 0).all():
        return table.tolist()
    return np.unique(table, return_index=True)[1].tolist()


_READERS: dict[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".npy": np.load,
    ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
}


def shrinks(encoder: Mapping[str, Any]) -> int:
    """Side in pixels of the square that one token of an encoder of these settings stands for."""
    return _side(encoder["in_channels"]) * 2 ** (len(encoder["block_out_channels"]) - 1)


def _side(channels: int) -> int:
    """f from 3 f^2 channels."""
    if channels != 3 * isqrt(channels // 3) ** 2:
        raise UsageError(f"{channels} channels are not 3 f^2; give 3, 12, 48 or 192")
    return isqrt(channels // 3)


class ImageVQ(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] <-> tokens (B, L) int64 in 0 .. classes - 1, row by row.

    encoder, decoder: settings of diffusers' Encoder and Decoder.  in_channels of the one and
    out_channels of the other are 3 f^2: blocks of f x f pixels that become channels outside of
    them, which makes small pictures cheap; the two sides may differ in f.
    quantiser: `kind` (nearest, ema or gumbel), `codes`, `dim` and what its class takes.
    used: the codes in use, or a file of them, where a diffusion sees these alone.
    The grid of tokens is square.
    """

    def __init__(
        self,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        quantiser: Mapping[str, Any],
        used: Sequence[int] | str | None = None,
    ) -> None:
        super().__init__()
        settings, dim = dict(quantiser), quantiser["dim"]
        self.fold, self.unfold = _side(encoder["in_channels"]), _side(decoder["out_channels"])
        self.factor = shrinks(encoder)
        self.encoder = Encoder(**encoder, double_z=False)
        self.quant_conv = nn.Conv2d(encoder["out_channels"], dim, 1)
        self.quantiser = KINDS[settings.pop("kind")](**settings)
        self.post_quant_conv = nn.Conv2d(dim, decoder["in_channels"], 1)
        self.decoder = Decoder(**decoder)
        up = self.unfold * 2 ** (len(self.decoder.up_blocks) - 1)
        if up != self.factor:
            raise UsageError(f"the encoder shrinks {self.factor} times, the decoder grows {up}")
        if isinstance(used, str):
            used = used_codes(Path(used))
        self.truncation = None if used is None else Truncation(used, quantiser["codes"])

    @property
    def classes(self) -> int:
        """How many different tokens there are."""
        return len(self.truncation.code_of if self.truncation else self.quantiser.codes)

    def latent(self, images: Tensor) -> Tensor:
        """What the quantiser is given, (B, D, h, w)."""
        folded = F.pixel_unshuffle(images, self.fold) if self.fold > 1 else images
        return self.quant_conv(self.encoder(folded))

    def reconstruct(self, vectors: Tensor) -> Tensor:
        """Pictures from quantised vectors (B, D, h, w), not clamped (training)."""
        out = self.decoder(self.post_quant_conv(vectors))
        return F.pixel_shuffle(out, self.unfold) if self.unfold > 1 else out

    def forward(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Quantised]:
        """The pictures made again, and what the quantiser did (training)."""
        quantised = self.quantiser(self.latent(images), generator)
        return self.reconstruct(quantised.vectors), quantised

    def encode(self, raw: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """generator: makes Gumbel codes draws, as the published systems have it; else the likeliest
        codes are taken."""
        codes = self.quantiser.assign(self.latent(raw.float()), generator)
        return self.truncation.ranks(codes) if self.truncation else codes

    def decode(self, state: Tensor) -> Tensor:
        side = isqrt(state.shape[-1])
        if side**2 != state.shape[-1]:
            raise ValueError(f"{state.shape[-1]} tokens are no square grid; give h * h of them")
        codes = self.truncation.codes(state) if self.truncation else state
        return self.reconstruct(grid(self.quantiser.codes[codes], (side, side))).clamp(-1, 1)
