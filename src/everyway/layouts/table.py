"""Every foreign layout that can be read and written, in one table.

A network's settings are the config of its system; a codec's are those of its class, or a part of
them, since the text latent is published in two files.
"""

from __future__ import annotations

from everyway.layouts import (
    autoencoder,
    caption,
    clip,
    optimus,
    unidiffuser,
    uvit,
    versatile,
    vq_codec,
    vq_network,
)
from everyway.layouts.file_layout import FileLayout, Whole
from everyway.layouts.vq_diffusion import WHOLE

LAYOUTS: tuple[FileLayout, ...] = (
    *versatile.LAYOUTS,
    *vq_network.LAYOUTS,
    *vq_codec.LAYOUTS,  # an autoencoder has some of their marks
    clip.OPENAI,
    *unidiffuser.LAYOUTS,
    *uvit.LAYOUTS,
    *autoencoder.LAYOUTS,
    *caption.LAYOUTS,
    *clip.LAYOUTS,
    *optimus.LAYOUTS,
    *clip.CONTEXTS,
)
"""The first whose marks a file has is its layout; explicit names and parts choose among them."""

WHOLES: tuple[Whole, ...] = (WHOLE, *versatile.WHOLES)
"""Every file that holds all parts of a model."""
