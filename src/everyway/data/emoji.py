"""Emoji Scenes: one or two pictures of the Noto Color Emoji font on a plain coloured background.

Endless, with captions in English and Korean and the ground truth beside them; scene i is a function
of (seed, i) alone.  About every tenth unordered pair of objects is held out and never trained on.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from everyway.atomic import atomic_write
from everyway.data.captions import Lexicon, plain, say, some
from everyway.data.reading import parse
from everyway.data.sample import PLACES, RELATIONS, SIZES, Sample, Scene, SceneObject
from everyway.data.scenes import BACKGROUNDS, COLOURS, LANGS, Scenes
from everyway.errors import EverywayError

FONT = "NotoColorEmoji.ttf"
FONT_FOLDERS = (
    "/usr/share/fonts/truetype/noto",
    "/usr/share/fonts/noto",
    "/usr/share/fonts/google-noto-emoji",
    "/usr/share/fonts/google-noto-color-emoji-fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/opt/homebrew/share/fonts",
    "~/Library/Fonts",
    "/Library/Fonts",
)
CUT = Path("runs/emoji.npz")
"""The artwork alone, cut from the font by `cut`: read where there is no font, from the folder that
a program was started in."""

# picture, English name, Korean name: short, unique in both languages, no colour or place in a name.
# Pictures that look alike at twenty pixels are left out.
_TABLE = """
🦊 fox:여우, 🐶 dog:강아지, 🐱 cat:고양이, 🐭 mouse:쥐, 🐰 rabbit:토끼, 🐻 bear:곰,
🐼 panda:판다, 🐨 koala:코알라, 🐯 tiger:호랑이, 🦁 lion:사자, 🐮 cow:소, 🐷 pig:돼지,
🐸 frog:개구리, 🐵 monkey:원숭이, 🐔 chicken:닭, 🐧 penguin:펭귄, 🐦 bird:새, 🦆 duck:오리,
🦅 eagle:독수리, 🦉 owl:부엉이, 🦇 bat:박쥐, 🐺 wolf:늑대, 🐴 horse:말, 🦄 unicorn:유니콘,
🐝 bee:꿀벌, 🐛 caterpillar:애벌레, 🦋 butterfly:나비, 🐌 snail:달팽이, 🐞 ladybug:무당벌레,
🐜 ant:개미, 🕷 spider:거미, 🦂 scorpion:전갈, 🐢 turtle:거북이, 🐍 snake:뱀, 🦎 lizard:도마뱀,
🦖 dinosaur:공룡, 🐙 octopus:문어, 🦐 shrimp:새우, 🦀 crab:게, 🐡 blowfish:복어, 🐠 fish:물고기,
🐬 dolphin:돌고래, 🐳 whale:고래, 🦈 shark:상어, 🐊 crocodile:악어, 🦓 zebra:얼룩말,
🦍 gorilla:고릴라, 🐘 elephant:코끼리, 🦏 rhino:코뿔소, 🐫 camel:낙타, 🦒 giraffe:기린,
🦘 kangaroo:캥거루, 🐑 sheep:양, 🦌 deer:사슴, 🐓 rooster:수탉, 🦃 turkey:칠면조,
🦚 peacock:공작, 🦜 parrot:앵무새, 🦢 swan:백조, 🦩 flamingo:홍학, 🦝 raccoon:너구리,
🦨 skunk:스컹크, 🦥 sloth:나무늘보, 🐿 squirrel:다람쥐, 🦔 hedgehog:고슴도치, 🐉 dragon:용,
🍎 apple:사과, 🍐 pear:배, 🍊 tangerine:귤, 🍋 lemon:레몬, 🍌 banana:바나나, 🍉 watermelon:수박,
🍇 grapes:포도, 🍓 strawberry:딸기, 🍒 cherries:체리, 🍑 peach:복숭아, 🍍 pineapple:파인애플,
🥥 coconut:코코넛, 🥝 kiwi:키위, 🍅 tomato:토마토, 🍆 eggplant:가지, 🥑 avocado:아보카도,
🥦 broccoli:브로콜리, 🥒 cucumber:오이, 🌶 pepper:고추, 🌽 corn:옥수수, 🥕 carrot:당근,
🧄 garlic:마늘, 🧅 onion:양파, 🥔 potato:감자, 🍄 mushroom:버섯, 🥐 croissant:크루아상,
🍞 bread:식빵, 🥨 pretzel:프레첼, 🧀 cheese:치즈, 🥚 egg:달걀, 🥞 pancakes:팬케이크,
🧇 waffle:와플, 🍔 hamburger:햄버거, 🍟 fries:감자튀김, 🍕 pizza:피자, 🌭 hot dog:핫도그,
🌮 taco:타코, 🍿 popcorn:팝콘, 🍙 rice ball:주먹밥, 🍣 sushi:초밥, 🍜 noodles:국수,
🍦 ice cream:아이스크림, 🍩 doughnut:도넛, 🍪 cookie:쿠키, 🎂 cake:케이크, 🧁 cupcake:컵케이크,
🍫 chocolate:초콜릿, 🍬 candy:사탕, 🍭 lollipop:막대사탕, 🍯 honey:꿀단지, 🥛 milk:우유,
☕ coffee:커피, 🫖 teapot:찻주전자, 🍷 wine:포도주, 🍺 beer:맥주, 🧊 ice:얼음, 🥄 spoon:숟가락,
🌰 chestnut:밤, 🥜 peanuts:땅콩, 🌳 tree:나무, 🌲 pine:소나무, 🌴 palm tree:야자수,
🌵 cactus:선인장, 🍀 clover:클로버, 🍁 maple leaf:단풍잎, 🌹 rose:장미, 🌷 tulip:튤립,
🌻 sunflower:해바라기, 🌸 blossom:벚꽃, ☀ sun:태양, 🌙 moon:달, ⭐ star:별, ☁ cloud:구름,
🌈 rainbow:무지개, ⚡ lightning:번개, ❄ snowflake:눈송이, ⛄ snowman:눈사람, 🔥 fire:불꽃,
💧 drop:물방울, 🌍 globe:지구, 🪐 planet:행성, 🌋 volcano:화산, ⛰ mountain:산, ⏰ clock:시계,
⌛ hourglass:모래시계, 📱 phone:휴대전화, 💻 laptop:노트북, 📷 camera:카메라,
📺 television:텔레비전, 📻 radio:라디오, ☎ telephone:전화기, 🔋 battery:배터리,
💡 light bulb:전구, 🕯 candle:양초, 💎 gem:보석, 💍 ring:반지, 👑 crown:왕관, 🔧 wrench:렌치,
🔨 hammer:망치, 🪓 axe:도끼, 🧲 magnet:자석, 🪜 ladder:사다리, 🔑 key:열쇠, 🔒 lock:자물쇠,
🔔 bell:종, ⚓ anchor:닻, 💣 bomb:폭탄, ✂ scissors:가위, ✏ pencil:연필, 📖 book:책,
✉ envelope:봉투, 📦 box:상자, 🎁 gift:선물, 🎈 balloon:풍선, 🎀 ribbon:리본, 🏆 trophy:트로피,
⚽ soccer ball:축구공, 🏀 basketball:농구공, 🎾 racket:라켓, 🎲 dice:주사위, 🎯 target:과녁,
🎸 guitar:기타, 🎹 piano:피아노, 🎻 violin:바이올린, 🎺 trumpet:트럼펫, 🥁 drum:드럼,
🎤 microphone:마이크, 🎧 headphones:헤드폰, 🎨 palette:팔레트, 🧸 teddy bear:곰인형, 🪁 kite:연,
🤖 robot:로봇, 👻 ghost:유령, 👽 alien:외계인, 💀 skull:해골, 🎃 pumpkin:호박, 🚗 car:자동차,
🚌 bus:버스, 🚜 tractor:트랙터, 🚲 bicycle:자전거, 🏍 motorcycle:오토바이, 🚂 train:기차,
✈ airplane:비행기, 🚁 helicopter:헬리콥터, 🚀 rocket:로켓, 🛸 flying saucer:비행접시,
⛵ sailboat:돛단배, 🏠 house:집, 🏰 castle:성, ⛺ tent:텐트, 🎡 ferris wheel:관람차,
🚦 traffic light:신호등, 🪑 chair:의자, 🛏 bed:침대, 🚪 door:문, 🛁 bathtub:욕조, 🚽 toilet:변기,
🧹 broom:빗자루, 🧺 basket:바구니, 🪣 bucket:양동이, 🧦 socks:양말, 🧤 gloves:장갑,
🧣 scarf:목도리, 👕 shirt:셔츠, 👖 jeans:청바지, 👗 dress:드레스, 👟 sneaker:운동화,
👠 high heel:하이힐, 👢 boot:부츠, 👒 hat:모자, 👓 glasses:안경, 🎒 backpack:배낭,
☂ umbrella:우산, 🦷 tooth:이빨, 🧠 brain:뇌, ❤ heart:하트, 🦴 bone:뼈, 🔬 microscope:현미경,
🔭 telescope:망원경, 💊 pill:알약
"""
_ROWS = [
    (entry.strip().split(" ", 1)[0], *entry.strip().split(" ", 1)[1].split(":"))
    for entry in _TABLE.split(",")
]
CHARACTERS = {en: character for character, en, _ in _ROWS}
KOREAN = {en: ko for _, en, ko in _ROWS}
OBJECTS = tuple(CHARACTERS)
LEXICON = Lexicon(
    objects=KOREAN,
    backgrounds={
        "red": "빨간",
        "orange": "주황",
        "yellow": "노란",
        "green": "초록",
        "blue": "파란",
        "purple": "보라",
        "pink": "분홍",
        "white": "하얀",
        "gray": "회색",
        "black": "검은",
    },
    bare=frozenset(
        "grapes cherries corn garlic bread cheese pancakes fries popcorn sushi noodles chocolate "
        "honey milk coffee wine beer ice peanuts lightning fire scissors dice headphones socks "
        "gloves jeans glasses broccoli candy".split()
    ),
)

# longer side of an object as a part of the picture's side; a lone object and one of two
_EXTENT = {1: {"small": 0.40, "large": 0.66}, 2: {"small": 0.33, "large": 0.47}}
_STRETCH = (0.96, 1.04)
_TOWARDS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "middle": (0, 0)}
_EDGE = 2 / 64  # free margin beside an object at the rim

# what a classifier has to name: head -> number of classes; `second` ends with "no object"
HEADS = {
    "first": len(OBJECTS),
    "second": len(OBJECTS) + 1,
    "first_size": len(SIZES),
    "second_size": len(SIZES),
    "place": len(PLACES),
    "relation": 2,
    "background": len(BACKGROUNDS),
}
IGNORE = -100  # the target of a head that does not apply

Placed = tuple[np.ndarray, list[tuple[tuple[str, Any], int, int]]]
"""A picture in parts: the background's colour (3,), and the key of each sprite with its left and
upper edge."""

CURRICULUM: dict[str, dict[str, float]] = {
    "emoji-portraits": {"portraits": 1.0, "whole": 1.0, "plain": 0.5},
    "emoji-singles": {"portraits": 1 / 3, "single": 1.0, "whole": 1.0, "plain": 0.5},
    "emoji": {"single": 2 / 3, "whole": 2 / 3, "plain": 0.5},
}
"""Emoji Scenes in the order in which a small model learns them: what each object looks like, then
one object anywhere, then everything.  Where a text does not say it, what a picture shows is
averaged, and so is a text over its phrasings where only a picture is given; a network that sees
little else draws and writes averages (docs/LOG.md)."""


class MissingFont(EverywayError, FileNotFoundError):
    """The emoji font, or what reads it, is not installed; the message says how to get it."""

    exit_code = 1


@dataclass(frozen=True, kw_only=True)
class EmojiScenes(Scenes):
    """Sample i is a function of (seed, i) alone.

    size: side of the square pictures in pixels.
    portraits: share of the samples that are portraits, whatever the scene would have been.
    whole: share of the captions that state everything; the others leave some of it unsaid.
    plain: share of the captions in one phrasing; the others have any.
    variants: English and Korean captions a sample.  font: a Noto Color Emoji file, None searches.
    """

    size: int = 64
    portraits: float = 0.0
    whole: float = 0.0
    plain: float = 0.0
    variants: int = 1
    font: str | None = None
    names: ClassVar[tuple[str, ...]] = OBJECTS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("portraits", "whole", "plain"):
            self._check_share(name)

    def render(self, scene: Scene, index: int = 0) -> np.ndarray:
        """The picture (size, size, 3) uint8; `index` seeds the jitter and whatever is unstated."""
        return self.draw(scene, index)[0]

    def draw(self, scene: Scene, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The picture, and the boxes (objects, 4) int of its objects: left, top, right, bottom.

        The boxes are in pixels, in the order of `scene.canonical()`.
        """
        colour, placed = self.placed(scene, index)
        canvas = np.empty((self.size, self.size, 3), np.uint8)
        canvas[:] = colour
        boxes = []
        for (name, extent), x, y in placed:
            picture = sprite(name, extent, self.font)
            paste(canvas, picture, (x, y))
            boxes.append((x, y, x + picture.shape[1], y + picture.shape[0]))
        return canvas, np.array(boxes)

    def placed(self, scene: Scene, index: int = 0) -> Placed:
        """What a picture is put together from; `index` as in `render`."""
        rng = np.random.default_rng((self.seed, index, 1))
        scene = _filled(scene.canonical(), rng)
        colour = np.array(COLOURS[scene.background]) + rng.integers(-6, 7, 3)
        placed = []
        for slot, thing in enumerate(scene.objects):
            extent = _EXTENT[len(scene.objects)][thing.size] * rng.uniform(*_STRETCH)
            key = thing.name, self._pixels(extent)
            shape = sprite(*key, self.font).shape
            placed.append((key, *self._corner(scene, slot, shape, rng)))
        return np.clip(colour, 0, 255), placed

    def sprites(self) -> dict[tuple[str, int], np.ndarray]:
        """(name, longer side in pixels) -> sprite, of all that `placed` may name."""
        least, most = _STRETCH
        extents = sorted(extent for sizes in _EXTENT.values() for extent in sizes.values())
        sides = [
            side
            for extent in extents
            for side in range(self._pixels(least * extent), self._pixels(most * extent) + 1)
        ]
        return {(n, side): sprite(n, side, self.font) for side in sides for n in OBJECTS}

    def _pixels(self, extent: float) -> int:
        return max(4, round(extent * self.size))

    def sample(self, index: int, lang: str | None = None) -> Sample:
        """Captions in both languages (English, Korean, ...), or in `lang` ("en" or "ko") alone.

        The English and Korean captions of one variant state the same attributes.
        """
        if self._is_portrait(index):
            return self.portrait(index, lang)
        return self._sample(self.scene(index), index, f"emoji-{self.split}", lang)

    def portrait(self, index: int, lang: str | None = None) -> Sample:
        """One object in turn, large and in the middle: what it looks like and what it is called."""
        return self._sample(self._portrayed(index), index, "portrait", lang)

    def described(self, index: int) -> tuple[Scene, tuple[str, ...]]:
        """The scene and the captions of `sample(index)`, without its picture."""
        scene = self._portrayed(index) if self._is_portrait(index) else self.scene(index)
        return scene, self._captions(scene, index)

    def _is_portrait(self, index: int) -> bool:
        return np.random.default_rng((self.seed, index, 4)).random() < self.portraits

    def _portrayed(self, index: int) -> Scene:
        rng = np.random.default_rng((self.seed, index, 3))
        only = SceneObject(name=OBJECTS[index % len(OBJECTS)], size="large", place="middle")
        return Scene(objects=(only,), background=BACKGROUNDS[rng.integers(len(BACKGROUNDS))])

    def _sample(self, scene: Scene, index: int, kind: str, lang: str | None) -> Sample:
        return Sample(
            image=self.render(scene, index),
            captions=self._captions(scene, index, lang),
            record=scene.to_json(),
            key=f"{kind}-{self.seed}-{index:08d}",
        )

    def _captions(self, scene: Scene, index: int, lang: str | None = None) -> tuple[str, ...]:
        rng = np.random.default_rng((self.seed, index, 2))
        captions = []
        for _ in range(self.variants):
            stated = scene if self.whole and rng.random() < self.whole else some(scene, rng)
            for each in [lang] if lang else LANGS:
                one = self.plain and rng.random() < self.plain
                said = plain(stated, LEXICON, each) if one else say(stated, rng, LEXICON, each)
                captions.append(said)
        return tuple(captions)

    def _corner(self, scene: Scene, slot: int, shape: tuple, rng: np.random.Generator) -> tuple:
        """(x, y) of a sprite's upper left pixel, inside the picture."""
        height, width = shape[:2]
        reach = 0.5 - _EDGE - 0.5 * max(height, width) / self.size
        if scene.relation is None:
            dx, dy = (reach * d for d in _TOWARDS[scene.objects[slot].place])
        else:
            along, across = 0.25 * (2 * slot - 1), rng.uniform(-0.08, 0.08)
            dx, dy = (along, across) if scene.relation == "left of" else (across, along)
        jitter = rng.uniform(-0.025, 0.025, 2) if scene.relation is None else (0, 0)
        x = round((0.5 + dx + jitter[0]) * self.size - width / 2)
        y = round((0.5 + dy + jitter[1]) * self.size - height / 2)
        return min(max(x, 0), self.size - width), min(max(y, 0), self.size - height)


