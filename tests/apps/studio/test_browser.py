"""Every page of the studio in a real browser.  Slow: `pytest -m slow tests/apps/studio`; with
EVERYWAY_SHOTS=docs in front it writes the pictures of the documents anew."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from browsing import NARROW, PATIENCE, Visit, browsing, serving
from PIL import Image

import everyway

pytestmark = pytest.mark.slow
STOPPED = "document.querySelector('#training')?.innerText.includes('it stands')"
NAMES = ["mini", "mini-versatile", "mini-vq", "nano"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("studio")
    with serving(out, NAMES) as (address, studio):
        yield address, studio


@pytest.fixture(scope="module")
def browser():
    with browsing() as made:
        yield made


@pytest.fixture
def visit(site, browser):
    """Opens a page of the studio; afterwards nothing was asked of others, and nothing failed."""
    made = []

    def call(**settings):
        made.append(Visit(browser, site[0], **settings))
        return made[-1]

    yield call
    for one in made:
        one.page.close()
        assert one.foreign == [] and one.faults == []


@pytest.fixture(scope="module")
def fox(site, tmp_path_factory):
    """A picture of another folder that says nothing of itself."""
    path = tmp_path_factory.mktemp("given") / "fox.png"
    site[1].example("a large fox on blue").picture.save(path)
    return path


def last(studio):
    """The newest result."""
    return studio.rows()[0]


def test_the_front_page_makes_what_a_line_of_the_plane_says(visit, site):
    one = visit()
    page = one.page
    assert page.locator("#hero [data-way]").count() == 5
    page.locator("#hero [data-way=joint]").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#made .ew-made img")
    assert last(site[1])["request"]["kind"] == "joint"
    one.shot("create")
    page.click("#hero [data-way=image-to-text]")
    page.wait_for_function("document.querySelector('#made .ew-made')?.innerText.includes('fox')")


def test_an_upload_is_described(visit, site, fox):
    one = visit()
    one.page.set_input_files("#image input[type=file]", fox)
    one.page.wait_for_selector("#image img")
    one.page.wait_for_function(
        "document.querySelector('#way input:checked')?.value === 'image-to-text'"
    )
    one.page.click("#make")
    one.page.wait_for_selector("#made .ew-made .ew-words")
    said = one.page.inner_text("#made .ew-made .ew-words")
    assert said == last(site[1])["text"] and "fox" in said and "blue" in said


def test_picture_and_words_come_together_while_it_runs(visit, site):
    one = visit()
    page = one.page
    one.settings()
    one.set_number("#settings .ew-steps", 300)
    page.click("#make")
    page.wait_for_selector("#made .ew-going .ew-pair img")
    early = page.evaluate("document.querySelector('#made .ew-going .ew-pair img').src")
    assert page.inner_text("#made .ew-going .ew-words").strip()
    assert re.search(r"step \d+ of 300", page.inner_text("#made .ew-where"))
    assert page.locator("#made .ew-small-plane circle").count() == 1
    page.wait_for_selector("#made .ew-made img")
    assert page.evaluate("document.querySelector('#made .ew-made img').src") != early
    row = last(site[1])
    assert row["request"]["kind"] == "joint" and row["text"] == page.inner_text("#made .ew-words")
    film = page.locator("#made ew-film")
    assert film.locator(".ew-strip button").count() >= 3
    before = film.locator(".ew-stage img").get_attribute("src")
    film.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    assert film.locator(".ew-stage img").get_attribute("src") != before
    assert "of 300" in film.locator("input[type=range]").get_attribute("aria-valuetext")


def test_tokens_unmask_with_how_sure_they_are(visit, site):
    one = visit()
    page = one.page
    one.settings()
    page.fill("#settings .ew-model input", "mini-vq")
    page.keyboard.press("Enter")
    page.fill("#text textarea", "a large fox on blue")
    page.wait_for_function("document.querySelectorAll('#way input').length === 1")
    page.click("#make")
    page.wait_for_selector("#made .ew-made img")
    film = page.locator("#made ew-film")
    masked = []
    for k in range(film.locator(".ew-strip button").count()):
        film.locator(".ew-strip button").nth(k).click()
        assert film.locator(".ew-heat i").count() == 9  # nine codes
        masked.append(film.locator(".ew-heat i.ew-masked").count())
    assert masked == sorted(masked, reverse=True) and masked[0] > masked[-1]
    film.locator(".ew-strip button").nth(len(masked) // 2).click()
    page.click("#settings button")
    page.evaluate("document.querySelector('.ew-examples').scrollIntoView()")
    one.shot("tokens")


def test_a_painting_is_loaded_into_its_page_and_made_again(visit, site):
    one = visit()
    page = one.page
    one.open("paint")
    page.click("#paint")
    page.wait_for_selector("#painted .ew-made img")
    before = last(site[1])
    one.open("gallery")
    page.click(f"#wall button[data-row='{before['index']}']")
    page.wait_for_selector("#told .ew-card")
    page.click("#load")
    page.wait_for_selector("#map canvas", state="visible")
    page.wait_for_function("document.querySelector('#map ew-canvas').regions.length === 3")
    page.fill("#paint-text textarea", "a teapot and a fox on blue")
    page.click("#paint")
    page.wait_for_function("document.querySelector('#painted').innerText.includes('a teapot and')")
    again = last(site[1])["request"]
    assert again == before["request"] | {"text": "a teapot and a fox on blue"}


def test_stopped_and_kept(visit, site):
    one = visit()
    page = one.page
    assert page.locator(".ew-stop:visible").count() == 0
    one.settings()
    one.set_number("#settings .ew-steps", 1000)
    page.click("#make")
    page.wait_for_selector("#made .ew-going .ew-pair img")
    assert page.locator(".ew-stop:visible").count() == 1
    page.locator(".ew-stop:visible").click()
    page.wait_for_selector("#made .ew-made img")
    assert page.locator(".ew-stop:visible").count() == 0  # nothing runs
    step, steps = last(site[1])["facts"]["stopped"]
    assert 0 < step < steps == 1000
    assert f"stopped at step {step} of 1000" in page.inner_text("#made")


def test_a_blend_with_a_mask(visit, site):
    one = visit()
    page = one.page
    one.open("blend")
    page.click("#blend-example")
    page.wait_for_selector("#blend-1 img")
    page.click("#page-blend .ew-slot button:has-text('Mask')")
    page.wait_for_selector("#blend-mask-1 canvas", state="visible")
    rows = [(x, y) for y in (0.35, 0.5, 0.65) for x in (0.3, 0.7)]
    one.drag("#blend-mask-1 canvas", *rows)
    page.click("#blend")
    page.wait_for_selector("#blended .ew-made img")
    first, second = last(site[1])["request"]["contexts"]
    assert second["text"] == "a small pizza on green"
    with Image.open(first["mask"]) as mask, Image.open(first["image"]) as picture:
        assert mask.size == picture.size
        shown = np.asarray(mask.convert("L"))
    assert {*np.unique(shown)} == {0, 255} and shown[48, 48] == 255 and shown[2, 2] == 0
    one.shot("blend", whole=True)


def test_two_words_are_painted(visit, site):
    one = visit()
    page = one.page
    one.open("paint")
    page.wait_for_selector("#map canvas")
    page.click("#map [data-tool=clear]")
    rows = page.locator("#map .ew-region")
    for k, (words, x) in enumerate((("a rocket", 0.2), ("a panda", 0.8))):
        rows.nth(k).locator("input[type=text]").fill(words)
        rows.nth(k).locator("input[type=radio]").check()
        one.drag("#map canvas", (x, 0.42), (x, 0.58))
    rows.nth(2).locator("input[type=text]").fill("yellow background")
    rows.nth(2).locator("button").click()
    page.fill("#paint-text textarea, #paint-text input", "a rocket and a panda on yellow")
    page.click("#paint")
    page.wait_for_selector("#painted .ew-made img")
    row = last(site[1])
    told = {colour: words[0] for colour, words in row["request"]["words"].items()}
    assert [*told.values()] == ["a rocket", "a panda", "yellow background"]
    with Image.open(row["request"]["paint"]) as painted:
        pixels = np.asarray(painted.convert("RGB"))
    colours = {"#" + bytes(c).hex() for c in np.unique(pixels.reshape(-1, 3), axis=0)}
    assert colours == {*told}  # whole pixels, and all of it is painted
    with Image.open(site[1].out / row["image"]) as image:
        drawn = np.asarray(image.convert("RGB"), dtype=int)
    ground = drawn[4, 48]
    busy = (np.abs(drawn - ground) > 60).any(-1)
    assert busy[:, :32].mean() > 0.1 and busy[:, 64:].mean() > 0.1 > busy[:, 40:56].mean()
    one.shot("paint", whole=True)


def test_the_canvas_is_painted_with_keys_alone(visit):
    one = visit()
    page = one.page
    one.open("paint")
    page.wait_for_selector("#map canvas")
    page.click("#map [data-tool=clear]")
    canvas = page.evaluate_handle("document.querySelector('#map ew-canvas')")
    assert canvas.evaluate("c => c.value") == ""
    page.locator("#map .ew-region input[type=radio]").first.check()
    page.locator("#map canvas").focus()
    canvas.evaluate("c => { c.cursor = [96, 96]; }")
    for key in ("ArrowLeft", "ArrowUp", "b", " "):
        page.keyboard.press(key)
    inked = "c => [...c.pixels()].filter((v, k) => k % 4 === 3 && v).length"
    first = canvas.evaluate(inked)
    assert first > 100 and canvas.evaluate("c => [...c.colours()]") == ["#e4572e"]
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("B")
    page.keyboard.press(" ")
    assert canvas.evaluate(inked) > first
    page.keyboard.press("z")
    assert canvas.evaluate(inked) == first


def test_ways_between_pictures_and_what_settings_do(visit, site):
    one = visit()
    page = one.page
    one.open("explore")
    page.click("#between-example")
    page.wait_for_function("document.querySelectorAll('#page-explore .image-frame img').length > 1")
    page.click("#between-make")
    page.wait_for_selector("#between ew-film .ew-strip button")
    assert page.locator("#between ew-film .ew-strip button").count() == 9
    page.locator("#between ew-film .ew-strip button").nth(4).click()
    one.shot("explore", whole=True)
    tabs = page.locator("#page-explore button[role=tab]:visible")
    tabs.nth(1).click()
    page.click("#chain-make")
    page.wait_for_selector("#chain ew-film .ew-strip button")
    assert page.locator("#chain ew-film .ew-strip button").count() == 4  # a picture and its words
    tabs.nth(2).click()
    page.click("#grid-make")
    page.wait_for_function("document.querySelectorAll('#grid td img').length === 16")
    tabs.nth(3).click()
    page.click("#look-make")
    page.wait_for_selector("#look .ew-chart path.ew-curve")


def test_a_tool_stops_and_keeps_what_it_made(visit, site):
    one = visit()
    page = one.page
    one.open("explore")
    page.locator("#page-explore button[role=tab]:visible").nth(2).click()
    page.fill("#page-explore label:has-text('Steps, with') >> input, textarea", "1, 1000")
    page.click("#grid-make")
    page.wait_for_function("document.querySelectorAll('#grid td img').length === 1")
    page.locator(".ew-stop:visible").click()
    page.wait_for_selector("#grid .ew-going", state="detached")
    assert page.locator(".ew-stop:visible").count() == 0
    assert 1 <= page.locator("#grid td img").count() <= 2  # the second as it was
    assert last(site[1])["facts"]["together"]


def test_a_strip_opens_in_the_gallery_and_is_loaded_into_its_tool(visit):
    one = visit()
    page = one.page
    one.open("gallery")
    page.click("#wall button[aria-label^='between two pictures']")
    page.wait_for_selector("#told ew-film")
    assert page.locator("#told ew-film .ew-strip button").count() == 9
    assert page.locator("#wall button[aria-label^='between two pictures']").count() == 1
    page.click("#load")
    page.wait_for_selector("#between-make", state="visible")
    page.wait_for_function("document.querySelectorAll('#page-explore .image-frame img').length > 1")
    assert page.locator("#page-explore .ew-steps input[type=number]").input_value() == "24"


def test_what_a_person_chooses_is_made(visit, site):
    one = visit()
    page = one.page
    page.check("#way input[value=image]")
    page.click("#make")
    page.wait_for_selector("#made .ew-made img")
    assert last(site[1])["request"]["kind"] == "image"


def test_what_cannot_be_read_is_told_where_it_is_given(visit, tmp_path):
    one = visit()
    page = one.page
    page.fill("#text textarea", "a large bred on blue")
    page.wait_for_function(
        "document.querySelector('#page-create .ew-remarks')?.innerText.includes('mean bread?')"
    )
    (tmp_path / "odd.png").write_text("no picture")
    page.set_input_files("#image input[type=file]", tmp_path / "odd.png")
    page.wait_for_selector("#page-create .ew-remarks .ew-trouble")
    page.click("#make")
    page.wait_for_selector("#made .ew-trouble")
    assert "not a picture" in page.inner_text("#made .ew-trouble")


def test_the_address_names_the_page(visit):
    one = visit()
    page = one.page
    one.open("blend")
    one.open("models")
    page.go_back()
    page.wait_for_selector("#page-blend", state="visible")
    page.reload()
    page.wait_for_selector("#page-blend", state="visible")
    page.click(".ew-switches a")
    page.wait_for_url("**/ko/#blend")
    page.wait_for_selector("#page-blend", state="visible")
    assert page.locator("#ew-nav [aria-current]").get_attribute("data-page") == "blend"
    one.open("paint")
    words = page.locator("#map .ew-region input[type=text]").first.input_value()
    assert words == "여우" and page.inner_text("#map [data-tool=undo]").strip().endswith("되돌리기")


def test_settings_come_back_out_of_a_png(visit, site):
    studio = site[1]
    one = visit()
    page = one.page
    one.settings()
    one.set_number("#settings .ew-seed", 7)
    page.fill("#text textarea", "a small rocket left of a large cactus on yellow")
    page.click("#make")
    page.wait_for_selector("#made .ew-made img")
    row = last(studio)
    path = studio.out / row["image"]
    again = visit()
    again.open("gallery")
    again.page.set_input_files("#drop input[type=file]", path)
    again.page.wait_for_selector("#told .ew-facts")
    again.page.click("#replay")
    again.page.wait_for_selector("#answer .ew-good")
    again.shot("gallery")
    again.page.click("#load")
    again.page.wait_for_selector("#page-create", state="visible")
    again.page.wait_for_function(
        "document.querySelector('#text textarea').value.startsWith('a small rocket')"
    )
    again.page.click("#make")
    again.page.wait_for_selector("#made .ew-made img")
    fresh = last(studio)
    assert fresh["index"] != row["index"] and fresh["seed"] == 7
    assert fresh["request"] == row["request"]
    with Image.open(path) as was, Image.open(studio.out / fresh["image"]) as now:
        assert was.tobytes() == now.tobytes()


def test_a_nano_training_starts_stops_and_goes_on(visit, site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(everyway.__file__).parents[1]))
    one = visit()
    page = one.page
    out = Path("runs/mine")
    one.open("train")
    page.fill("#train-out textarea, #train-out input", str(out))
    small = "steps=4000 cache=300 batch=32 sample_every=30 log_every=5"
    page.fill("#train-set textarea, #train-set input", small)
    page.click("#train-start")
    page.wait_for_selector("#training .ew-chart path.ew-curve", timeout=2 * PATIENCE)
    page.wait_for_selector("#training .ew-sheet", timeout=2 * PATIENCE)
    one.shot("train")
    page.click("#train-stop:visible")
    page.wait_for_function(STOPPED, timeout=3 * PATIENCE)
    assert page.locator(".ew-stop:visible").count() == 0
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert (out / "state.safetensors").is_file() and 0 < rows[-1]["step"] < 4000
    page.click("#train-start")
    deadline = time.monotonic() + PATIENCE / 500
    while True:
        now = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        if now[-1]["step"] > rows[-1]["step"] + 5:
            break
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert now[: len(rows)] == rows  # it went on
    page.click("#train-stop")
    page.wait_for_function(STOPPED, timeout=3 * PATIENCE)


def test_the_price_is_told_before_a_training(visit, tmp_path):
    one = visit()
    one.open("train")
    one.page.fill("#train-out textarea, #train-out input", str(tmp_path / "never"))
    one.page.fill("#train-set textarea, #train-set input", "steps=200 cache=300 batch=32")
    one.page.click("#train-see")
    one.page.wait_for_selector("#train-price dd", timeout=2 * PATIENCE)
    told = one.page.inner_text("#train-price")
    assert "time" in told and "memory" in told and not (tmp_path / "never").exists()


@pytest.mark.parametrize("language", ["en", "ko"])
def test_a_phone_shows_every_page_whole(visit, language):
    one = visit(language=language, width=NARROW, dark=language == "ko")
    page = one.page
    for name in page.evaluate(
        "[...document.querySelectorAll('[data-page]')].map(e => e.dataset.page)"
    ):
        one.open(name)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW, name
        cut = "(bar => bar.scrollWidth - bar.clientWidth)(document.querySelector('#ew-nav nav'))"
        assert page.evaluate(cut) <= 0
        small = page.evaluate(
            "[...document.querySelectorAll('button')].filter(e => e.offsetParent && "
            "e.closest('#ew-nav, #ew-header, .ew-tools')).filter(e => "
            "e.getBoundingClientRect().height < 34).map(e => e.outerHTML)"
        )
        assert small == [], name


def test_the_korean_page(visit, site):
    one = visit(language="ko", width=NARROW, dark=True)
    page = one.page
    assert page.evaluate("document.documentElement.lang") == "ko"
    assert page.evaluate("document.body.classList.contains('dark')")
    assert "한 모델이 모든 방향으로" in page.inner_text("#hero h1")
    page.fill("#text textarea", "노란 배경에 큰 판다")
    page.click("#make")
    page.wait_for_selector("#made .ew-made img")
    assert last(site[1])["request"]["text"] == "노란 배경에 큰 판다"
    page.evaluate("scrollTo(0, 0)")
    one.shot("korean")
    page.fill("#text textarea", "유니콘")
    page.click("#make")
    page.wait_for_selector("#made .ew-trouble")
    assert re.search("[가-힣]", page.inner_text("#made .ew-trouble"))
    page.click("[data-theme]")
    assert not page.evaluate("document.body.classList.contains('dark')")
    page.click(".ew-switches a")
    page.wait_for_url("**/en/")


def test_what_a_browser_fetches_is_the_studio_alone(site, browser):
    """Also what a page does not ask for by itself: the policy forbids it."""
    visit = Visit(browser, site[0])
    told = visit.page.evaluate(
        "fetch('http://localhost:9/x').then(() => 'fetched', error => String(error))"
    )
    assert "fetched" not in told
    assert (
        "default-src 'self'"
        in visit.page.request.get(f"{site[0]}/en/").headers["content-security-policy"]
    )
    picture = Image.open(io.BytesIO(visit.page.screenshot()))
    assert picture.size[0] == 1400
    visit.page.close()


def test_a_first_picture_comes_within_twelve_seconds(browser, tmp_path):
    """Of the command: so many seconds of one processor, as the machine may be busy with others."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "everyway.apps.cli", "studio", "--port", "0", "--out", out]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            one = Visit(browser, re.search(r"http://[\d.:]+", line)[0])
            assert one.page.locator("#made img").first.get_attribute("src").startswith("data:image")
            one.page.click("#make")
            one.page.wait_for_selector("#made .ew-made img")
            spent = psutil.Process(process.pid).cpu_times()
            one.page.close()
        finally:
            process.send_signal(signal.SIGINT)
    assert spent.user + spent.system < 12
    assert process.returncode in (0, 130, -signal.SIGINT)
