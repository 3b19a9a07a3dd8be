"""Romanised Hangul: the examples of the rule itself, every syllable, and what stays as it is."""

from __future__ import annotations

import unicodedata

import pytest

from everyway.data.emoji import KOREAN
from everyway.data.hangul import romanised

# from the National Institute of Korean Language's statement of the rule, but for names' capitals
OFFICIAL = """
구미 gumi, 영동 yeongdong, 백암 baegam, 옥천 okcheon, 합덕 hapdeok, 호법 hobeop, 월곶 wolgot,
벚꽃 beotkkot, 한밭 hanbat, 구리 guri, 설악 seorak, 칠곡 chilgok, 임실 imsil, 울릉 ulleung,
대관령 daegwallyeong, 백마 baengma, 종로 jongno, 왕십리 wangsimni, 별내 byeollae, 신라 silla,
좋고 joko, 놓다 nota, 낳지 nachi, 묵호 mukho, 집현전 jiphyeonjeon, 압구정 apgujeong,
낙동강 nakdonggang, 죽변 jukbyeon, 낙성대 nakseongdae, 합정 hapjeong, 팔당 paldang,
샛별 saetbyeol, 울산 ulsan, 중앙 jungang, 반구대 bangudae, 세운 seun, 해운대 haeundae
"""
ROWS = [tuple(row.split()) for row in OFFICIAL.replace("\n", " ").split(",")]


@pytest.mark.parametrize("hangul, letters", ROWS)
def test_the_rules_own_examples(hangul, letters):
    assert romanised(hangul) == letters


@pytest.mark.parametrize(
    "hangul, letters",
    [
        ("분홍 배경에 큰 여우", "bunhong baegyeonge keun yeou"),
        ("찻주전자 왼쪽에 있는 여우", "chatjujeonja oenjjoge inneun yeou"),
        ("닭을 값이 앉아 많은 잃어 좋은", "dalgeul gapsi anja maneun ireo joeun"),
        ("많다 앓는 않는", "manta alleun anneun"),
    ],
)
def test_sentences(hangul, letters):
    assert romanised(hangul) == letters


def test_words_do_not_run_into_each_other():
    assert romanised("국물") == "gungmul" and romanised("국 물") == "guk mul"
    assert romanised("밥이") == "babi" and romanised("밥, 이") == "bap, i"


def test_what_is_not_hangul_stays():
    assert romanised("a fox, 1 é — 日本") == "a fox, 1 é — 日本" and romanised("") == ""
    assert romanised(unicodedata.normalize("NFD", "여우")) == "yeou"


def test_every_syllable_and_name_becomes_letters():
    for code in range(0xAC00, 0xD7A4):
        made = romanised(chr(code))
        assert made.isascii() and made.isalpha() and made.islower(), chr(code)
    assert len({romanised(name) for name in KOREAN.values()}) == len(KOREAN)
