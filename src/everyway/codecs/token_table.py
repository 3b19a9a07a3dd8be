"""A text latent without a network: one vector for each token, read back as the nearest one.

Vectors are fitted by `train.looks`: they say what the pictures look like whose captions have the
token, and the token's language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from everyway.codecs.bigrams import Bigrams
from everyway.codecs.text_tokens import PromptError, Tokens
from everyway.data.captions import Lexicon, Point, completed, language, plain
from everyway.data.reading import parse, read
from everyway.data.sample import Scene, SceneObject

QUALIFYING = 0.95
"""How strongly the size of an object is painted, whose name has 1.  Nearly all attention goes to
the highest score: at 1 sizes took it from names, at 0 all objects became large (docs/LOG.md)."""


class TokenTable(nn.Module):
    """Sentences <-> (B, length, dim); padding is the zero vector.

    tokenizer: the JSON of a tokenizer, as for `Tokens`.
    length: of a text in tokens, its end mark among them.  dim: of a vector.
    lexicon: the plain data of a `Lexicon`, for a codec that knows its scenes alone: a text in any
    words is then read as the plain caption that states the same.
    spoken: with a lexicon, the language of that caption; "" is that of the text.
    pairs: how many different pairs its `bigrams` have; 0 for a codec without bigrams.
    """

    def __init__(
        self,
        tokenizer: str,
        length: int,
        dim: int,
        lexicon: Mapping[str, Any] | None = None,
        spoken: str = "",
        pairs: int = 0,
    ) -> None:
        super().__init__()
        self.spoken = spoken
        self.lexicon = Lexicon(**lexicon) if lexicon else None
        self.tokens = Tokens(tokenizer, length)
        self.register_buffer("table", torch.zeros(len(self.tokens), dim))
        self.bigrams = Bigrams(self.tokens, pairs) if pairs else None

    def encode(self, raw: Sequence[str]) -> Tensor:
        """Raises PromptError for texts that cannot be read."""
        return self.latent(self.ids(raw))

    def ids(self, raw: Sequence[str]) -> Tensor:
        """(B, length) int64; raises as `encode` does."""
        return self.tokens.encode([self.phrased(text) for text in raw])

    def phrased(self, text: str) -> str:
        """The plain caption that states the same; any text where there is no lexicon.

        Raises PromptError for a text that names nothing of the lexicon.
        """
        if self.lexicon is None or not text.strip():
            return text
        stated = parse(text, self.lexicon)
        if stated is None:
            raise PromptError(self._nothing_known(text))
        return plain(stated, self.lexicon, self.spoken or language(text))

    def completed(self, text: str, where: Mapping[str, Point] | None = None) -> str:
        """A prompt with what it leaves unsaid as it usually is; any text where there is no lexicon.

        where: phrase -> the middle of where it is painted, which says where its objects are.
        Raises PromptError as `phrased` does.
        """
        if self.lexicon is None or not text.strip():
            return text
        stated = parse(self.phrased(text), self.lexicon)
        meant = {phrase: parse(phrase, self.lexicon) for phrase in where or {}}
        own = {name: where[p] for p, scene in meant.items() if scene for name in scene.names}
        return plain(completed(stated, own), self.lexicon, self.spoken or language(text))

    def places(self, text: str, phrase: str) -> Tensor:
        """(length,) in [0, 1]: how much each token of `encode(text)` belongs to a phrase of it.

        phrase: part of the text, or all of it.  If it names objects of the lexicon, in any words,
        their names have 1 and their sizes QUALIFYING: a vector is the same wherever its token
        stands, so "large" by itself would not say of which object.
        """
        caption = self.phrased(text)
        meant = parse(phrase, self.lexicon) if self.lexicon and phrase != text else None
        if meant is None:
            return self.tokens.places(caption, caption if phrase == text else phrase)
        out = torch.zeros(self.tokens.length)
        for thing in parse(caption, self.lexicon).objects:
            if thing.name in meant.names:
                sized, named = replace(thing, place=None), SceneObject(name=thing.name)
                for noun, share in ((sized, QUALIFYING), (named, 1.0)):
                    words = plain(Scene(objects=(noun,)), self.lexicon, language(caption))
                    out[self.tokens.places(caption, re.sub("^an? ", "", words))] = share
        return out

    def remarks(self, text: str, where: Mapping[str, Point] | None = None) -> list[str]:
        """How a prompt is `completed`, where it leaves something unsaid, and what of it is not
        drawn, each in one line, with the nearest words that are known."""
        if self.lexicon is None:
            unread = self.tokens.unread(text)
            return [f"not understood: {', '.join(unread)}"] if unread else []
        reading, made = read(text, self.lexicon), []
        if (taken := self.completed(text, where)) != self.phrased(text):
            made.append(f"taken as: {taken}")
        if reading.more:
            made.append(f"one or two objects are drawn; left out: {', '.join(reading.more)}")
        if reading.several:
            made.append(f"each is drawn once, not several times: {', '.join(reading.several)}")
        if reading.unread:
            near = {word: self._near(word) for word in reading.unread}
            words = [w + (f" (did you mean {n}?)" if n else "") for w, n in near.items()]
            made.append(f"not understood: {', '.join(words)}")
        return made

    def _nothing_known(self, text: str) -> str:
        known = self._names(text)
        like = [near for word in re.findall(r"\w+", text.lower()) if (near := self._near(word))]
        hint = f"did you mean {like[0]}?" if like else f"say one of {', '.join(known[:8])}, ..."
        return f"this model knows no object in {text[:40]!r}; {hint}"

    def _names(self, text: str) -> list[str]:
        """Of the objects, in the language of a text."""
        objects = self.lexicon.objects
        return list(objects.values() if language(text) == "ko" else objects)

    def _near(self, word: str) -> str | None:
        """The object whose name is nearest, letter by letter in Korean too."""
        known = {unicodedata.normalize("NFD", name): name for name in self._names(word)}
        near = get_close_matches(unicodedata.normalize("NFD", word), known, 1, 0.75)
        return known[near[0]] if near else None

    def latent(self, ids: Tensor) -> Tensor:
        """(B, length, dim) of ids (B, length)."""
        return self.table[ids.to(self.table.device)]

    def marginals(self, scores: Tensor) -> Tensor:
        """(B, L, V) of scores (B, L, V), by its `bigrams` (`Bigrams.marginals`)."""
        return self.bigrams.marginals(scores)

    def decode(self, state: Tensor) -> list[str]:
        """The nearest token at every place, up to the end mark."""
        return self.tokens.decode(self.nearest(state))

    def nearest(self, state: Tensor) -> Tensor:
        """(B, length) ids."""
        return torch.cdist(state.to(self.table), self.table).argmin(-1)

    def count(self, texts: Iterable[str]) -> int:
        """Counts the bigrams of texts; returns how many different `pairs` these have.

        Raises PromptError for texts that cannot be read.
        """
        self.bigrams = Bigrams.counted(self.tokens, [self.phrased(text) for text in texts])
        return len(self.bigrams.counts)

    @torch.no_grad()
    def fit(self, vectors: Tensor) -> None:
        """Takes vectors (vocabulary, dim); that of padding becomes zero."""
        self.table.copy_(vectors)
        self.table[self.tokens.pad] = 0.0
