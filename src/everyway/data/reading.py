"""From a text in anybody's words, English or Korean, to the scene that it states.

Objects become letters by order of mention ("a A left of the B on blue"); then each thing that may
be stated is a pattern, which is cut out where it is found.  What is left was not understood.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

from everyway.data.captions import Lexicon, language
from everyway.data.sample import OPPOSITE, Scene, SceneObject

LONGEST = 2000
"""Characters of a text that are read."""
RELATION_OF = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
TINTS = {"grey": "gray", "violet": "purple"}
TINTS_KO = {
    "red": "빨간 빨강 붉은 빨갛고",
    "orange": "주황 오렌지",
    "yellow": "노란 노랑 누런",
    "green": "초록 녹 푸른초록",
    "blue": "파란 파랑 푸른 청",
    "purple": "보라 보랏빛",
    "pink": "분홍 핑크",
    "white": "하얀 하양 흰 백",
    "gray": "회 잿빛",
    "black": "검은 검정 까만 흑",
}
SIZES = {
    "small": "small little tiny mini wee 작은 조그만 조그마한 자그마한 작고 소형 꼬마",
    "large": "large big huge giant enormous great 큰 커다란 거대한 크고 대형 큼직한",
}
SAID_SIZES = {
    "small": "작다 작고 작아 작아요 작습니다",
    "large": "크다 크고 커 커요 큽니다 커다랗다",
}
"""Of an object that is named before."""
SIDES = {
    "left": "left",
    "right": "right",
    "top": "top|above|up|upper",
    "bottom": "bottom|below|underneath|beneath|down|lower",
    "middle": "middle|cent(?:er|re)(?:ed|d)?",
}
SIDES_KO = {
    "left": "왼쪽|왼편|좌측|왼",
    "right": "오른쪽|오른편|우측|오른",
    "top": "위쪽|위편|윗쪽|윗부분|상단|꼭대기|위",
    "bottom": "아래쪽|아래편|아랫쪽|아랫부분|밑쪽|하단|아래|밑",
    "middle": "한가운데|가운데|정중앙|중앙|중간|한복판",
}
BESIDE_KO = "옆쪽|옆|곁|근처"
NUMBERS = (
    "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|[2-9]|[1-9][0-9]+|several|many|"
    "multiple|a few|few|various|a dozen|dozens of"
)
"""English words for more than one."""
AMOUNTS = (
    "(?:an? )?(?:pairs?|couples?|sets?|groups?|bunch|lots?|rows?|piles?|plates?|bits?|pieces?|"
    "loaf|glass|cups?|slices?|bowls?) of|some|all|both|another"
)
"""Words that count as well, and say one thing where it is one as it is: a pair of socks."""
NUMBERS_KO = "두|세|네|다섯|여섯|일곱|여덟|아홉|열|둘|셋|넷|여러|몇|많은|[2-9]|[1-9][0-9]+"
COUNTERS_KO = (
    "마리|개|송이|대|켤레|쌍|자루|권|장|그루|명|채|벌|조각|잔|병|척|다발|그릇|판|덩이|덩어리|알|통"
)
PLURALS = {"tooth": "teeth", "mouse": "mice", "cactus": "cacti", "goose": "geese", "foot": "feet"}
"""Of English names that follow no rule."""
RELATIONS = {
    "left of": r"left(?:[ -]hand)?(?: side)? (?:of|from|to)",
    "right of": r"right(?:[ -]hand)?(?: side)? (?:of|from|to)",
    "above": r"above|over|(?:on )?(?:the )?top of|atop|upon|on",
    "below": r"below|under|underneath|beneath|(?:the )?bottom of",
    "beside": r"next to|beside|besides|alongside|near|near to|close to|adjacent to|by",
}
PARTICLE = (
    "이랑|이고|이며|인데|이다|입니다|이에요|이야|하고|으로|예요|"
    "이|가|은|는|을|를|과|와|의|도|만|랑|로|야"
)
PASSED = frozenset(
    "a an the this that these of and with is are am be being there here it its it's which who "
    "draw drawing drawn me show shows make paint painting create generate give render sketch "
    "please picture image photo photograph illustration scene i i'd we want need would like love "
    "to see can could you us one single some just only very really quite have has having had in "
    "on at side sides edge half part place hand where s while as so for from put placed place "
    "located positioned sitting sits sit standing stands stand shown small-sized plain solid "
    "simple colour color coloured colored background backdrop do "
    "front against over upon then together resting lying floating directly immediately "
    "hello hi hey my your our alone pic pics w both thing things object objects item items emoji "
    "emojis two by near".split()
)
"""English words that state nothing."""
PASSED_KO = re.compile(
    r"(?:그려|그리|그린|그림|사진|이미지|장면|보여|만들|주세|줘|주라|주십|해줘|있|놓|서\s?있|앉|두고|둔|둬|위치|"
    r"그리고|하나|한|좀|배경|바탕|쪽|편|에|의|색|것|거|부탁|올려|올리|올린|맨|같이|함께|해|싶|원해|이|가|은|는|을|를|과|와|"
    r"도|만|으로|로|들|또|나는|내가|저는|단색|아주|매우|어떤|각각|크기|모습|자리|나오|들어간|담긴)[가-힣]*"
    rf"|(?:{COUNTERS_KO})(?:{PARTICLE})?|둘|다"
)
"""Korean words that state nothing, most of them by how they begin."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a text states, and the words of it that were not understood.

    scene: None where no object was named.  more: objects after the first two.
    several: those that are asked for more than once, which no scene can hold.
    """

    scene: Scene | None
    unread: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    several: tuple[str, ...] = ()


def read(text: str, lexicon: Lexicon) -> Reading:
    """The scene of a text in either language, by the words of the lexicon."""
    told = unicodedata.normalize("NFKC", text[:LONGEST]).lower().replace("’", "'")
    korean = language(told) == "ko"
    rest = _Rest(re.sub(r"\s+", " ", told).strip())
    things = _objects(rest, lexicon, korean)
    names = list(things)
    background = _background(rest, lexicon, korean)
    for letter, size in _said_sizes(rest, korean):
        if letter in things and things[letter].size is None:
            things[letter] = replace(things[letter], size=size)
    where = (_where_ko if korean else _where_en)(rest, names[:2])
    found = tuple(things.values())
    scene = None
    if len(found) == 1:
        scene = Scene(objects=(replace(found[0], place=where),), background=background)
    elif found:
        scene = Scene(objects=found[:2], relation=where, background=background)
    called = {letter: lexicon.objects[t.name] if korean else t.name for letter, t in things.items()}
    return Reading(
        scene=scene,
        unread=tuple(dict.fromkeys(rest.words(korean))),
        more=tuple(called.values())[2:],
        several=tuple(called[letter] for letter in names if letter in rest.several),
    )


def parse(text: str, lexicon: Lexicon) -> Scene | None:
    """What a text in either language states; None if it names no object of the lexicon."""
    return read(text, lexicon).scene if isinstance(text, str) else None


@dataclass
class _Rest:
    """What is left of a text.  several: letters of objects that it counts, or names in plural."""

    text: str
    several: set[str] = field(default_factory=set)

    def cut(self, pattern: str | re.Pattern) -> re.Match | None:
        """The first place of a pattern, which is cut out."""
        if match := re.search(pattern, self.text):
            self.text = f"{self.text[: match.start()]} ; {self.text[match.end() :]}"
        return match

    def words(self, korean: bool) -> Iterator[str]:
        """Those that are neither a letter of an object nor passed over."""
        for word in re.findall(r"[^\W\d_]+(?:'[a-z]+)?", re.sub(r"[A-Z][가-힣]*", " ", self.text)):
            if not (PASSED_KO.fullmatch(word) if korean else word in PASSED):
                yield word


@dataclass(frozen=True, kw_only=True, eq=False)
class _Words:
    """The words of a lexicon in one language.  names, tints: word -> English.

    plurals: those among the names that are said of several.
    """

    names: Mapping[str, str]
    tints: Mapping[str, str]
    objects: re.Pattern
    backgrounds: tuple[str, ...] = ()
    plurals: frozenset[str] = frozenset()


SIZE_OF = {word: size for size, words in SIZES.items() for word in words.split()}


@lru_cache(maxsize=16)
def _words(lexicon: Lexicon, korean: bool) -> _Words:
    return (_words_ko if korean else _words_en)(lexicon, f"(?:{_any(SIZE_OF)})")


def _words_en(lexicon: Lexicon, size: str) -> _Words:
    grounds = lexicon.backgrounds
    tints = {t: t for t in grounds} | {k: t for k, t in TINTS.items() if t in grounds}
    tint = f"({_any(tints)})"
    plurals = {plural: name for name in lexicon.objects for plural in _plurals(name)}
    names = _singulars(lexicon.objects) | plurals | {name: name for name in lexicon.objects}
    noun = r"(?:background|backdrop|back ground|bg)(?!\w)"
    sheet = r"(?:picture|image|photo|drawing|canvas|page|paper|scene|card|wall)(?!\w)"
    plain, colour = r"(?:(?:an?|the|its|plain|solid|all|simple) )*", r"(?:[ -]colou?red)?"
    return _Words(
        names=names,
        tints=tints,
        plurals=frozenset(plurals) - set(lexicon.objects),
        objects=re.compile(
            rf"(?<!\w)(?:((?:{NUMBERS}|{AMOUNTS}) (?:(?:of )?the )?(?:{size}[ -])?|{size}[ -])"
            rf"((?:(?!and\b|or\b|of\b|on\b)[a-z]+ ){{0,2}}?))?({_any(names)})(?!\w)"
        ),
        backgrounds=(
            rf"(?<!\w){tint}{colour} {noun}",
            rf"(?<!\w){tint}{colour} {sheet}",
            rf"(?<!\w){noun}(?: colou?r)?(?: ?[:=,]| is| of| in| being| should be)? {plain}"
            rf"{tint}(?!\w)",
            rf"(?<!\w){tint} in {plain}{noun}",
            rf"(?<!\w)(?:on|against|over|upon|in front of) {plain}{tint}{colour}"
            rf"(?! ?[A-Z])(?! \w+ [A-Z])(?!\w)",
            rf"(?<!\w){tint}{colour} behind(?: it| them)?(?!\w)",
            rf"(?:^|[,;:.] ?)(?:all )?{tint}{colour}(?=[,;:.!]|$)",
        ),
    )


def _words_ko(lexicon: Lexicon, size: str) -> _Words:
    grounds = lexicon.backgrounds
    own = ((ko, en) for en, ko in grounds.items())
    more = ((word, en) for en in grounds for word in TINTS_KO.get(en, "").split())
    tints = {word.removesuffix("색"): en for word, en in chain(own, more)}
    tint = rf"(?<![가-힣])({_any(tints)})(?:색깔|색|빛)?"
    noun = "(?:배경|바탕)(?:색깔|색|화면)?"
    return _Words(
        names={ko: en for en, ko in lexicon.objects.items()},
        tints=tints,
        objects=re.compile(
            rf"(?<![가-힣])(?:({size}) ?((?:[가-힣]+ ){{0,1}}?))?({_any(lexicon.objects.values())})"
            rf"(?=들?(?:{PARTICLE})?(?:[^가-힣]|$))"
        ),
        backgrounds=(
            rf"{tint}(?:의|인)? ?(?:단색 )?{noun}[가-힣]*(?: 위에[가-힣]*)?",
            rf"(?<![가-힣]){noun}(?:은|이|을|는|:)?,? ?{tint}[가-힣]*",
            rf"{tint} 위에[가-힣]*",
        ),
    )


def _any(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _objects(rest: _Rest, lexicon: Lexicon, korean: bool) -> dict[str, SceneObject]:
    """Letter -> object, in order of mention; the letters stand in the text from now on."""
    words, letters, things = _words(lexicon, korean), dict[str, str](), dict[str, Any]()

    def lettered(match: re.Match) -> str:
        told, between, word = match.groups()
        told, name = told or "", words.names[word]
        letter = letters.setdefault(name, chr(ord("A") + min(len(letters), 25)))
        former = things.get(letter)
        size = next((SIZE_OF[w] for w in re.findall(r"\w+", told) if w in SIZE_OF), None)
        if former is None or (size and former.size is None):
            things[letter] = SceneObject(name=name, size=size)
        again = former is not None and told.startswith("another")
        if again or word in words.plurals or (not korean and re.match(rf"(?:{NUMBERS}) ", told)):
            rest.several.add(letter)
        return f"{between or ''}{letter}"

    rest.text = words.objects.sub(lettered, rest.text)
    if korean:
        _counted_ko(rest)
    return things


def _counted_ko(rest: _Rest) -> None:
    """Cuts out how many there are of a letter: "A 두 마리", "두 마리의 A", "A들", "또 다른 A"."""
    size = f"(?:{_any(SIZE_OF)}) ?"
    for pattern in (
        rf"(?P<keep>([A-Z])[가-힣]?) (?:{NUMBERS_KO}) ?(?:{COUNTERS_KO})?(?![가-힣]{{3}})",
        rf"(?<![가-힣])(?:{NUMBERS_KO}) ?(?:{COUNTERS_KO})?의? (?P<keep>(?:{size})?([A-Z]))",
        r"(?P<keep>([A-Z]))들",
        rf"(?:또 ?)?다른 (?P<keep>(?:{size})?([A-Z]))",
    ):
        while match := re.search(pattern, rest.text):
            rest.several.add(match[2])
            rest.text = rest.text[: match.start()] + match["keep"] + rest.text[match.end() :]


def _plurals(name: str) -> Iterator[str]:
    """How several of an English name may be called."""
    if name in PLURALS:
        yield PLURALS[name]
    if re.search("(?:s|x|z|ch|sh)$", name):
        yield f"{name}es"
    elif re.search("[^aeiou]y$", name):
        yield f"{name[:-1]}ies"
    else:
        yield f"{name}s"
    if re.search("o$", name):
        yield f"{name}es"
    if re.search("[^f]fe?$", name):
        yield f"{name.removesuffix('e')[:-1]}ves"


def _singulars(names: Iterable[str]) -> dict[str, str]:
    """One of what is named in plural: sock -> socks."""
    plural = [name for name in names if re.search("(?<!s)(?<!u)(?<!i)(?<!sse)s$", name)]
    ies = {f"{name[:-3]}y": name for name in plural if name.endswith("ies")}
    return {name[:-1]: name for name in plural} | ies


def _background(rest: _Rest, lexicon: Lexicon, korean: bool) -> str | None:
    words = _words(lexicon, korean)
    for pattern in words.backgrounds:
        if match := rest.cut(pattern):
            return words.tints[match[1]]
    return None


def _said_sizes(rest: _Rest, korean: bool) -> Iterator[tuple[str, str]]:
    """(letter, size) of "the A is big", of "it is big" for the first, and of "both are big"."""
    both = "둘 다" if korean else "(?:both|all)(?: of them)?(?: are)?"
    if match := rest.cut(rf"(?<!\w){both} ({_any(SIZE_OF)}|작게|크게)(?!\w)(?! ?[A-Z])"):
        size = SIZE_OF.get(match[1]) or {"작게": "small", "크게": "large"}[match[1]]
        yield from (("A", size), ("B", size))
    if korean:
        sizes = {word: size for size, words in SAID_SIZES.items() for word in words.split()}
        pattern = rf"(?P<keep>([A-Z])(?:이|가|은|는)) (?:아주 |매우 )?({_any(sizes)})(?![가-힣])"
    else:
        sizes = SIZE_OF
        pattern = (
            r"(?P<keep>([A-Z])(?: [^A-Z]*\bit(?=[' ]))?),?(?: (?:that|which|and it))?"
            r"(?: is| are|'s)? ?\(?"
            rf"(?:very |really |quite )?\b({_any(sizes)})(?!\w)"
        )
    while match := re.search(pattern, rest.text):
        rest.text = rest.text[: match.start()] + match["keep"] + rest.text[match.end() :]
        yield match[2], sizes[match[3]]


# ---- places and relations


def _where_en(rest: _Rest, letters: list[str]) -> str | None:
    """The place of one object, or where the first of two is, seen from the second."""
    side = rf"(?:(?:on|at|in|to|towards?) )?(?:(?:the|its|far|very) )*\b({_choices(SIDES)})"
    side += r"(?:[ -]hand)?(?: (?:side|edge|half|part)\b)?(?! of (?:an? |the )?[A-Z])(?!\w)"
    related = _related_en(rest) if len(letters) == 2 else None
    items = _items(rest, side, SIDES, r"[,.;:]|\band\b|\bthen\b")
    return related or _of_sides(items, letters)


def _related_en(rest: _Rest) -> str | None:
    """Of two objects in one phrase: how the first is related to the second."""
    for form, turned in _forms():
        match = re.search(form, rest.text)
        if match and match["one"] != match["two"]:
            start, end = match.span("said")
            rest.text = f"{rest.text[:start]} ; {rest.text[end:]}"
            word = _side(match["said"], RELATIONS | SIDES)
            relation = RELATION_OF.get("left" if word == "beside" else word, word)
            return OPPOSITE[relation] if turned != (match["one"] == "B") else relation
    return None


@lru_cache(maxsize=1)
def _forms() -> tuple[tuple[str, bool], ...]:
    """Patterns of phrases, and whether it is `two` that is said to be there."""
    one, two = "(?P<one>[AB])(?!')", "(?P<two>[AB])"
    the, to = r"(?:(?:an?|the|that|another|some) )?", r"(?:(?:on|to|at|in|by) )?(?:(?:the|its) )?"
    verb = "(?:sitting|standing|placed|located|positioned|lying|resting|floating|shown|situated|"
    verb += "just|directly|right|immediately|sits|stands)"
    copula = rf",?(?: (?:that|which))?(?: is| are)?(?: {verb})*"
    there = r",?(?: there)?(?: is| are| sits| stands)? "
    joined = r"[,.;]?(?: with| has| having| and| then)?"
    said = rf"(?<!\w)(?P<said>{_choices(RELATIONS)})(?!\w)"
    side = rf"(?P<said>{_choices(SIDES)})(?: side)?"
    return (
        (rf"{one}{copula} {to}{the}{two}'s {side}", False),
        (rf"{one}{copula} {to}{said} {the}{two}", False),
        (rf"{said} {the}{one}{there}{the}{two}", True),
        (rf"{one}{joined} {the}{two}(?: is)? {to}{said} it\b", True),
        (rf"{one}{joined} {to}{said} it{there}{the}{two}", True),
        (rf"{one}{joined} {the}{two} (?:on|to|at) its {side}", True),
        (rf"{one}{joined} (?:on|to|at) its {side}{there}{the}{two}", True),
    )


def _where_ko(rest: _Rest, letters: list[str]) -> str | None:
    """As `_where_en`.  A side is of the name before it ("A가 B 왼쪽에", "B 왼쪽에 A"), unless that
    is the subject."""
    sides = SIDES_KO | {"beside": BESIDE_KO}
    items = _items(rest, rf"(?<![가-힣])({_choices(sides)})[가-힣]*", sides)
    said = [at for at, item in enumerate(items) if item.side]
    if len(letters) < 2 or len(said) != 1 or said[0] == 0:
        return _of_sides(items, letters)
    before = items[: said[0]]
    side = items[said[0]].side
    relation = RELATION_OF.get("left" if side == "beside" else side)
    alone = len({item.letter for item in before}) == 1
    own = before[-1].subject and (alone or not before[0].subject)
    return OPPOSITE[relation] if relation and own != (before[-1].letter == "A") else relation


class _Item(NamedTuple):
    """An object or a side or a mark between them.  subject: whether it is that of its sentence."""

    letter: str = ""
    side: str = ""
    subject: bool = False


def _items(rest: _Rest, side: str, sides: Mapping[str, str], mark: str = "(?!)") -> list[_Item]:
    """Those of a text in order; the sides are cut out."""
    name = "(?P<letter>[AB])(?P<subject>[이가은는](?![가-힣]))?"
    found = [
        _Item(m["letter"] or "", _side(m[1], sides) if m[1] else "", bool(m["subject"]))
        for m in re.finditer(f"{side}|{name}|{mark}", rest.text)
    ]
    rest.text = re.sub(side, " ; ", rest.text)
    kinds = {item.side for item in found}
    return [i for i in found if i.side != "beside" or kinds == {"", "beside"}]


def _of_sides(items: list[_Item], letters: list[str]) -> str | None:
    """From "A on the left and B on the right", in either word order."""
    said = [at for at, item in enumerate(items) if item.side]
    sides = list(dict.fromkeys(items[at].side for at in said))
    if len(letters) < 2:
        return sides[0] if len(sides) == 1 and sides[0] != "beside" else None
    relations = [RELATION_OF.get(side) for side in sides]
    if not sides or len(sides) > 2 or None in relations:
        return None
    if len(sides) == 2 and OPPOSITE[relations[0]] != relations[1]:
        return None
    before, after = items[: said[0]], items[said[0] + 1 :]
    marked = len(sides) == 1 and before and before[-1] == _Item()  # "A, and on the left B"
    ahead = marked or not any(item.letter for item in before)
    owner = next((i.letter for i in (after if ahead else before[::-1]) if i.letter), "")
    return relations[0] if owner == "A" else OPPOSITE[relations[0]]


def _choices(sides: Mapping[str, str]) -> str:
    return "|".join(sides.values())


def _side(word: str, sides: Mapping[str, str]) -> str:
    return next(side for side, words in sides.items() if re.fullmatch(words, word))
