"""Image tokens: goldens, quantisers by hand, truncation tables, and that the training learns."""

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everyway.checkpoints import codec_folder
from everyway.checkpoints.store import StoreError
from everyway.checkpoints.tensor_files import held
from everyway.codecs.image_vq import (
    SMALL,
    Gumbel,
    ImageVQ,
    MovingCodes,
    Nearest,
    Truncation,
    used_codes,
)
from everyway.layouts.vq_codec import from_authors, from_diffusers, to_authors
from everyway.systems.vq_diffusion import codec_of
from everyway.train import sources, train
from everyway.train.codec_vq import Critic, VQLearner, adversarial_loss
from everyway.train.config import ConfigError, resolve
from formula import filled, normal

GOLDEN = Path(__file__).parents[1] / "golden" / "vq_codec"
ATOL = 1e-5  # measured: 4.9e-6 in latents and logits, 5.5e-6 in pictures


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "h_vqgan.npz") as file:
        return {k: file[k] for k in file.files}


def held_all(tensors: dict) -> dict:
    return {name: held(tensor) for name, tensor in tensors.items()}


def read_all(entries: dict) -> dict:
    return {name: entry.read() for name, entry in entries.items()}


def filled_codec(name: str, kind: str, dim: int) -> ImageVQ:
    """The authors' codec of the goldens, every tensor filled from its name."""
    config = codec_of((32, 64, 128), kind, 64, dim, z=16, layers=1)
    codec = ImageVQ(**config).eval()
    theirs = to_authors(kind, held_all(codec.state_dict()))
    made = {k: filled(f"{name}.{k}", tuple(v.shape)) for k, v in theirs.items()}
    codec.load_state_dict(read_all(from_authors(kind, held_all(made))))
    return codec.requires_grad_(False)


def picture() -> torch.Tensor:
    return 2 * torch.sigmoid(normal("input:h.img", (2, 3, 32, 32))) - 1


def near(found: torch.Tensor, numbers: dict, key: str) -> None:
    """Pictures in [-1, 1] or plain values against a golden, which may be every third number."""
    if "rec01" in key:
        found = (found + 1) / 2
    wanted = numbers.get(key)
    if wanted is None:
        found, wanted = found.flatten()[:: int(numbers[f"{key}.stride"])], numbers[f"{key}.sub"]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize(("name", "kind"), [("vq", "nearest"), ("patch", "ema")])
def test_nearest_codes_as_the_authors(numbers, name, kind):
    codec = filled_codec(name, kind, 12)
    near(codec.latent(picture()), numbers, f"{name}.prequant")
    codes = codec.encode(picture())
    assert codes.dtype == torch.int64 and codes.tolist() == numbers[f"{name}.indices"].tolist()
    near(codec.decode(codes), numbers, f"{name}.rec01")
    fixed = torch.from_numpy(numbers["vq.fixed_idx"]).long()
    near(codec.decode(fixed), numbers, f"{name}.rec01_from_fixed_idx")
    if name == "vq":
        near(codec.encoder(picture()), numbers, "vq.enc_out")


def test_gumbel_codes_as_the_authors(numbers):
    """The likeliest by default; with a generator, the draws that the published encoder made."""
    codec = filled_codec("gumbel", "gumbel", 16)
    near(codec.quantiser.logits(codec.latent(picture())), numbers, "gumbel.logits")
    likeliest = codec.encode(picture())
    assert likeliest.tolist() == numbers["gumbel.argmax_no_noise"].reshape(2, 64).tolist()
    for seed in (3, 4):
        drawn = codec.encode(picture(), torch.Generator().manual_seed(seed))
        assert drawn.tolist() == numbers[f"gumbel.indices_seed{seed}"].tolist()
        if seed == 3:
            agreed = (drawn == likeliest).float().mean().item()
            assert agreed == numbers["gumbel.agree_seed3_vs_argmax"]
    fixed = torch.from_numpy(numbers["vq.fixed_idx"]).long()
    near(codec.decode(fixed), numbers, "gumbel.rec01_from_fixed_idx")


