"""Does the documentation build as a site without a warning, with every page in its contents and no broken link?"""

from __future__ import annotations

import html
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


class Links(HTMLParser):
    """Where a page's links lead, and the places on it that links may lead to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        self.places.add(of.get("id") or "")
        if tag == "a" and of.get("href"):
            self.links.append(of["href"] or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("myst_parser", reason="the extra `docs` is not installed: the site was not built")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        str(out / ".trees"),
        str(DOCS),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_in_the_contents(site: Path) -> None:
    pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
    assert {Path(link) for link in Links(site / "index.html").links} >= pages - {Path("index.html")}


def test_no_page_has_the_name_of_one_that_the_generator_writes(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        built = (site / page.relative_to(DOCS).with_suffix(".html")).read_text(encoding="utf-8")
        (title,) = re.findall(r"<h1>(.*?)<a ", built, re.DOTALL)[:1] or [""]
        heading = page.read_text(encoding="utf-8").partition("\n")[0]
        assert _letters(re.sub(r"<[^>]*>", "", html.unescape(title))) == _letters(heading), (
            f"{page.name}: name it otherwise"
        )


def _letters(text: str) -> str:
    return re.sub(r"\W", "", text)


def test_links_lead_to_pages_and_to_places_on_them(site: Path) -> None:
    pages = {page: Links(page) for page in site.rglob("*.html")}
    broken = []
    for page, found in pages.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages.get(target)
            if not target.exists() or (parts.fragment and known and unquote(parts.fragment) not in known.places):
                broken.append(f"{page.name}: {link}")
    assert not broken
