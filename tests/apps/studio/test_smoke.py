"""One walk through the studio in a real browser, fast enough for every run of the tests."""

from __future__ import annotations

from browsing import Visit, browsing, serving
from PIL import Image

from everyway.record import read_record


def test_words_become_a_picture_in_the_browser(tmp_path):
    with browsing() as browser, serving(tmp_path, ["mini", "nano"]) as (address, studio):
        visit = Visit(browser, address)
        page = visit.page
        assert page.title() == "Everyway"
        page.fill("#text textarea", "a large panda on pink")
        page.click("#make")
        page.wait_for_selector("#made .ew-made img")
        record = read_record(tmp_path / "00000.png")
        assert (record.request.kind, record.request.text) == (
            "text-to-image",
            "a large panda on pink",
        )
        with Image.open(tmp_path / "00000.png") as image:
            red, green, blue = image.convert("RGB").getpixel((3, 3))
        assert red > 200 and green < 190 and blue > 150  # pink
        page.goto(f"{address}/")  # English, as this browser asks for
        page.wait_for_url("**/en/")
        assert visit.foreign == [] and visit.faults == []