def test_diffusers_own_model_makes_the_same():
    """A VQModel of diffusers and ours of its weights see and say the same."""
    from diffusers import VQModel

    torch.manual_seed(0)
    config = codec_of((32, 64), "nearest", 64, 12, z=16, layers=1)
    both = {k: v for k, v in config["encoder"].items() if k != "out_channels"}
    theirs = VQModel(
        **both | {"up_block_types": config["decoder"]["up_block_types"]},
        out_channels=3, latent_channels=16, num_vq_embeddings=64, vq_embed_dim=12,
    ).eval()  # fmt: skip
    ours = ImageVQ(**config).eval()
    ours.load_state_dict(read_all(from_diffusers(held_all(theirs.state_dict()))))
    with torch.no_grad():
        _, _, (_, _, codes) = theirs.quantize(theirs.encode(picture()).latents)
        assert len(codes.unique()) > 8
        assert torch.equal(ours.encode(picture()).flatten(), codes)
        vectors = theirs.quantize.get_codebook_entry(codes, (2, 16, 16, 12))
        made = theirs.decode(vectors, force_not_quantize=True).sample.clamp(-1, 1)
        torch.testing.assert_close(ours.decode(codes.reshape(2, -1)), made, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("used", "codes", "name"), [(2887, 8192, "openimages"), (974, 16384, "")])
