"""Image tokens that are fitted: every different cell has a code, and scenes come back by them; a
network starts from what they look like."""

from __future__ import annotations

import torch

from everyway.checkpoints import codec_folder
from everyway.codecs.cell_vq import CellVQ
from everyway.codecs.text_tokens import word_tokens
from everyway.codecs.token_table import TokenTable
from everyway.data.lattice import Lattice
from everyway.data.sample import to_tensor
from everyway.media import to_picture
from everyway.metrics.lattice import crispness, read
from everyway.train import fitted, sources
from everyway.train.config import resolve
from everyway.train.systems import prepared


def test_scenes_come_back_by_their_tokens():
    """Read right, every one, and at 30 dB: the exact judge knows no mistake of its own."""
    data = Lattice()
    cells = to_tensor(fitted.cells_of(data, 400))
    codec = CellVQ(len(cells), cell=32, channels=128)
    codec.fit(cells)
    assert codec.encode(cells).flatten().tolist() == list(range(codec.classes))
    scenes = [data.scene(i) for i in range(50)]
    tokens = codec.encode(to_tensor([data.sample(i).image for i in range(50)]))
    assert tokens.shape == (50, 9) and tokens.dtype == torch.int64
    pictures = [to_picture(pixels) for pixels in codec.decode(tokens)]
    assert read(pictures) == [scene.canonical() for scene in scenes]
    assert min(crispness(pictures)) > 30


def test_a_network_starts_from_what_codes_look_like(tmp_path):
    """Codes that look alike have like rows in embedding and head, whatever their numbers."""
    cells = to_tensor(fitted.cells_of(Lattice(), 60))
    codec = CellVQ(len(cells), cell=32, channels=16)
    codec.fit(cells)
    settings = {"kind": "CellVQ", "codes": len(cells), "cell": 32, "channels": 16}
    codec_folder.write(tmp_path, "image_vq", codec, settings, {})
    spec = word_tokens(c for i in range(60) for c in Lattice().sample(i).captions)
    table = {"tokenizer": spec, "length": 12, "dim": 8}
    text = TokenTable(**table)
    codec_folder.write(tmp_path, "text", text, {"kind": "TokenTable", **table}, {})
    given = {"tokens": str(tmp_path), "codecs": str(tmp_path)}
    system = prepared(resolve("mini-vq", given))
    assert sources.image_size(system) == 96 and system.shapes(2)["image"] == (2, 9)
    codes = system.codecs["image"].codes
    looks = torch.nn.functional.normalize(codes / codes.std(0))
    network = system.network
    for rows in (network.embed["image"].weight[:-1], network.head["image"].weight):
        rows = torch.nn.functional.normalize(rows.detach())
        assert torch.allclose(rows @ rows.T, looks @ looks.T, atol=1e-4)
