"""Text as token ids: one shared BPE for every language, trained on the captions (`tokenizers`)."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from everyway.errors import UsageError

PAD, END, UNKNOWN = "[pad]", "[end]", "[unk]"
SPECIAL = (PAD, END, UNKNOWN)  # ids 0, 1, 2
PRIVATE = 0xF0000
"""The first character of a private use area of Unicode, whose characters no text has."""
PHRASES = 1000
"""How many `frequent_phrases` finds at most; of more, the most frequent."""

NO_SPACE = "|".join(
    [
        r"(?<=\w) (?=['’/-] \w)",  # isn't, t-shirt
        r"(?<=\w ['’/-]) (?=\w)",
        r"(?<=\d\.) (?=\d)",  # 0.5
        r"(?<=\w) (?=[:;%)])",
        r"(?<=\() (?=\w)",
    ]
)
"""Where words and marks stand together in a text, as a regular expression."""


class PromptError(UsageError):
    """A text that a model cannot read; the message says how to mend it."""


def tokenizer_of(spec: str) -> Tokenizer:
    """The tokenizer of a JSON.  Raises UsageError for what is none."""
    try:
        return Tokenizer.from_str(spec)
    except Exception as error:  # tokenizers raises nothing more precise
        raise UsageError(f"the tokenizer cannot be read ({error})") from None


def phrase_tokens(tokenizer: Tokenizer, text: str, phrase: str) -> list[int]:
    """The places of the tokens of a phrase among those of a text, wherever it stands in it.

    Case and the width of white space do not matter; "cat" is not in "caterpillar", but a Korean
    particle may follow a word.
    """
    words = r"\s+".join(map(re.escape, phrase.split()))
    other = "[^\\W가-힣]"
    found = re.finditer(rf"(?<!{other}){words}(?!{other})", text, re.IGNORECASE)
    spans = [match.span() for match in found if words]
    tokens = enumerate(tokenizer.encode(text, add_special_tokens=False).offsets)
    return [k for k, (a, b) in tokens if any(a < end and start < b for start, end in spans)]


class Tokens:
    """Sentences <-> ids (B, length) int64: the tokens, one end mark, padding.

    spec: the JSON of a `tokenizers.Tokenizer` whose first three ids are padding, end and unknown.
    Texts are lower-cased, normalised (NFKC), and their white space is folded.
    """

    def __init__(self, spec: str, length: int) -> None:
        self.tokenizer = tokenizer_of(spec)
        self.tokenizer.encode_special_tokens = True  # "[end]" in a text is a word in brackets
        self.length = length
        self.pad, self.end, self.unknown = (self.tokenizer.token_to_id(t) for t in SPECIAL)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def unread(self, text: str) -> list[str]:
        """The words of a text that are no known token, each once."""
        read = self.tokenizer.encode(text)
        odd = (text[a:b] for own, (a, b) in zip(read.ids, read.offsets) if own == self.unknown)
        return list(dict.fromkeys(word for word in odd if re.search(r"\w", word)))

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Raises PromptError for a text that is empty, too long, or wholly unknown."""
        out = torch.full((len(texts), self.length), self.pad, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            ids = self.tokenizer.encode(text).ids
            known = [i for i in ids if i != self.unknown]
            if not text.strip():
                raise PromptError("the text is empty; say what to draw, such as 'a fox on blue'")
            if len(ids) >= self.length:
                raise PromptError(
                    f"the text has {len(ids)} tokens and this model reads at most "
                    f"{self.length - 1}; shorten it"
                )
            if not self.tokenizer.decode(known).strip():
                raise PromptError(f"this model can read nothing of {text[:40]!r}")
            row[: len(ids)] = torch.tensor(ids)
            row[len(ids)] = self.end
        return out

    def places(self, text: str, phrase: str) -> Tensor:
        """(length,) bool, True where `encode` has the tokens of a phrase of the text."""
        out = torch.zeros(self.length, dtype=torch.bool)
        out[phrase_tokens(self.tokenizer, text, phrase)] = True
        return out

    def nothing(self, batch: int) -> Tensor:
        """ids (batch, length) of an empty text, which `encode` refuses from a person."""
        out = torch.full((batch, self.length), self.pad, dtype=torch.long)
        out[:, 0] = self.end
        return out

    def decode(self, ids: Tensor) -> list[str]:
        """Text up to each row's end mark."""
        rows = []
        for row in ids.tolist():
            stop = row.index(self.end) if self.end in row else len(row)
            rows.append([i for i in row[:stop] if i not in (self.pad, self.unknown)])
        return [self.tokenizer.decode(row).strip() for row in rows]

    def mask(self, ids: Tensor) -> Tensor:
        """(B, length) bool: the tokens and their end mark, not the padding."""
        return ids != self.pad


def word_tokens(texts: Iterable[str], phrases: Sequence[str] = ()) -> str:
    """The JSON of a tokenizer whose tokens are the words and punctuation marks of `texts`.

    phrases: each is a token, too, if it occurs in the texts; where several begin at one place, the
    longest is read.
    """
    texts, words = list(texts), _words()
    _train(words, texts)
    if not phrases:
        return words.to_str()
    both = _words(phrases)
    _train(both, texts)
    both = _words([phrase for phrase in phrases if both.token_to_id(phrase) is not None])
    _train(both, [*texts, *(word for word in words.get_vocab() if word not in SPECIAL)])
    return both.to_str()


def frequent_phrases(texts: Iterable[str], least: int) -> list[str]:
    """Words that stand together `least` times or more in texts, such as "on the left", in
    alphabetical order.

    They are the merges of byte-pair encoding, with words and marks in the place of letters.
    Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2015,
    arXiv 1508.07909.
    """
    reader, letters = _words(), dict[str, str]()

    def spelt(text: str) -> str:
        """A text with one letter for each word."""
        own = reader.pre_tokenizer.pre_tokenize_str(reader.normalizer.normalize_str(text))
        return "".join(letters.setdefault(word, chr(PRIVATE + len(letters))) for word, _ in own)

    merges = Tokenizer(models.BPE())
    spellings = [spelt(text) for text in texts]
    size = len(letters) + PHRASES
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=least, show_progress=False)
    merges.train_from_iterator(spellings, trainer)
    words = {letter: word for word, letter in letters.items()}
    found = (token for token in merges.get_vocab() if len(token) > 1)
    return sorted(reader.decoder.decode([words[c] for c in token]) for token in found)


def _words(phrases: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer that reads words, punctuation marks and phrases, without any token yet."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = _normaliser()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if phrases:
        longest = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
        pieces = "|".join([*map(_as_written, longest), r"\w+", r"[^\w\s]+"])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.WordPiece(cleanup=True),  # no space before a comma
            decoders.Fuse(),
            decoders.Replace(Regex(NO_SPACE), ""),
        ]
    )
    return tokenizer


def _train(tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Makes a token of everything that a tokenizer reads in texts."""
    trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)


def _as_written(phrase: str) -> str:
    """The regular expression of a phrase, whose ends are ends of words."""
    ends = (r"\b" if re.match(r"\w", end) else "" for end in (phrase[0], phrase[-1]))
    return re.escape(phrase).join(ends)


def _normaliser() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )


def train_tokens(texts: Iterable[str], size: int = 2000) -> str:
    """The JSON of a BPE with `size` tokens; every ASCII letter, digit and mark is one of them."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = _normaliser()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=[*string.ascii_lowercase, *string.digits, *string.punctuation, "▁"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()
