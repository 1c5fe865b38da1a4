"""The report in a browser: it draws without an error, asks the network for nothing, and fits a phone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferdist.reporting import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[test]'")

pytestmark = pytest.mark.slow

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def page_url(evaluated_run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report([evaluated_run], tmp_path_factory.mktemp("browser") / "report").as_uri()


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_a_browser(
    browser: playwright.Browser, page_url: str, size: dict[str, int], scheme: str
) -> None:
    with browser.new_context(viewport=size, color_scheme=scheme) as context:
        page = context.new_page()
        errors: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: errors.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_url, wait_until="load")
        assert errors == []
        assert [url for url in requests if not url.startswith("data:")] == [page_url]

        # Nothing but tables in their own boxes may be wider than the window.
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0
        ends = "c => c.filter(c => c.checkVisibility()).map(c => c.getBoundingClientRect().right)"
        assert max(page.locator("caption").evaluate_all(ends)) <= size["width"], "captions name the unit"
        charts = page.locator("figure svg")
        assert charts.count() == len(page.query_selector_all("figcaption")) >= 12
        for number in range(charts.count()):
            box = charts.nth(number).bounding_box()
            assert box is not None
            assert 200 < box["width"] <= size["width"]
            assert box["height"] > 100
        assert page.locator("#occlusion svg path").count() > 20, "the curves are there"
        decoded = """async () => {
            const links = [...document.querySelectorAll('svg image')].map(i => i.href.baseVal);
            const sizes = links.map(async link => {
                const image = new Image();
                image.src = link;
                await image.decode();
                return image.naturalWidth;
            });
            return Promise.all(sizes);
        }"""
        sides = page.evaluate(decoded)
        assert len(sides) > 80
        assert set(sides) == {48}
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
        ink = page.evaluate("getComputedStyle(document.querySelector('#attention svg text')).fill")
        levels = [int(level) for level in ink.removeprefix("rgb(").removesuffix(")").split(",")]
        assert (max(levels) < 128) == (scheme == "light"), "text in charts turns with the page"
        assert errors == []


def test_the_report_on_paper(browser: playwright.Browser, page_url: str) -> None:
    with browser.new_context(color_scheme="dark") as context:
        page = context.new_page()
        page.goto(page_url)
        paper = page.pdf(format="A4", print_background=True)
        assert paper.startswith(b"%PDF")
        pages = paper.count(b"/Type /Page\n") + paper.count(b"/Type /Page ")
        assert 2 <= pages <= 20
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 672, "height": 950})  # A4 within its margins
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0, "a browser would shrink every page for it"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.locator("details:not([open]) table").first.is_visible() is False