def test_truncation_tables(tmp_path, used, codes, name):
    """The published tables: used codes there and back, unused codes to rank 0."""
    with np.load(GOLDEN / "index_maps.npz") as file:
        table = file[f"quantize_to_full_{used}"]
    truncation = Truncation(table.tolist(), codes)
    ranks = torch.arange(used)
    assert torch.equal(truncation.ranks(truncation.codes(ranks)), ranks)
    unused = torch.from_numpy(np.setdiff1d(np.arange(codes), table))
    assert len(unused) == codes - used and not truncation.ranks(unused).any()
    assert not truncation.state_dict()
    ends = {2887: ([0, 3, 9, 10, 11], 8191), 974: ([0, 23, 66, 81, 91], 16374)}[used]
    assert truncation.codes(ranks)[:5].tolist() == ends[0] and truncation.code_of[-1] == ends[1]
    sha = {2887: "5b024c7a", 974: "a3242cde"}[used]
    digest = hashlib.sha256(truncation.rank_of.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest.startswith(sha)
    torch.save(truncation.rank_of, tmp_path / "ranks.pt")
    np.save(tmp_path / "used.npy", table)
    (tmp_path / "used.json").write_text(json.dumps(table.tolist()))
    for file in ("ranks.pt", "used.npy", "used.json"):
        assert used_codes(tmp_path / file) == table.tolist()


def test_a_truncated_codec_speaks_in_ranks(tmp_path):
    codec = filled_codec("vq", "nearest", 12)
    codes = codec.encode(picture())
    seen = sorted({0, *codes.unique().tolist()})[:-1]  # one code that occurs is left out
    (tmp_path / "used.json").write_text(json.dumps(seen))
    config = codec_of((32, 64, 128), "nearest", 64, 12, z=16, layers=1)
    short = ImageVQ(**config, used=str(tmp_path / "used.json")).eval()
    short.load_state_dict(codec.state_dict())
    ranks = short.encode(picture())
    assert (short.classes, codec.classes) == (len(seen), 64) and ranks.max() < len(seen)
    kept = torch.isin(codes, torch.tensor(seen))
    assert not ranks[~kept].any() and 0 < (~kept).sum() < kept.sum()
    assert torch.equal(torch.tensor(seen)[ranks][kept], codes[kept])
    with torch.no_grad():
        assert torch.equal(short.decode(ranks), codec.decode(codes.where(kept, torch.tensor(0))))


@pytest.mark.parametrize(
    ("used", "said"),
    [([3, 1], "increasing"), ([1, 1], "increasing"), ([], "0 to 7"), ([8], "0 to")],
)
def test_tables_that_make_no_sense(used, said):
    with pytest.raises(ValueError, match=said):
        Truncation(used, 8)


def test_gradients_pass_straight_through():
    """d vectors / d z is the identity; the loss moves codes to vectors and vectors to codes."""
    torch.manual_seed(0)
    quantiser = Nearest(5, 3, commitment=0.25)
    quantiser.codes.data.normal_()
    z = torch.randn(2, 3, 2, 2, requires_grad=True)
    out = quantiser(z)
    weight = torch.randn(2, 3, 2, 2)
    (slope,) = torch.autograd.grad((weight * out.vectors).sum(), z)
    assert torch.equal(slope, weight)
    chosen = quantiser.codes[out.codes].movedim(-1, 1).reshape(z.shape)
    torch.testing.assert_close(out.vectors, chosen)
    distance = torch.cdist(z.movedim(1, -1).reshape(-1, 3), quantiser.codes)
    assert torch.equal(out.codes.flatten(), distance.argmin(1))
    to_z, to_codes = torch.autograd.grad(out.loss, (z, quantiser.codes))
    torch.testing.assert_close(to_z, 0.25 * 2 * (z - chosen) / z.numel())
    wanted = torch.zeros(5, 3).index_add_(
        0, out.codes.flatten(), (2 * (chosen - z) / z.numel()).movedim(1, -1).reshape(-1, 3)
    )
    torch.testing.assert_close(to_codes, wanted.detach())


def test_moving_codes_by_hand():
    """Two codes on a line, three vectors, decay 0.5."""
    quantiser = MovingCodes(2, 1, decay=0.5, dead=0.0)
    quantiser.codes.copy_(torch.tensor([[0.0], [10.0]]))
    quantiser.cluster_size.copy_(torch.tensor([2.0, 4.0]))
    quantiser.cluster_sum.copy_(torch.tensor([[0.0], [40.0]]))
    assert quantiser.learn(torch.tensor([[1.0], [3.0], [8.0]])) == 0
    assert quantiser.cluster_size.tolist() == [2.0, 2.5]  # (2 + 2) / 2, (4 + 1) / 2
    assert quantiser.cluster_sum.flatten().tolist() == [2.0, 24.0]  # (0 + 4) / 2, (40 + 8) / 2
    torch.testing.assert_close(quantiser.codes, torch.tensor([[1.0], [9.6]]))
    before = quantiser.codes.clone()
    quantiser.eval()(torch.full((1, 1, 1, 1), 5.0))
    assert torch.equal(quantiser.codes, before)


def test_dead_codes_start_again_where_vectors_are():
    """A code that nothing is near takes the place of the vector that is worst served."""
    quantiser = MovingCodes(3, 2)
    quantiser.codes.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0], [-500.0, 0.0]]))
    quantiser.cluster_size.copy_(torch.tensor([50.0, 50.0, 0.1]))
    quantiser.cluster_sum.copy_(quantiser.codes * quantiser.cluster_size[:, None])
    z = torch.tensor([[0.0, 0.0], [9.0, 9.0], [0.0, 6.0]])
    assert quantiser.learn(z, torch.Generator().manual_seed(0)) == 1
    assert quantiser.codes[2].tolist() == [0.0, 6.0]
    assert quantiser.cluster_size[2] > 0.03 * quantiser.cluster_size.mean()
    torch.testing.assert_close(
        quantiser.cluster_sum[2] / quantiser.cluster_size[2], quantiser.codes[2]
    )
    assert quantiser.learn(z, torch.Generator().manual_seed(1)) == 0


