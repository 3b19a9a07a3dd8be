"""Every published size has a recipe, and the page of presets has every preset with its figures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from everyway.checkpoints import codec_folder
from everyway.codecs.encoders import SMALL_VISION, ImageEmbedding
from everyway.codecs.image_vae import ImageVAE
from everyway.codecs.text_latent import SMALL_DECODER, TextLatent
from everyway.codecs.text_tokens import word_tokens
from everyway.nets.multiflow import MultiFlow
from everyway.nets.token_transformer import TokenTransformer
from everyway.nets.unet import UNet
from everyway.nets.uvit import UViT
from everyway.settings import ConfigError
from everyway.systems import ediffi, unidiffuser, versatile, vq_diffusion
from everyway.train.codec_image import CONFIG
from everyway.train.config import names, resolve
from everyway.train.sources import Data

TEXT = {"length": 9, "dim": 64, "text": {"hidden_size": 64}, "decoder": SMALL_DECODER}
ROOT = Path(__file__).parents[2]
RECIPES, PAGE = ROOT / "recipes", ROOT / "docs" / "presets.md"


def published() -> dict[str, torch.nn.Module]:
    """Recipe -> its network, without memory."""
    with torch.device("meta"):
        return {
            "unidiffuser-v1": UViT(unidiffuser.full(unidiffuser.PUBLISHED["v1"], {}).network()),
            "vq-coco": TokenTransformer(vq_diffusion.PRESETS["coco"]),
            "versatile-four-flow": MultiFlow(versatile.FOUR_FLOW),
            **{name: UNet(ediffi.NETWORKS[name]) for name in ediffi.NETWORKS},
        }


COUNTS = {
    "unidiffuser-v1": 952_509_520,
    "vq-coco": 388_780_871,
    "versatile-four-flow": 2_566_318_852,
    "ediffi-base": 806_632_963,
    "ediffi-sr256": 655_276_931,
    "ediffi-sr1024": 287_112_579,
}


@pytest.fixture(scope="module")
def counted() -> dict[str, int]:
    return {n: sum(p.numel() for p in net.parameters()) for n, net in published().items()}


def test_every_recipe_is_counted_in_samples_and_is_of_a_published_size(counted):
    assert counted == COUNTS
    for name in COUNTS:
        config = resolve(str(RECIPES / f"{name}.toml"))
        assert config.run.out.startswith("runs/") and config.model.codecs.startswith("runs/")
        if name != "ediffi-base":
            assert config.samples and config.steps == -(-config.samples // config.batch)


def test_what_codecs_are_missing_is_told_with_the_command_that_makes_them():
    for name in ("unidiffuser-v1", "vq-coco", "versatile-four-flow"):
        config = resolve(str(RECIPES / f"{name}.toml"))
        with pytest.raises(ConfigError, match=r"there is no folder .*everyway convert \S+ --out"):
            config.model.system(Data("shapes", 0))


def test_every_preset_and_recipe_stands_on_the_page(counted):
    text = PAGE.read_text(encoding="utf-8")
    wanted = {name for name in names() if name not in ("encoder", "text", "text-vae")}
    assert wanted - {*re.findall(r"`([\w-]+)`", text)} == set()
    recipes = {path.name for path in RECIPES.glob("*.toml")}
    assert recipes - {*re.findall(r"([\w-]+\.toml)", text)} == set()
    for name, count in counted.items():
        (row,) = re.findall(rf"^\| `recipes/{name}\.toml` .*$", text, re.M)
        assert f"| {count / 1e6:,.0f} M " in row


def test_a_latent_of_a_trained_autoencoder_is_cut_into_few_tokens():
    codecs = {
        "image": {"autoencoder": {"sample_size": 16, "latent_channels": 4}, "fold": 4},
        "image_embed": {"vision": {"projection_dim": 64}},
        "text": {"tokenizer": word_tokens(["a bird"]), "length": 9, "dim": 64},
    }
    made = unidiffuser.sized("small", codecs)
    assert (made.image_channels, made.image_size, made.patch) == (4, 16, 2)
    assert (made.text_length, made.dim, made.languages) == (9, 384, [])


def test_codecs_that_were_trained_apart_carry_a_network_of_any_size(tmp_path):
    """An autoencoder, a contrastive encoder and a text decoder, as their trainings write them."""
    spec = word_tokens(["a bird on a branch"])
    own = {
        "image": ImageVAE(**CONFIG),
        "image_embed": ImageEmbedding(vision=SMALL_VISION),
        "text": TextLatent(tokenizer=spec, **TEXT),
    }
    settings = {
        "image": CONFIG,
        "image_embed": {"vision": SMALL_VISION},
        "text": {"tokenizer": spec, **TEXT},
    }
    for name, codec in own.items():
        codec_folder.write(tmp_path, name, codec, settings[name], {})
    config = resolve("nano", {"codecs": str(tmp_path)})
    system = config.model.system(Data("shapes", 0))
    pictures = torch.zeros(2, 3, unidiffuser.image_size(system.config), 64)
    states = system.encode({"image": pictures, "text": ["a bird", "a branch"]})
    shapes = {name: tuple(state.shape[1:]) for name, state in states.items()}
    assert shapes == {name: m.shape for name, m in system.modalities.items()}