def caption(scene: Scene, rng: np.random.Generator, lang: str = "en") -> str:
    """One of several phrasings, which may leave attributes unsaid."""
    return say(some(scene, rng), rng, LEXICON, lang)


def parse_caption(text: str) -> Scene | None:
    """What a caption in either language states, or None if it names no object."""
    return parse(text, LEXICON)


def targets(scene: Scene) -> dict[str, int]:
    """head -> class of a whole scene, IGNORE where the head does not apply or is not stated."""
    scene = scene.canonical()
    things = scene.objects
    two = len(things) == 2

    def at(choices: tuple[str, ...], value: str | None) -> int:
        return IGNORE if value is None else choices.index(value)

    return {
        "first": OBJECTS.index(things[0].name),
        "second": OBJECTS.index(things[1].name) if two else len(OBJECTS),
        "first_size": at(SIZES, things[0].size),
        "second_size": at(SIZES, things[1].size) if two else IGNORE,
        "place": IGNORE if two else at(PLACES, things[0].place),
        "relation": at(RELATIONS[:2], scene.relation) if two else IGNORE,
        "background": at(BACKGROUNDS, scene.background),
    }


def scene_of(classes: dict[str, int]) -> Scene:
    """The inverse of `targets`, for the class that a classifier chose in every head."""
    first, second = OBJECTS[classes["first"]], classes["second"]
    size, background = SIZES[classes["first_size"]], BACKGROUNDS[classes["background"]]
    if second == len(OBJECTS):
        only = SceneObject(name=first, size=size, place=PLACES[classes["place"]])
        return Scene(objects=(only,), background=background)
    pair = (
        SceneObject(name=first, size=size),
        SceneObject(name=OBJECTS[second], size=SIZES[classes["second_size"]]),
    )
    return Scene(objects=pair, relation=RELATIONS[classes["relation"]], background=background)