def test_a_fresh_codebook_takes_its_places_from_the_first_batch():
    torch.manual_seed(0)
    quantiser = MovingCodes(16, 4)
    z = 7 + torch.randn(2, 4, 4, 4)
    hit = len(quantiser.assign(z).unique())
    out = quantiser(z, torch.Generator().manual_seed(0))
    assert out.revived == 16 - hit > 10 and len(out.codes.unique()) >= out.revived
    assert (quantiser.codes.mean() - 7).abs() < 0.5
    a, b = MovingCodes(16, 4), MovingCodes(16, 4)
    b.load_state_dict(a.state_dict())
    for each in (a, b):
        each(z, torch.Generator().manual_seed(5))
    assert torch.equal(a.codes, b.codes)


def test_gumbel_trains_both_sides():
    torch.manual_seed(0)
    quantiser = Gumbel(6, 3)
    z = torch.randn(2, 3, 2, 2, requires_grad=True)
    out = quantiser(z, torch.Generator().manual_seed(1))
    codes = quantiser.codes[out.codes].movedim(-1, 1).reshape(z.shape)
    torch.testing.assert_close(out.vectors, codes)
    (out.vectors.square().sum() + out.loss).backward()
    for tensor in (z, quantiser.codes, quantiser.logits.weight):
        assert tensor.grad.abs().max() > 0
    for p in quantiser.logits.parameters():  # equal logits: no divergence from uniform
        torch.nn.init.zeros_(p)
    assert abs(quantiser(z).loss) < 1e-8
    quantiser.logits.bias.data[2] = 50.0  # one code alone: log of six
    assert quantiser(z).loss.item() == pytest.approx(5e-4 * np.log(6), rel=1e-4)


def test_small_codec_shapes_and_size():
    codec = ImageVQ(**SMALL).eval()
    assert codec.factor == 8 and codec.classes == SMALL["quantiser"]["codes"]
    assert 2 * sum(v.numel() for v in codec.state_dict().values()) <= 2.5e6  # bytes in bf16
    x = torch.rand(2, 3, 64, 64) * 2 - 1
    tokens = codec.encode(x)
    assert tokens.shape == (2, 64) and tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < codec.classes
    back = codec.decode(tokens)
    assert back.shape == x.shape and back.abs().max() <= 1
    with pytest.raises(ValueError, match="square"):
        codec.decode(tokens[:, :63])
    with pytest.raises(ValueError, match="shrinks 8 times"):
        ImageVQ(**SMALL | {"decoder": SMALL["decoder"] | {"out_channels": 3 * 16**2}})
    with pytest.raises(ValueError, match="3 f"):
        ImageVQ(**SMALL | {"encoder": SMALL["encoder"] | {"in_channels": 20}})


