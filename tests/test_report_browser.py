"""The page in headless Chromium, with the network off: no error, no request, and every control works.

Skipped where Debian's ``chromium`` or the package ``playwright`` is missing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import ddsmoothing as dds
from ddsmoothing.report import write_report
from ddsmoothing.tables import labels_of, percent
from report_helpers import hostile, many

CHROMIUM = shutil.which("chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the program chromium is not installed")

FIRST_ROW = "#rows tbody tr:first-child td"
SORTED = """() => new Promise((done) => {
  const start = performance.now();
  document.querySelector('[data-column=radius] button').click();
  document.getElementById('rows').getBoundingClientRect();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));
})"""


@dataclass
class Seen:
    """An open page and what went wrong or was asked for while it was open."""

    page: Any
    path: Path
    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def check(self) -> None:
        assert self.troubles == []
        assert set(self.requests) == {self.path.as_uri()}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Seen]]:
    """Open a page at a width, without a network, and watch it."""
    contexts = []

    def go(path: Path, width: int = 1200, **options: Any) -> Seen:
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        contexts.append(context)
        seen = Seen(context.new_page(), path)
        seen.page.on("console", lambda message: seen.troubles.append(f"{message.type}: {message.text}"))
        seen.page.on("pageerror", lambda error: seen.troubles.append(str(error)))
        seen.page.on("request", lambda r: None if r.url.startswith("data:") else seen.requests.append(r.url))
        seen.page.goto(path.as_uri())
        return seen

    yield go
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def small(run_l2: dds.Run, run_l1: dds.Run, data: dds.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([run_l2, run_l1], tmp_path_factory.mktemp("page") / "r.html", [data])


def column(seen: Seen, name: str) -> list[str]:
    return seen.page.locator(f"#rows tbody td[data-column={name}]").all_inner_texts()


def test_sort_and_filter(visit: Callable[..., Seen], small: Path, run_l2: dds.Run, run_l1: dds.Run) -> None:
    seen = visit(small)
    page = seen.page
    assert page.inner_text("#status") == "Rows 1 to 24 of 24"
    assert column(seen, "id") == [str(i) for i in run_l2.ids for _ in range(2)]
    page.click("[data-column=radius] button")
    assert page.get_attribute("[data-column=radius]", "aria-sort") == "ascending"
    assert page.get_attribute("[data-column=id]", "aria-sort") is None
    radii = [float(text) for text in column(seen, "radius")]
    assert radii == sorted(radii)
    page.focus("[data-column=radius] button")
    page.keyboard.press("Enter")
    assert [float(text) for text in column(seen, "radius")] == sorted(radii, reverse=True)
    page.fill("#filters [name=radius]", "0.3")
    assert len(column(seen, "id")) == sum(radius >= 0.3 for radius in radii)
    page.select_option("#filters [name=run]", "1")
    wanted = sum(radius >= 0.3 for radius in run_l1.radius)
    assert len(column(seen, "id")) == wanted
    page.select_option("#filters [name=outcome]", label="wrong")
    page.fill("#filters [name=id]", "1")
    assert page.inner_text("#status") == "No row matches."
    page.click("#filters button[type=reset]")
    sync_api.expect(page.locator("#rows tbody tr")).to_have_count(24)
    page.fill("#filters [name=reason]", "ABST")
    reasons = [row.reason for run in (run_l2, run_l1) for row in run.rows]
    assert len(column(seen, "id")) == reasons.count("abstained")
    seen.check()


def test_curves_are_read_by_pointer_and_keys(visit: Callable[..., Seen], small: Path, run_l2: dds.Run) -> None:
    seen = visit(small)
    plot, readout = seen.page.locator("#l2-certified_accuracy"), seen.page.locator("#l2-certified_accuracy + .readout")
    at_zero = readout.inner_text()
    assert f"{100 * run_l2.correct.mean():.3f}"[:4] in at_zero
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    seen.page.mouse.move(box["x"] + 0.99 * box["width"], box["y"] + 0.3 * box["height"])
    assert "0.0 %" in readout.inner_text()
    plot.focus()
    for _ in range(30):
        seen.page.keyboard.press("Shift+ArrowLeft")
    assert readout.inner_text() == at_zero
    seen.page.keyboard.press("ArrowRight")
    assert readout.inner_text() != at_zero
    seen.check()


def test_tiles_are_those_of_the_run_and_radius_chosen(visit: Callable[..., Seen], small: Path, run_l1: dds.Run) -> None:
    seen = visit(small)
    page, told = seen.page, lambda name: seen.page.inner_text(f"dd[data-tile={name}]")
    before = told("acr")
    page.select_option("#choose [name=run]", "1")
    page.select_option("#choose [name=radius]", label="0.25")
    assert told("zero") == f"{percent(int(run_l1.correct.sum()), len(run_l1))} %"
    assert told("acr") != before
    hits = int((run_l1.correct & (run_l1.radius >= 0.25)).sum())
    assert told("chosen") == f"{percent(hits, len(run_l1))} %"
    assert page.inner_text("span[data-tile=radius]") == "0.25"
    assert "L1 norm" in page.inner_text("#trust")
    seen.check()


def test_one_run_need_not_be_chosen(visit: Callable[..., Seen], run_l2: dds.Run, tmp_path: Path) -> None:
    seen = visit(write_report([run_l2], tmp_path / "r.html"))
    assert not seen.page.locator("#choose [name=run]").is_visible()
    assert seen.page.locator("#choose [name=radius]").is_visible()


def test_the_contents_stay_and_lead_to_their_sections(visit: Callable[..., Seen], small: Path) -> None:
    seen = visit(small)
    bar = seen.page.locator("#contents")
    for link in ("#headline", "#limits", "#overview"):
        seen.page.click(f"#contents a[href='{link}']")
        assert bar.bounding_box()["y"] >= 0
        if link != "#overview":
            assert bar.bounding_box()["y"] == 0
            assert bar.bounding_box()["height"] - 1 <= seen.page.locator(link).bounding_box()["y"] < 900
    assert seen.page.evaluate("scrollY") == 0
    seen.check()


def test_on_a_narrow_screen_tables_become_cards(visit: Callable[..., Seen], small: Path) -> None:
    """Every cell lies inside the window with its column's name before it, and the rows can still be sorted."""
    seen = visit(small, 400)
    for cells in ("table.numbers td", "#rows td"):
        boxes = seen.page.locator(f"{cells}:visible").evaluate_all(
            "(all) => all.map((e) => [e.getBoundingClientRect().left, e.getBoundingClientRect().right])"
        )
        assert len(boxes) > 20
        assert all(0 <= left < right <= 400 for left, right in boxes)
    name = "(e) => getComputedStyle(e, '::before').content"
    assert seen.page.locator("[aria-labelledby=headline] td").first.evaluate(name) == '"inputs"'
    assert seen.page.locator("#rows td[data-column=radius]").first.evaluate(name) == '"Radius"'
    seen.page.click("#rows [data-column=radius] button")
    radii = [float(text) for text in column(seen, "radius")]
    assert radii == sorted(radii)
    seen.check()


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (400, "dark")])
def test_nothing_is_wider_than_the_window(
    visit: Callable[..., Seen], small: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    seen = visit(small, width, color_scheme=scheme)
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width
    dark = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
    broken = "[...document.images].filter((i) => !i.complete || !i.naturalWidth).length"
    assert seen.page.evaluate(broken) == 0
    assert seen.page.locator("#rows img").count() == 48
    assert all(seen.page.locator("img").nth(i).get_attribute("alt") for i in range(5))
    seen.page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 20_000
    seen.check()


def test_print_shows_the_data_and_hides_the_controls(
    visit: Callable[..., Seen], small: Path, run_l2: dds.Run, run_l1: dds.Run
) -> None:
    seen = visit(small)
    assert not seen.page.locator("#which").is_visible()
    seen.page.select_option("#choose [name=run]", "1")
    seen.page.emulate_media(media="print")
    assert "L1" in seen.page.inner_text("#trust")
    assert seen.page.inner_text("#which") == labels_of([run_l2, run_l1])[1]
    for hidden in ("#filters", "#pager", "summary", "#contents", "#choose"):
        assert not seen.page.locator(hidden).first.is_visible()
    assert seen.page.locator("details table").first.bounding_box()["height"] > 50
    assert seen.page.locator("#rows tbody tr").first.is_visible()


def test_without_script_the_page_can_be_read(visit: Callable[..., Seen], small: Path) -> None:
    seen = visit(small, java_script_enabled=False)
    assert "needs JavaScript" in seen.page.inner_text("noscript")
    assert not seen.page.locator("#filters").is_visible()
    assert seen.page.locator("figure img").first.is_visible()


def test_no_name_runs(visit: Callable[..., Seen], run_l2: dds.Run, tmp_path: Path) -> None:
    seen = visit(write_report([hostile(run_l2, tmp_path), run_l2], tmp_path / "r.html"))
    seen.page.click("[data-column=reason] button")
    assert "window.hacked=1" in seen.page.inner_text("body")
    assert seen.page.evaluate("window.hacked") is None
    assert seen.page.locator("script").count() == 2
    seen.check()


def test_the_policy_stops_what_was_not_written_here(visit: Callable[..., Seen], small: Path) -> None:
    """What the policy is for: even if markup got in, it would neither run nor fetch."""
    seen, failures = visit(small), []
    seen.page.on("requestfailed", lambda request: failures.append(request.failure))
    seen.page.evaluate(
        """() => document.body.insertAdjacentHTML('beforeend',
        '<img src="https://example.org/x.png"><img src=x onerror="window.hacked=1"><p style="color:red" id=p>p</p>')"""
    )
    seen.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked=1'}))"
    )
    seen.page.wait_for_timeout(100)
    assert seen.page.evaluate("window.hacked") is None
    assert seen.page.evaluate("getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    assert any("Content Security Policy" in trouble for trouble in seen.troubles)
    assert failures == ["csp"] * (len(seen.requests) - 1)


def test_ten_thousand_inputs(visit: Callable[..., Seen], run_l2: dds.Run, tmp_path: Path) -> None:
    seen = visit(write_report([many(run_l2, 10_000)], tmp_path / "r.html"))
    opened = seen.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    milliseconds = seen.page.evaluate(SORTED)
    print(f"10,000 inputs: open {opened:.0f} ms, sort {milliseconds:.0f} ms, {seen.path.stat().st_size / 1e6:.2f} MB")
    assert seen.page.inner_text("#status") == "Rows 1 to 25 of 10,000"
    assert column(seen, "radius")[:3] == ["0.0000", "0.0001", "0.0002"]
    seen.page.click("#pager [data-step='1']")
    assert seen.page.inner_text("#status") == "Rows 26 to 50 of 10,000"
    seen.page.fill("#filters [name=radius]", "0.9")
    assert seen.page.inner_text("#status") == "Rows 1 to 25 of 1,000, chosen from 10,000"
    seen.check()