def find_font(font: str | None = None) -> Path:
    """The font file, or its artwork.  Raises MissingFont with the command that installs it."""
    if font is not None:
        if not Path(font).is_file():
            raise MissingFont(f"no emoji font at {font}; give the path of a {FONT}")
        return Path(font)
    for folder in FONT_FOLDERS:
        path = Path(folder).expanduser() / FONT
        if path.is_file():
            return path
    if CUT.is_file():
        return CUT
    raise MissingFont(
        f"{FONT} was not found in the font folders; install it with "
        "`apt-get install fonts-noto-color-emoji`, or give its path as font="
    )


def _filled(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with everything unstated drawn."""
    two = len(scene.objects) == 2
    things = tuple(
        SceneObject(
            name=thing.name,
            size=thing.size or SIZES[rng.integers(2)],
            place=None if two else thing.place or PLACES[rng.integers(len(PLACES))],
        )
        for thing in scene.objects
    )
    return Scene(
        objects=things,
        relation=(scene.relation or RELATIONS[rng.integers(2)]) if two else None,
        background=scene.background or BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
    )


def paste(canvas: np.ndarray, sprite: np.ndarray, corner: tuple[int, int]) -> None:
    """Premultiplied over: out = colour + (1 - alpha) background."""
    height, width = sprite.shape[:2]
    x, y = corner
    under = canvas[y : y + height, x : x + width]
    through = (255 - sprite[..., 3:]).astype(np.uint16)
    under[:] = np.minimum(sprite[..., :3] + (through * under + 127) // 255, 255)


@cache
def sprite(name: str, extent: int, font: str | None) -> np.ndarray:
    """(h, w, 4) uint8 with premultiplied alpha, its longer side `extent` pixels."""
    picture = _artwork(font)[name]
    scale = extent / max(picture.size)
    shape = tuple(max(1, round(side * scale)) for side in picture.size)
    return np.asarray(picture.resize(shape, Image.Resampling.LANCZOS))


@cache
def _artwork(font: str | None) -> dict[str, Image.Image]:
    """name -> the font's bitmap, premultiplied, cut to what is not transparent."""
    if (path := find_font(font)).suffix == CUT.suffix:
        return _cut_before(path)
    try:
        from fontTools.ttLib import TTFont, TTLibError
    except ImportError:
        raise MissingFont("Emoji Scenes need fontTools: pip install fonttools") from None
    try:
        with TTFont(path, lazy=True) as file:
            glyphs, bitmaps = file.getBestCmap(), file["CBDT"].strikeData[0]
            pngs = {n: bitmaps[glyphs[ord(c)]].imageData for n, c in CHARACTERS.items()}
    except (TTLibError, KeyError) as error:
        raise MissingFont(
            f"{path} is not a usable bitmap emoji font ({error}); install "
            "fonts-noto-color-emoji, or give another file as font="
        ) from None
    out = {}
    for name, png in pngs.items():
        picture = Image.open(io.BytesIO(png)).convert("RGBA")
        box = picture.getchannel("A").point(lambda a: 255 * (a > 24)).getbbox()
        out[name] = picture.crop(box).convert("RGBa")
    return out


def cut(path: Path = CUT, font: str | None = None) -> None:
    """Writes the artwork alone into a file of a few megabytes, which is read in place of a font."""
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **{n: np.asarray(p) for n, p in _artwork(font).items()})


def _cut_before(path: Path) -> dict[str, Image.Image]:
    try:
        with np.load(path) as held:
            pixels = {name: held[name] for name in OBJECTS}
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise MissingFont(f"{path} holds no cut artwork ({error}); cut it again") from None
    return {n: Image.frombytes("RGBa", p.shape[1::-1], p.tobytes()) for n, p in pixels.items()}
