"""Do pages work in headless Chromium? Keys, clicks, dark, narrow, print, and names that try to run something."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import report_samples
from browser import Browser, browser, missing
from PIL import Image

from onnxcomp.report import html, html_index

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
PHONE = (390, 844)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture
def page(window: Browser, tmp_path: Path) -> Browser:
    """A report of 30 layers, on a wide screen, light."""
    html.write_html(report_samples.report(30), tmp_path / "x.html")
    window.screen(1200, 1000)
    window.medium()
    window.open(tmp_path / "x.html")
    return window


def test_arrow_keys_walk_through_the_changed_parts(page: Browser) -> None:
    page.run("document.querySelector('.part input').focus()")
    names = page.run("return [...document.querySelectorAll('.part .view')].map(e => e.getAttribute('aria-label'))")
    for index in range(1, 4):
        page.press("down")
        (seen,) = page.run(
            "return [...document.querySelectorAll('.view')].filter(e => e.checkVisibility())"
            ".map(e => e.getAttribute('aria-label'))"
        )
        assert seen == names[index]
    page.press("up")
    assert page.run("return document.activeElement.closest('.part').querySelector('.view').checkVisibility()")


def test_a_click_shows_a_part_before_and_after(page: Browser) -> None:
    page.click(".part:nth-of-type(2) label")
    (view,) = page.shown(".view")
    assert "before" in view
    assert "after; 3 more nodes" in view
    assert page.shown(".view svg") and len(page.shown(".view svg")) == 2


def test_a_click_puts_the_worst_layers_first(page: Browser) -> None:
    def order() -> list[str]:
        rows = page.run(
            "return [...document.querySelectorAll('.row:not(.top)')]"
            ".sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top)"
            ".map(e => e.firstChild.textContent)"
        )
        return list(rows)

    found = report_samples.report(30)
    assert order() == [layer.node for layer in found.layers]
    page.click("#by-error")
    worst = min((x for x in found.layers if x.own_sqnr_db is not None), key=lambda x: x.own_sqnr_db or 0.0)
    assert order()[0] == worst.node


def test_a_phone_shows_verdict_and_budgets_first_and_nothing_sticks_out(page: Browser, tmp_path: Path) -> None:
    html_path = tmp_path / "build.html"
    html_path.write_text(html_index.document(report_samples.build(), {}), encoding="utf-8")
    page.screen(*PHONE)
    assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]
    assert page.run("return document.querySelector('#budgets').getBoundingClientRect().bottom") < PHONE[1]
    page.open(html_path)
    assert page.run("return document.documentElement.scrollWidth") <= PHONE[0]
    badge = "return document.querySelector('#models .badge').getBoundingClientRect().bottom"
    assert page.run(badge) < PHONE[1]


def test_print_shows_every_row_and_every_part(page: Browser) -> None:
    page.medium("print")
    assert len(page.shown(".row:not(.top)")) == 30
    assert len(page.shown(".view")) == 30
    assert page.run("return document.querySelector('.rows').scrollHeight") > 30 * 15
    assert not page.shown("nav")


def test_light_and_dark_pages_are_drawn(page: Browser, tmp_path: Path) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page.medium(scheme=scheme)
        pixels = np.asarray(Image.open(page.picture(tmp_path / f"{scheme}.png")).convert("L"), np.float64)
        grounds.append(float(np.median(pixels)))
        assert pixels.std() > 10  # something is drawn on it
    assert grounds[0] > 240
    assert grounds[1] < 40


def test_hostile_names_do_nothing(window: Browser, tmp_path: Path) -> None:
    html.write_html(report_samples.report(33, report_samples.hostile_name), tmp_path / "x.html")
    window.open(tmp_path / "x.html")
    assert window.run("return document.title").endswith("over-budget")
    assert window.run("return document.querySelectorAll('script, img').length") == 0
    assert window.run("return document.querySelectorAll('style').length") == 1
    assert window.run("return document.querySelectorAll('.row:not(.top)').length") == 33


def test_pictures_of_flipped_samples_are_shown_from_the_page_alone(window: Browser, tmp_path: Path) -> None:
    from onnxcomp.data.sheet import thumbnail

    tiny = thumbnail(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))
    large = thumbnail(np.full((300, 200, 3), 200, np.uint8))
    html.write_html(report_samples.report(2), tmp_path / "x.html", {0: tiny, 1: large})
    assert not re.search(r'src="(?!data:)', (tmp_path / "x.html").read_text())
    window.open(tmp_path / "x.html")
    sizes = window.run("return [...document.querySelectorAll('img')].map(e => [e.naturalWidth, e.naturalHeight])")
    assert sizes == [[8, 8], [64, 96]]
