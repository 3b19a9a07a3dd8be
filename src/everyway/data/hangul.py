"""Hangul in Latin letters, by the Revised Romanization of Korean (South Korea, notice 2000-8).

Letters follow the sound as far as spelling tells it: neither an n that speech inserts (알약 allyak)
nor a d or t that i softens (굳이 guji) is heard here.
"""

from __future__ import annotations

import re
import unicodedata

FIRST = "g kk n d tt r m b pp s ss - j jj ch k t p h".split()  # "-" is ㅇ, silent
VOWEL = "a ae ya yae eo e yeo ye o wa wae oe yo u wo we wi yu eu ui i".split()
LAST = "- k k k n n n t l k m l l l p l m p p t t ng t t k t p t".split()  # before a consonant
CARRIED = "- g kk ks n nj n d r lg lm lb ls lt lp r m b ps s ss ng j ch k t p -".split()  # a vowel
ASPIRATED = {27: "", 6: "n", 15: "l"}  # ㅎ, ㄶ, ㅀ: what is left where ㅎ goes into g, d or j
MEETING = {  # a last consonant and a first one -> what is heard
    "kn": "ngn", "km": "ngm", "kr": "ngn", "tn": "nn", "tm": "nm", "tr": "nn", "pn": "mn",
    "pm": "mm", "pr": "mn", "mr": "mn", "ngr": "ngn", "nr": "ll", "ln": "ll", "lr": "ll",
}  # fmt: skip


def romanised(text: str) -> str:
    """`text` with every Hangul syllable in Latin letters; all other characters stay."""
    return re.sub("[가-힣]+", lambda word: _word(word[0]), unicodedata.normalize("NFC", text))


def _word(word: str) -> str:
    """A run of syllables; U+AC00 + 588 first + 28 vowel + last is how Unicode numbers them."""
    made, before = "", 0
    for first, rest in (divmod(ord(c) - 0xAC00, 588) for c in word):
        made += _between(before, FIRST[first]) + VOWEL[rest // 28]
        before = rest % 28
    return (made + LAST[before]).replace("-", "")


def _between(last: int, first: str) -> str:
    """The letters of one syllable's last consonant and the next one's first."""
    if first == "-":
        return CARRIED[last]
    if last in ASPIRATED and first in "gdj":
        return ASPIRATED[last] + {"g": "k", "d": "t", "j": "ch"}[first]
    return MEETING.get(LAST[last] + first, LAST[last] + first)