TINY = {
    "encoder": {
        "in_channels": 192,
        "out_channels": 8,
        "down_block_types": ["DownEncoderBlock2D"],
        "block_out_channels": [32],
        "layers_per_block": 0,
    },
    "decoder": {
        "in_channels": 8,
        "out_channels": 192,
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [32],
        "layers_per_block": 0,
    },
    "quantiser": {"kind": "ema", "codes": 32, "dim": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty plain pictures, each with a darker square."""
    path = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = np.broadcast_to(rng.integers(120, 255, 3), (40, 48, 3)).astype(np.uint8).copy()
        x, y = rng.integers(4, 24, 2)
        pixels[y : y + 12, x : x + 12] //= 3
        Image.fromarray(pixels).save(path / f"{i:02d}.png")
    return path


def settings(folder: Path, out: Path, **changed):
    own = dict(data=str(folder), size=32, batch=8, budget_s=0, log_every=10, codec=TINY)
    return resolve("codec-vq", own | changed, out=str(out))


def load_tokens(folder: Path) -> ImageVQ:
    codec = ImageVQ(**codec_folder.settings(folder, "image_vq"))
    return codec_folder.fill(folder, "image_vq", codec).eval()


def test_a_training_learns_and_resumes_exactly(tmp_path, folder):
    """120 steps at once, and the same in two sessions, give the same weights bit for bit."""
    losses: list[float] = []
    train(
        settings(folder, tmp_path / "whole", steps=120), lambda p: losses.append(p.losses["loss"])
    )
    assert losses[-1] < 0.8 * losses[0]
    whole = codec_folder.metadata(tmp_path / "whole")["image_vq"]
    fresh = VQLearner(settings(folder, tmp_path / "none")).eval().measure(10)
    assert whole["steps"] == 120 and whole["psnr_db"] > fresh["psnr_db"] + 5
    assert 0 < whole["codes_used"] <= 1 < whole["perplexity"] <= 32
    assert (tmp_path / "whole" / "image_vq.png").stat().st_size > 1000

    def stop(progress):
        if progress.step == 60:
            signal.raise_signal(signal.SIGINT)

    assert train(settings(folder, tmp_path / "parts", steps=120), stop)["stopped"]
    assert not (tmp_path / "parts" / "image_vq.safetensors").exists()
    assert train(settings(folder, tmp_path / "parts", steps=120))["step"] == 120
    one, two = (load_tokens(tmp_path / n).state_dict() for n in ("whole", "parts"))
    assert set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)


def test_what_a_training_refuses(tmp_path, folder):
    train(settings(folder, tmp_path / "run", steps=1))
    with pytest.raises(ConfigError, match="another codec"):
        train(settings(folder, tmp_path / "run", codec=TINY | {"used": [0, 1]}))
    with pytest.raises(ConfigError, match="another seed"):
        train(settings(folder, tmp_path / "run", steps=1, seed=3))
    with pytest.raises(ConfigError, match="data .*nowhere' is unknown"):
        train(settings(tmp_path / "nowhere", tmp_path / "b"))
    with pytest.raises(ConfigError, match="multiple of 8"):
        train(settings(folder, tmp_path / "c", size=30))
    with pytest.raises(StoreError, match="everyway train codec-vq"):
        load_tokens(tmp_path / "b")
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_a_folder_is_seen_whole_before_it_is_seen_again(folder, tmp_path):
    seen, unseen = (
        lambda at, stream=stream: sources.pictures(stream(at)).flatten(1)
        for stream in sources.streams(settings(folder, tmp_path), 32)
    )
    one, two = (seen(range(n, n + 18)) for n in (0, 18))
    assert len(one.unique(dim=0)) == 18 and not torch.equal(one, two)
    assert torch.equal(one.unique(dim=0), two.unique(dim=0))
    assert len(torch.cat([one, unseen(range(2))]).unique(dim=0)) == 20


def test_the_critic_and_the_codec_are_moved_by_their_own_terms(tmp_path, folder):
    torch.manual_seed(0)
    critic, wanted = Critic(8), torch.randn(2, 3, 16, 16)
    made = torch.randn(2, 3, 16, 16, requires_grad=True)
    adversarial_loss(critic, made, wanted, 0.5).backward()
    (wish,) = torch.autograd.grad(-0.5 * critic(made).mean(), made)
    torch.testing.assert_close(made.grad, wish)
    hinge = 0.5 * ((1 - critic(wanted)).relu().mean() + (1 + critic(made.detach())).relu().mean())
    for p, slope in zip(critic.parameters(), torch.autograd.grad(hinge, critic.parameters())):
        torch.testing.assert_close(p.grad, slope)
    metadata = train(settings(folder, tmp_path, steps=2, adversarial=0.1, adversarial_from=1))
    assert metadata["step"] == 2 and np.isfinite(metadata["losses"]["loss"])


@pytest.mark.slow
def test_the_small_codec_on_emoji_scenes(tmp_path):
    """Two minutes of the real thing: far above a flat mean picture, most codes in use."""
    train(resolve("codec-vq", {"batch": 16}, out=str(tmp_path), budget_s=120))
    metadata = codec_folder.metadata(tmp_path)["image_vq"]
    assert (
        metadata["psnr_db"] > 17 and metadata["codes_used"] > 0.5 and metadata["perplexity"] > 100
    )
