"""The command line in the language of the locale: English, or Korean.

Everything is written in English where it is said.  On its way to a person a sentence is looked up
in a table (korean.json), {} standing for what is put into it, which is looked up in its turn.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

LOCALE = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
"""The first of these that is set says the language, as with gettext."""
TABLES = {"ko": Path(__file__).with_name("korean.json")}


def spoken(sentence: str) -> str:
    """A sentence in the locale's language; as it is where the table has none or no screen could
    show it."""
    language = next(filter(None, map(os.environ.get, LOCALE)), "")[:2]
    if language not in TABLES or not _showable():
        return sentence
    return translated(sentence, language)


def translated(sentence: str, language: str, tables: Mapping[str, Path] = TABLES) -> str:
    """A sentence by a language's table, with the parts that stand in it."""
    exact, patterns = _table(tables[language])
    plain = " ".join(sentence.split())
    if plain in exact:
        return exact[plain]
    for pattern, said in patterns:
        if match := pattern.fullmatch(plain):
            parts = (translated(part, language, tables) for part in match.groups())
            return _joined(said.format(*parts))
    return sentence


class Notes(logging.Handler):
    """What the library logs, on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print(spoken(record.getMessage()), file=sys.stderr)


@contextmanager
def notes(quiet: bool) -> Iterator[None]:
    """Tells what is logged meanwhile; if quiet, errors alone."""
    log, handler = logging.getLogger("everyway"), Notes()
    log.addHandler(handler)
    log.setLevel(logging.ERROR if quiet else logging.NOTSET)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)


def _joined(said: str) -> str:
    """With the particle that fits, after a syllable with or without a final consonant; both stand
    where that is not known, as after a Latin letter."""

    def fitting(match: re.Match[str]) -> str:
        closed = (ord(match[1]) - ord("가")) % 28
        return match[1] + match[2] + (match[3] if closed else match[4])

    return re.sub(r"([가-힣])(['\"]?)([을이은과])\(([를가는와])\)", fitting, said)


@cache
def _table(path: Path) -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    """Whole sentences, and patterns of others, those that say most first."""
    table = json.loads(path.read_text(encoding="utf-8"))
    exact = {sentence: said for sentence, said in table.items() if "{}" not in sentence}
    open_ = sorted(table.keys() - exact.keys(), key=lambda s: -len(s.replace("{}", "")))
    return exact, [(_pattern(sentence), table[sentence]) for sentence in open_]


def _pattern(sentence: str) -> re.Pattern[str]:
    return re.compile("(.+?)".join(map(re.escape, sentence.split("{}"))))


def _showable() -> bool:
    """Whether the screen has the letters."""
    try:
        "가".encode(sys.stdout.encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
