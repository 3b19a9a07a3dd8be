"""Captions made clean: those of the web before a training, and those that a model writes.

Source: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332; its released code has the latter.
"""

from __future__ import annotations

import re

_STRIPPED = (
    re.compile(r"<[^<>]*>"),  # HTML
    re.compile(r"&#?\w+;"),
    re.compile(r"(?:https?://|www\.)\S+"),
    re.compile(r"\S+@\S+\.\w+"),
    re.compile(r"\([^()]*\)|\[[^][]*\]|\{[^{}]*\}"),
    re.compile(r"[-/_]"),
    re.compile(r"[\"“”„«»`]|(?<!\w)['‘’]|['‘’](?!s\b)"),  # all quotes but that of a possessive
)
_PIECE = re.compile(r"(\s*)(\w+|[^\w\s])")


def cleaned(caption: str) -> str:
    """A caption of the web without HTML, links, addresses, what stands in brackets, the characters
    - / _ and quotes; a possessive 's stays."""
    for pattern in _STRIPPED:
        caption = pattern.sub(" ", caption)
    return re.sub(r"\s+([.,;:!?])", r"\1", " ".join(caption.split()))


def without_repeats(caption: str) -> str:
    """A caption in which nothing is said twice in a row, of one word and mark or of many."""
    pieces = _PIECE.findall(caption)  # (space before it, word or mark)
    length = 1
    while 2 * length <= len(pieces):
        pieces = _once(pieces, length)
        length += 1
    return "".join(space + word for space, word in pieces).strip()


def _once(pieces: list[tuple[str, str]], length: int) -> list[tuple[str, str]]:
    """Without what equals the `length` pieces before it."""
    kept: list[tuple[str, str]] = []
    words = [word for _, word in pieces]
    k = 0
    while k < len(pieces):
        said = [word for _, word in kept[-length:]]
        if len(said) == length and said == words[k : k + length]:
            k += length
        else:
            kept.append(pieces[k])
            k += 1
    return kept
