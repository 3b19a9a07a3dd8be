"""Token ids as published models have them: CLIP's on the way in, GPT-2's on the way out.

Source: Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale",
2023, arXiv 2303.06555.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from everyway.codecs.text_tokens import phrase_tokens, tokenizer_of
from everyway.errors import UsageError

START, STOP = "<|startoftext|>", "<|endoftext|>"
END = "<|EOS|>"
"""The end mark that UniDiffuser adds to GPT-2's vocabulary, as its last id."""


class ClipTokens:
    """Sentences -> ids (B, length): a start mark, the tokens, an end mark, padding.

    spec: the JSON of CLIP's tokenizer.  pad: None pads with end marks.  Longer sentences are cut
    before their end mark, as published.
    """

    def __init__(self, spec: str, length: int, pad: int | None = None) -> None:
        self.tokenizer = tokenizer_of(spec)
        self.length = length
        self.start, self.end = (_id(self.tokenizer, mark) for mark in (START, STOP))
        self.pad = self.end if pad is None else pad

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def of(self, vocabulary: int) -> ClipTokens:
        """Itself; UsageError for a text network of another number of tokens."""
        if len(self) != vocabulary:
            raise UsageError(
                f"the tokenizer has {len(self)} tokens and the text network {vocabulary}; give the "
                "tokenizer that was published with it"
            )
        return self

    def encode(self, texts: Sequence[str]) -> Tensor:
        out = torch.full((len(texts), self.length), self.pad, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids[: self.length - 2]
            row[: len(ids) + 2] = torch.tensor([self.start, *ids, self.end])
        return out

    def remarks(self, text: str) -> list[str]:
        """That a text is cut, where it is, and after which words."""
        ids, most = self.tokenizer.encode(text, add_special_tokens=False).ids, self.length - 2
        if len(ids) <= most:
            return []
        end = self.tokenizer.decode(ids[:most]).strip()[-30:]
        return [f"the text has {len(ids)} tokens and {most} are read, up to {end!r}"]

    def places(self, text: str, phrase: str) -> Tensor:
        """(length,) bool, True where `encode` has the tokens of a phrase of the text."""
        found = [1 + k for k in phrase_tokens(self.tokenizer, text, phrase)]
        out = torch.zeros(self.length, dtype=torch.bool)
        out[[k for k in found if k < self.length - 1]] = True
        return out

    def nothing(self, batch: int) -> Tensor:
        """The empty sentence, `batch` times."""
        return self.encode([""]).expand(batch, -1)

    def mask(self, ids: Tensor) -> Tensor:
        """(B, length) bool: the marks and the tokens, not the padding."""
        return _until(ids == self.end)

    def decode(self, ids: Tensor) -> list[str]:
        return [self.tokenizer.decode(row).strip() for row in _rows(ids, self.mask(ids))]


class CaptionTokens:
    """Sentences <-> ids (B, length): GPT-2's tokens and one end mark, which is also the padding.

    spec: the JSON of GPT-2's tokenizer; the end mark is added to it.
    """

    def __init__(self, spec: str, length: int) -> None:
        self.tokenizer = tokenizer_of(spec)
        self.length = length
        if self.tokenizer.token_to_id(END) is None:
            self.tokenizer.add_special_tokens([END])
        self.end = self.pad = _id(self.tokenizer, END)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> Tensor:
        out = torch.full((len(texts), self.length), self.end, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids[: self.length - 1]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
        return out

    def mask(self, ids: Tensor) -> Tensor:
        """(B, length) bool: the tokens and their end mark."""
        return _until(ids == self.end)

    def decode(self, ids: Tensor) -> list[str]:
        """Text up to each row's end mark."""
        return [self.tokenizer.decode(row).strip() for row in _rows(ids, self.mask(ids))]


class WordPieces:
    """Sentences -> ids (B, longest of them): BERT's class mark, the pieces, its separator; 0 pads.

    spec: the JSON of BERT's tokenizer, in whose cased vocabulary sentences are read in lower case.
    size: of the vocabulary.  longest: pieces that are read, as published.
    Source: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332.
    """

    def __init__(self, spec: str, size: int, longest: int = 77) -> None:
        self.tokenizer, self.longest = tokenizer_of(spec), longest
        _of_size(self.tokenizer, size, "BERT")
        self.first, self.last = (_id(self.tokenizer, mark) for mark in ("[CLS]", "[SEP]"))

    def encode(self, texts: Sequence[str]) -> Tensor:
        rows = [[self.first, *self._pieces(text)[: self.longest], self.last] for text in texts]
        out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for row, ids in zip(out, rows):
            row[: len(ids)] = torch.tensor(ids)
        return out

    def remarks(self, text: str) -> list[str]:
        """That a text is cut, where it is."""
        found = len(self._pieces(text))
        if found <= self.longest:
            return []
        return [f"the text has {found} word pieces and the first {self.longest} are read"]

    def _pieces(self, text: str) -> list[int]:
        return self.tokenizer.encode(text.lower(), add_special_tokens=False).ids


class SentenceTokens:
    """Sentences <-> ids, in GPT-2's vocabulary with three marks after it: padding, begin and end.

    spec: the JSON of GPT-2's tokenizer.  size: of the vocabulary, the marks counted.
    Source: Li et al., "Optimus", 2020, arXiv 2004.04092.
    """

    MARKS = ("<PAD>", "<BOS>", "<EOS>")

    def __init__(self, spec: str, size: int) -> None:
        self.tokenizer = tokenizer_of(spec)
        self.tokenizer.add_special_tokens([*self.MARKS])
        _of_size(self.tokenizer, size, "GPT-2")
        self.pad, *self.marks = (_id(self.tokenizer, mark) for mark in self.MARKS)

    def encode(self, text: str) -> list[int]:
        """Of one sentence, after a space as all words are; without marks."""
        return self.tokenizer.encode(f" {text}", add_special_tokens=False).ids

    def decode(self, ids: Tensor) -> list[str]:
        """Each row (N,) between its begin mark and its first end mark, words apart by one space."""
        end = self.marks[1]
        rows = [row[1 : row.index(end) if end in row else None] for row in ids.tolist()]
        return [" ".join(self.tokenizer.decode(row).split()) for row in rows]


def tokenizer_json(where: str) -> str:
    """The JSON of a tokenizer: a tokenizer.json, or a folder that has one or vocab and merges.

    Raises ValueError for anything else.
    """
    path = Path(where)
    path = path / "tokenizer.json" if (path / "tokenizer.json").is_file() else path
    try:
        if path.is_file():
            return Tokenizer.from_str(path.read_text(encoding="utf-8")).to_str()
        vocabulary = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
        kind = _clip if START in vocabulary else _gpt2
        return kind(str(path / "vocab.json"), str(path / "merges.txt"))
    except Exception as error:
        raise UsageError(
            f"{where} holds no tokenizer ({str(error).splitlines()[0]}); give a tokenizer.json, or "
            "a folder with vocab.json and merges.txt"
        ) from None


def _clip(vocabulary: str, merges: str) -> str:
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast(vocabulary, merges).backend_tokenizer.to_str()


def _gpt2(vocabulary: str, merges: str) -> str:
    from transformers import GPT2TokenizerFast

    return GPT2TokenizerFast(vocabulary, merges).backend_tokenizer.to_str()


def _id(tokenizer: Tokenizer, mark: str) -> int:
    found = tokenizer.token_to_id(mark)
    if found is None:
        raise UsageError(f"the tokenizer has no {mark}; give the published one")
    return found


def _of_size(tokenizer: Tokenizer, size: int, whose: str) -> None:
    if (found := tokenizer.get_vocab_size()) != size:
        raise UsageError(
            f"the tokenizer has {found} tokens and {whose} {size}; give the tokenizer that was "
            "published with it"
        )


def _until(end: Tensor) -> Tensor:
    """True up to the first True of each row, that one included."""
    return end.int().cumsum(1) - end.int() == 0


def _rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
