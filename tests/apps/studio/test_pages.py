"""The studio without a browser: its requests, what it keeps, and what it says."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the studio needs gradio: pip install 'everyway[studio]'")

import gradio as gr
import torch

from everyway.apps.cli import main
from everyway.apps.server.scheduler import Frame, Scheduler, Step
from everyway.apps.studio import (
    blend,
    chart,
    create,
    explore,
    gallery,
    kinds,
    paint,
    plane,
    strips,
    train,
    views,
)
from everyway.apps.studio.bench import Made, Studio, png
from everyway.apps.studio.parts import Page, picture_of
from everyway.apps.studio.site import PAGES, TABLES, pages, said
from everyway.apps.studio.train import Train
from everyway.errors import UsageError
from everyway.record import read_record
from everyway.request import KINDS, GenerateRequest, RequestError


@pytest.fixture(scope="module")
def studio(tmp_path_factory, nano):
    """One of `nano` and `mini`, neither of which is loaded twice."""
    scheduler = Scheduler({"nano": nano})
    made = Studio(
        out=tmp_path_factory.mktemp("studio"),
        names=["nano", "mini", "mini-versatile"],
        scheduler=scheduler,
    )
    yield made
    scheduler.close()


def of(kind, studio):
    return kind(studio=studio, say=str, language="en")


def red(side=32):
    return Image.new("RGB", (side, side), "red")


@pytest.fixture(scope="module")
def shown(studio):
    """The gallery, built with its neighbours."""
    made = {name: of(page, studio) for name, page in PAGES.items()}
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab() as tab:
        for name in ("Create", "Blend", "Paint", "Explore"):
            made[name].build()
        first = {name.lower(): made[name] for name in ("Create", "Blend", "Paint", "Explore")}
        made["Gallery"].build(**first, tabs=tabs, tab=tab)
    return made["Gallery"]


def regions_of(language, strength):
    """Those that the page of painting begins with."""
    words = zip(paint.COLOURS, paint.EXAMPLES[language][1])
    return [{"colour": c, "words": said, "strength": strength} for c, said in words]


ALL = ("text-to-image", "image-to-text", "joint", "image", "text", "inpaint", "image-to-image")


@pytest.mark.parametrize(
    "words, picture, masked, expected",
    [
        (False, False, False, ["joint", "image", "text"]),
        (True, False, False, ["text-to-image"]),
        (False, True, False, ["image-to-text", "image-to-image"]),
        (True, True, False, ["image-to-image"]),
        (True, True, True, ["inpaint"]),
        (False, True, True, ["inpaint"]),
    ],
)
def test_what_is_empty_is_filled(words, picture, masked, expected):
    assert create.ways(ALL, words, picture, masked) == expected


def test_a_model_is_offered_what_it_can_do(studio):
    assert studio.kinds("nano")[:5] == ["text-to-image", "image-to-text", "joint", "image", "text"]
    assert "class-to-image" not in studio.kinds("nano") and "chain" in studio.kinds("nano")
    with pytest.raises(RequestError, match="not here"):
        studio.model("elsewhere")


def test_the_first_page_asks_for_what_its_fields_say(studio):
    page = of(create.Create, studio)
    fields = (0.6, "nano", 2, 7, 5, 1.5, "", "")
    asked = page.request_of("a red ring", None, "", *fields)
    assert (asked.kind, asked.text, asked.n, asked.seed) == ("text-to-image", "a red ring", 2, 7)
    assert (asked.steps, asked.guidance, asked.sampler) == (5, 1.5, None)
    assert page.request_of(" ", None, "image", *fields).kind == "image"
    assert page.request_of("", None, "stale", *fields).kind == "joint"
    redrawn = page.request_of("a red ring", red(), "", *fields)
    assert (redrawn.kind, redrawn.strength) == ("image-to-image", 0.6)
    mask = views.address(Image.new("RGB", (32, 32), "white"))
    masked = page.request_of("a red ring", red(), "", *fields[:-1], mask)
    assert masked.kind == "inpaint" and Path(masked.mask).read_bytes()[1:4] == b"PNG"


def test_a_run_is_kept_and_comes_again_bit_for_bit(studio):
    asked = GenerateRequest(kind="joint", model="nano", steps=4, n=2, seed=3)
    events = [*studio.run(asked, place="somebody")]
    made = [event for event in events if isinstance(event, Made)]
    steps = [event for event in events if isinstance(event, Step)]
    assert [one.result.seed for one in made] == [3, 4] and steps[-1].done == 1
    assert {*studio.times(asked, steps[-1])} == {"image", "text"}
    path = studio.out / made[0].row["image"]
    record = read_record(path)
    assert studio.replayed([(record, path)]) == (True, "")
    changed = studio.out / "changed.png"
    changed.write_bytes(path.read_bytes())
    with Image.open(path) as image:
        image.putpixel((0, 0), (1, 2, 3))
        image.save(changed)
    assert studio.replayed([(record, path), (record, changed)])[0] is False
    assert [row["index"] for row in studio.rows()][:2] == [1, 0]


def test_stop_keeps_what_is_there(studio):
    asked = GenerateRequest(kind="image", model="nano", steps=1000)
    made = []
    for event in studio.run(asked, place="impatient"):
        if isinstance(event, Step) and event.frames:
            studio.stop("impatient")
        if isinstance(event, Made):
            made.append(event)
    (kept,) = made
    step, steps = kept.row["facts"]["stopped"]
    assert 0 < step < steps == 1000 and (studio.out / kept.row["image"]).is_file()
    assert views.stopped(kept.row, str) == f"stopped at step {step} of 1000"


def test_who_leaves_ends_the_work(studio):
    run = studio.run(GenerateRequest(kind="image", model="nano", steps=1000), place="gone")
    next(run)
    (ticket,) = studio.scheduler.live
    run.close()
    assert ticket.status == "cancelled" and not studio.scheduler.live


def test_pictures_of_elsewhere_are_not_opened(studio, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(red()))
    for name in (str(tmp_path / "secret.png"), "/etc/passwd", f"{studio.out}/given/../../x.png"):
        asked = GenerateRequest(kind="image-to-text", model="nano", images=(name,))
        with pytest.raises(RequestError, match="not a picture of this studio"):
            next(studio.run(asked))


def test_a_blend_has_what_is_given(studio):
    page = of(blend.Blend, studio)
    none = (None, 0.5, 0.5)
    rest = ("image", "layer", 0.0, "mini-versatile", 1, 0, 0, 0, "")
    masks = (views.address(Image.new("RGB", (32, 32), "white")), "", "")
    given = (red(), 0.7, 1.0, *none, *none, *masks, "a small pizza", 0.3, *rest)
    first, second = page.request_of(*given).contexts
    assert (first.weight, first.focus, second.text, second.weight) == (0.7, 1, "a small pizza", 0.3)
    assert Path(first.mask).parent == studio.out / "given"
    assert page.request_of(*given).mix == "layer"
    alone = page.request_of(*none, *none, *none, "", "", "", "a pizza", 1.0, *rest)
    assert alone.mix is None and len(alone.contexts) == 1
    with pytest.raises(RequestError, match="nothing is given yet"):
        page.request_of(*none, *none, *none, "", "", "", " ", 1.0, *rest)


def test_a_painting_has_its_words(studio):
    page = of(paint.Paint, studio)
    regions = regions_of("en", 1)
    painted = views.address(paint.example())
    shared = ("mini", 1, 0, 12, 2.5, "ddim")
    asked = page.request_of(painted, json.dumps(regions), "", 0, "", *shared)
    assert (asked.steps, asked.guidance, asked.sampler) == (12, 2.5, "ddim")
    assert asked.text == "a fox and a teapot and blue background"
    assert {c: w.phrase for c, w in asked.words.items()}["#2e86ab"] == "a teapot"
    with pytest.raises(RequestError, match="nothing is painted yet"):
        page.request_of("", "[]", "a fox", 0, "", *shared)
    with pytest.raises(RequestError, match="paint it anew"):
        picture_of("data:image/png;base64,!!")


def test_settings_of_a_picture_are_loaded(studio, shown):
    first = of(create.Create, studio)
    mask = studio.keep(Image.new("RGB", (64, 64), "white"))
    asked = {"kind": "inpaint", "text": "a red ring", "images": (studio.keep(red(64)),)}
    request = GenerateRequest(model="nano", mask=mask, seed=11, steps=3, **asked)
    (made,) = [e for e in studio.run(request) if isinstance(e, Made)]
    path = studio.out / made.row["image"]
    card, _, held, _ = shown._dropped(str(path))
    assert "a red ring" in card and "11" in card
    page, values = shown._values([read_record(path)])
    text, image, way, strength, model, n, seed, steps, *rest = values
    assert (page, text, model, n, seed, steps) == ("create", "a red ring", "nano", 1, 11, 3)
    again = first.request_of(text, image, way["value"], *values[3:])
    assert again.mask == request.mask and again.images == request.images
    assert json.loads(held)["paths"] == [str(path)]
    (studio.out / "plain.png").write_bytes(png(red()))
    assert "carries no request" in shown._dropped(str(studio.out / "plain.png"))[0]


def test_settings_of_the_command_line_are_loaded(studio, shown, tmp_path, monkeypatch):
    """Of pictures of another folder, with maps of another folder."""
    monkeypatch.chdir(tmp_path)
    own = ["--model", "nano", "--steps", "3", "--guidance", "2.5", "--sampler", "ddim", "--quiet"]
    assert main(["generate", "image", "--text", "a red ring", *own, "--seed", "5"]) == 0
    page, values = shown._values([read_record(Path("out/00000.png"))])
    assert (page, values[0]) == ("create", "a red ring")
    assert values[4:-1] == ["nano", 1, 5, 3, 2.5, "ddim"]
    Image.new("RGB", (64, 64), "#ff0000").save("map.png")
    words = ["--paint", "map.png", "--words", "#ff0000=a red ring"]
    assert main(["generate", "image", "--text", "a red ring", *words, *own]) == 0
    record = read_record(Path("out/00001.png"))
    page, (canvas, *values) = shown._values([record])
    assert page == "paint" and values[3:] == ["nano", 1, 0, 3, 2.5, "ddim"]
    assert unescape(re.search('start="([^"]*)"', canvas)[1]) == views.address(red(64))
    assert studio.replayed([(record, Path("out/00001.png"))]) == (True, "")
    assert "#ff0000" in shown._dropped("out/00001.png")[0]  # its map, and its words
    red(65).save("map.png")
    with pytest.raises(RequestError, match="give it anew"):  # another file by that name
        shown._values([record])


def test_what_a_page_has_no_field_for_is_told(studio, shown):
    asked = GenerateRequest(kind="joint", model="nano", clock_paths={"image": "first"}, steps=2)
    (made,) = [e for e in studio.run(asked) if isinstance(e, Made)]
    record = read_record(studio.out / made.row["image"])
    assert shown._lacking(record, gallery.FIELDS["create"]) == ["clock_paths"]
    with pytest.raises(RequestError, match="made elsewhere"):
        shown._page(GenerateRequest(kind="class-to-image", label=1), 1)


def test_settings_of_a_blend_and_a_painting_are_loaded(studio):
    mixing, painting = of(blend.Blend, studio), of(paint.Paint, studio)
    pictures = [v for colour in ("red", "blue") for v in (Image.new("RGB", (64, 64), colour), 1, 0)]
    mask = views.address(Image.new("RGB", (64, 64), "white"))
    rest = ["a small pizza", 0.25, "image", "layer", 0.5, "mini-versatile", 1, 7, 11, 2.5, "ddim"]
    asked = mixing.request_of(*pictures, None, 0.5, 0.5, "", mask, "", *rest)
    assert mixing.request_of(*mixing.values(asked)) == asked
    more = asked.model_copy(update={"contexts": 2 * asked.contexts})
    with pytest.raises(RequestError, match="no room"):
        mixing.values(more)
    regions = regions_of("en", 2)
    own = ["a fox and a teapot on blue", 1.5, "", "mini", 1, 9, 11, 2.5, "ddim"]
    asked = painting.request_of(views.address(paint.example()), json.dumps(regions), *own)
    canvas, *fields = painting.values(asked)
    given = {name: unescape(said) for name, said in re.findall(r'(\w+)="([^"]*)"', canvas)}
    assert painting.request_of(given["start"], given["regions"], *fields) == asked


def test_lines_of_numbers():
    assert explore.numbers("1, 2,2 , 4.5") == [1, 2, 4.5]
    with pytest.raises(RequestError, match="as 1, 2, 4"):
        explore.numbers("1; 2")
    for words in ("", " , ", "inf", "1, nan"):
        with pytest.raises(RequestError, match="as 1, 2, 4"):
            explore.numbers(words)


def frames_of(html):
    """Of the film in it."""
    return json.loads(unescape(re.search('frames="([^"]*)"', html)[1]))


def step(number, of, frame, stage=1, stages=1):
    where = {"stage": stage, "stages": stages, "step": number, "steps": of}
    return Step(done=number / of, frames=(frame,), **where)


def test_a_film_ends_with_its_result(studio):
    page = of(create.Create, studio)
    asked = GenerateRequest(kind="joint", model="nano", steps=6)
    events = [*studio.run(asked)]
    film = [e for e in events if isinstance(e, Step) and e.frames]
    result = events[-1].result
    end = {"image": views.address(result.image), "text": result.text, "note": "step 6 of 6"}
    for part in (film, [f for f in film if f.step < 6][:3]):  # also where less was seen of it
        *before, last = frames_of(page.how(part, result))
        assert last | end == last and len(before) == len([f for f in part if f.step < 6])
        assert all(f["note"] != end["note"] for f in before)
    assert page.how([], result) == ""


def test_the_tokens_of_a_result_are_all_decided(studio):
    page, sure = of(create.Create, studio), torch.tensor([[0.0, 0.5], [0.25, 1.0]])
    frame = Frame(sample=0, outputs={"text": "a"}, certainty={"image": sure})
    (made,) = [e for e in studio.run(GenerateRequest(kind="text", model="nano", steps=2))
               if isinstance(e, Made)]  # fmt: skip
    film = [step(k, 3, frame) for k in (1, 2)]
    heats = [f["beside"] for f in frames_of(page.how(film, made.result))]
    assert ["ew-masked" in heat for heat in heats] == [True, True, False]
    stopped = replace(made.result, metadata=made.result.metadata | {"stopped": [2, 3]})
    notes = [f["note"] for f in frames_of(page.how(film, stopped))]
    assert notes == ["step 1 of 3", "step 2 of 3"]


def test_a_place_has_one_work_and_a_stop_ends_all_of_it(studio):
    asked = [GenerateRequest(kind="image", model="nano", steps=1000, seed=k) for k in range(3)]
    run, made = studio.run(*asked, place="a/Explore/grid"), []
    for event in run:
        studio.stop("a/Explore/chain")  # another place
        if isinstance(event, Step) and event.frames:
            studio.stop("a/Explore/grid")
        if isinstance(event, Made):
            made.append(event)
    assert [one.result.seed for one in made] == [0]  # and none after it
    with studio.work("b") as first, studio.work("b") as second:
        assert first.stopped and not second.stopped
        studio.stop("b")
        ended = []
        second.ends_by(lambda: ended.append(1))  # begun after the stop
        assert ended == [1]


def test_what_belongs_together_is_one_tile(studio, shown):
    ring, square = (studio.keep(Image.new("RGB", (64, 64), c)) for c in ("red", "blue"))
    between = GenerateRequest(
        kind="interpolate", model="nano", images=(ring, square), frames=4, steps=2
    )
    chain = GenerateRequest(kind="chain", model="nano", text="a red ring", rounds=2, steps=2)
    sweep = [GenerateRequest(kind="image", model="nano", steps=k) for k in (1, 2, 3)]
    for requests in ([between], [between], [chain], sweep, sweep[:1]):
        [*studio.run(*requests)]
    groups = strips.together(studio.rows())[:5]
    assert [len(group) for group in groups] == [1, 3, 4, 4, 4]
    assert [row["part"] for row in groups[2]] == [0, 1, 2, 3]
    assert [row["request"]["steps"] for row in groups[1]] == [1, 2, 3]
    film = frames_of(strips.film(groups[2], "../made", "t", str))
    assert [bool(f["image"] and f["text"]) for f in film] == [True, True]  # a picture and its words
    assert [f["note"] for f in frames_of(strips.film(groups[1], "", "t", str))][0].endswith(
        "1 steps"
    )
    wall = shown._wall()
    assert wall.count("ew-strip-tile") >= 4 and "settings compared" in wall
    index = groups[4][1]["index"]
    card, _, held, _ = shown._picked(gr.EventData(None, {"index": index}))
    assert len(frames_of(card)) == 4 and len(json.loads(held)["records"]) == 4
    page, values = shown._values([row["record"] for row in groups[4]])
    first, last, frames = values[1:4]
    page_of_it = of(explore.Explore, studio)
    again = page_of_it.interpolation(first, last, frames, *values[-6:])
    assert page == "explore" and again.images == between.images and again.steps == 2
    assert shown._values([row["record"] for row in groups[1]])[1][6:9][1:] == [
        str(groups[1][0]["request"]["guidance"]).removesuffix(".0"),
        "1, 2, 3",
    ]
    *_, answer = shown._replayed(held, SimpleNamespace(session_hash="x"))
    assert "all the same" in answer


def test_a_painting_shows_its_map_and_words(studio, shown):
    page = of(paint.Paint, studio)
    regions = json.dumps([{"colour": "#e4572e", "words": "a red ring", "strength": 1}])
    painted = views.address(Image.new("RGB", (64, 64), "#e4572e"))
    asked = page.request_of(painted, regions, "a red ring", 0, "", "nano", 1, 0, 2, 0, "")
    (made,) = [e for e in studio.run(asked) if isinstance(e, Made)]
    tile = shown._tile(strips.together(studio.rows())[0])
    assert 'class="ew-map"' in tile and "painted words: a red ring" in tile
    card = shown._dropped(str(studio.out / made.row["image"]))[0]
    assert "painted words" in card and "#e4572e" in card and "../made/given/" in card


def test_every_kind_has_its_words(studio):
    tasks = {task for name in studio.names for task in studio.model(name).system.tasks}
    assert {*KINDS, *tasks} <= kinds.CALLED.keys()
    assert kinds.called("depth-to-image") == "depth to image"


def test_what_a_prompt_is_read_as_is_told_beside_it(studio):
    page = of(create.Create, studio)
    assert "did you mean pizza?" in page._remarked("mini", "a pizzza and a fox on blue")
    assert "did you mean bread?" in page._remarked("mini", "bred")
    assert page._remarked("mini", " ") == page._remarked("nowhere", "a fox") == ""
    assert "taken as" in page._remarked("mini", "a fox")
    assert "taken as" not in of(paint.Paint, studio)._remarked("mini", "a fox")


def test_what_is_shown_is_escaped():
    html = views.pair({"text": "<b>&"}) + views.facts([("a", "<i>")]) + views.trouble('"<x>')
    assert "<b>" not in html and "<i>" not in html and "<x>" not in html
    film = views.film([{"text": '"><script>'}], "t", str)
    assert "<script" not in film
    sure = torch.tensor([[0.0, 0.5], [1.0, 0.25]])
    cells = re.findall(r'<i class="([^"]*)" style="--p:([\d.]+)"', views.heat(sure, str))
    assert cells == [("ew-masked", "0.00"), ("", "0.50"), ("", "1.00"), ("", "0.25")]


def test_a_picture_keeps_its_pixels_in_an_address():
    picture = red(300)
    picture.putpixel((1, 1), (3, 2, 1))
    kept = base64.b64decode(views.address(picture).partition(",")[2])
    assert Image.open(io.BytesIO(kept)).tobytes() == picture.tobytes()
    assert views.address(picture, whole=False).startswith("data:image/jpeg")


def test_the_plane_has_a_button_for_every_way():
    drawn = plane.drawing(red(), "a fox", ["joint", "text-to-image"], str)
    assert re.findall('data-way="([^"]+)"', drawn) == ["text-to-image", "joint"]
    dot = plane.small({"image": 1.0, "text": 0.0}, str)
    assert 'cx="40.0" cy="40.0"' in dot and plane.small({"image": 1.0}, str) == ""


def test_a_chart_has_its_points_where_they_belong():
    drawn = chart.lines({"a": [(0, 0), (1, 1)]}, "y", "x")
    (path,) = re.findall('class="ew-curve ew-curve-0" d="M([^"]+)"', drawn)
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in path.split("L"))
    assert x0 == chart.LEFT and x1 == chart.WIDE - 10 and y0 > y1
    assert chart.lines({"a": [(0, 0)]}, "y", "x") == ""


def test_what_a_training_is_told_in_one_line(studio):
    page = of(Train, studio)
    out, words = page._words("shapes", "nano", "runs/x", "30m", "steps=5 cache=9")
    line = ["nano", "--out", "runs/x", "--data", "shapes", "--budget", "30m"]
    assert out == "runs/x" and words == [*line, "--set", "steps=5", "--set", "cache=9"]
    assert page._words("", "nano", " ", "", "") == ("runs/nano", ["nano", "--out", "runs/nano"])
    assert "ew-trouble" in page._started("shapes", "nano", "runs/x", "soon", "")[0]
    assert "is not KEY=VALUE" in page._started("shapes", "nano", "runs/x", "", "steps")[0]


def test_every_sentence_has_its_korean(studio):
    heard = set()

    def say(sentence):
        heard.add(sentence)
        return sentence

    import everyway.apps.studio.site as site

    former, site.said = site.said, lambda sentence, language: say(sentence)
    try:
        pages(studio, "ko")
    finally:
        site.said = former
    sources = "".join(p.read_text("utf-8") for p in Path(site.__file__).parent.glob("*.py"))
    heard |= {*re.findall(r'(?<![\w.])(?:self\.)?say\(\s*"([^"{}]+)"\s*\)', sources)}
    tables = (kinds.CALLED, blend.MIXED, paint.FORMS, train.BUILT_IN)
    heard |= {words for table in tables for words in table.values()}
    blended = GenerateRequest(kind="image", contexts=[{"text": "a"}])
    heard |= {kinds.called_of(blended), kinds.called_of(blended, 2), "painted words"}
    lacking = [s for s in heard if re.search("[A-Za-z]{2}", s) and said(s, "ko") == s]
    assert len(heard) > 120 and lacking == []
    assert said("step 3 of 24", "ko") == "24스텝 가운데 3"
    assert (
        said("the text is empty; say what to draw", "ko") != "the text is empty; say what to draw"
    )


def test_every_korean_sentence_is_said():
    import everyway.apps.studio.site as site

    folder = Path(site.__file__).parent
    sources = "".join(p.read_text("utf-8") for p in folder.glob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)  # a sentence over several lines
    plain = re.sub(r"\{[^{}]*\}", "{}", joined)
    table = json.loads(TABLES["ko"].read_text(encoding="utf-8"))
    assert [s for s in table if s not in plain and s not in joined] == []


def test_a_page_is_what_the_tabs_say():
    assert [*PAGES] == ["Create", "Blend", "Paint", "Explore", "Gallery", "Models", "Train"]
    assert all(issubclass(page, Page) for page in PAGES.values())


def test_a_training_that_runs_is_not_started_twice(studio, tmp_path, monkeypatch):
    class Endless:
        def poll(self):
            return None

        def wait(self):
            pass

        def send_signal(self, number):
            self.told = number

    page = of(Train, studio)
    out = str(tmp_path / "run")
    studio.trainings.running[out] = endless = Endless()
    with pytest.raises(UsageError, match="stop it first"):
        studio.trainings.start(out, ["nano"])
    page._stop_training(out, SimpleNamespace(session_hash="x"))
    assert endless.told == 2 and studio.trainings.ends(out)  # SIGINT
    del studio.trainings.running[out]
