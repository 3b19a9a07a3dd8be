"""Two networks with the same weights, asked the same question: ours and diffusers'."""

from __future__ import annotations

import torch
from torch import nn

from everyway.contracts import Bundle, Times
from everyway.layouts.unidiffuser import to_diffusers
from everyway.nets.uvit import UViT, UViTConfig


def filled(config: UViTConfig, device: str = "cpu") -> UViT:
    """Every tensor random, biases and norms too, so that no wrong name goes unseen."""
    with torch.device("meta"):
        network = UViT(config)
    network.to_empty(device=device)
    for name, p in network.named_parameters():
        noise, weight = torch.randn_like(p), name.endswith("weight")
        matrix = weight and p.ndim > 1
        p.data = noise / p[0].numel() ** 0.5 if matrix else 0.1 * noise + float(weight)
    return network.eval()


def unidiffuser(network: UViT) -> nn.Module:
    """diffusers' UniDiffuserModel with a copy of the weights of a published layout."""
    try:
        from diffusers import UniDiffuserModel
    except ImportError:
        raise SystemExit(
            "diffusers has no UniDiffuserModel: pip install diffusers==0.42.1"
        ) from None
    config = network.config
    streams = {s.name: s for s in config.layout if hasattr(s, "name")}
    image, text = streams["image"], streams["text"]
    with torch.device("meta"):
        model = UniDiffuserModel(
            text_dim=text.dim,
            clip_img_dim=streams["image_embed"].dim,
            num_text_tokens=text.length,
            num_attention_heads=config.heads,
            attention_head_dim=config.dim // config.heads,
            in_channels=image.channels,
            out_channels=image.channels,
            num_layers=config.depth,
            attention_bias=config.qkv_bias,
            sample_size=image.size,
            patch_size=image.patch,
            activation_fn="gelu",
            use_timestep_embedding=config.time_mlp,
            use_data_type_embedding="data_type" in streams,
        )
    weights = {name: w.clone() for name, w in to_diffusers(network.state_dict()).items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def ask(model: nn.Module, states: Bundle, times: Times, data_type: int = 1) -> Bundle:
    """The answer of diffusers' model, whose times run to 1000."""
    tau = {clock: 1000 * t for clock, t in times.items()}
    given = (states["image"], states["image_embed"], states["text"], tau["image"], tau["text"])
    return dict(zip(("image", "image_embed", "text"), model(*given, data_type)))


def inputs(config: UViTConfig, batch: int, device: str = "cpu") -> tuple[Bundle, Times]:
    s = {s.name: s for s in config.layout if hasattr(s, "name")}
    shapes = {
        "image": (s["image"].channels, s["image"].size, s["image"].size),
        "image_embed": (1, s["image_embed"].dim),
        "text": (s["text"].length, s["text"].dim),
    }
    states = {k: torch.randn(batch, *shape, device=device) for k, shape in shapes.items()}
    times = {c: torch.rand(batch, dtype=torch.float64, device=device) for c in ("image", "text")}
    return states, times


def disparity(a: Bundle, b: Bundle) -> float:
    """Largest difference over largest value, of the worst stream."""
    return max(float((a[k] - b[k]).abs().max() / b[k].abs().max()) for k in b)
