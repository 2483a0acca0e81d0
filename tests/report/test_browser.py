"""Page in a real browser: wide and on a phone, light and dark."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssl_lightning.report.write import PAGE, write_report
from tests.report.browser import DECODED, PROGRAM, Browser
from tests.report.test_pictures import METRICS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="needs Chromium: apt-get install chromium"),
]

# Texts that leave the window, are cut by their box, or lie on other texts. What scrolls in a box of its own
# may leave the window; a text beyond the edge of such a box is not seen.
FAULTS = """(() => {
  const found = [], texts = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const parent = node.parentElement;
    if (!node.textContent.trim() || !parent.checkVisibility() || parent.closest("script, style")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = parent.closest(".scroll")?.getBoundingClientRect();
    for (const line of range.getClientRects()) {
      const text = node.textContent.trim();
      if (!box && (line.left < -1 || line.right > innerWidth + 1)) found.push("outside: " + text);
      if (!box || line.left < box.right) texts.push([text, line]);
    }
    for (let each = parent; each && !each.matches(".scroll, body"); each = each.parentElement) {
      const cuts = getComputedStyle(each).overflowX !== "visible";
      if (cuts && each.scrollWidth > each.clientWidth + 1) found.push("cut: " + node.textContent.trim());
    }
  }
  texts.forEach(([one, a], place) => texts.slice(place + 1).forEach(([other, b]) => {
    const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (width > 2 && height > 5) found.push(`overlap: ${one} | ${other}`); // lines touch by their leading
  }));
  if (document.documentElement.scrollWidth > innerWidth) found.push("the page scrolls sideways");
  return found;
})()"""
OPENED = """(() => {
  document.querySelectorAll("details").forEach((each) => { each.open = true; });
  document.querySelectorAll("button.enlarge").forEach((each) => each.click());
})()"""
SHOWN = """[...document.querySelectorAll(".chart img")].filter((image) => image.checkVisibility())
.map((image) => ({
  left: image.getBoundingClientRect().left,
  width: image.getBoundingClientRect().width,
  pixels: image.naturalWidth,
}))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture
def page(tmp_path: Path, small_table: Path, leave: Any, make: Any) -> Path:
    """A page with all its parts: charts, pictures of tasks, long names, bad runs, notes."""
    leave("ran", [make(0.4, trained=False)], task="random", images_per_s=0.0)
    for seed, value in ((0, 0.61), (1, 0.59)):
        shots = [make(0.1 * k, probe="lowshot", k_shot=k, sd=0.01) for k in (1, 2, 4)]
        stages = [make(value, stage="stage1"), make(value - 0.1, 0.4, stage="stage2")]
        folder = leave(f"rot-{seed}", [*stages, *shots, make(value - 0.2, trained=False)], seed=seed)
        (folder / "metrics.csv").write_text(METRICS)
        (folder / "panels").mkdir()
        for epoch in (1, 2):
            Image.new("RGB", (693, 1199), "teal").save(folder / "panels" / f"epoch_{epoch:04d}.png")
    verdict = {"kind": "worse than before", "text": "figures " * 9}
    both = [make(0.5), make(0.1234, branch="discriminator")]
    folder = leave("inp", both, task="inpainting", verdict=verdict)
    Image.new("RGB", (1299, 1000), "navy").save(folder / "strip.png")
    leave("off", [], task="jigsaw", status="failed")
    long = "a_task_of_another_package_with_a_long_name"
    leave("long", [make(0.3)], task=long, benchmark={"name": "small", "budget": "cpu", "row": long})
    write_report(tmp_path / "outputs", tmp_path / "report", small_table, None)
    return tmp_path / "report" / PAGE


def test_the_page(browser: Browser, page: Path) -> None:
    for width, scheme in product((1280, 390), ("light", "dark")):
        browser.open(page, width, 900, scheme)
        assert browser.run(FAULTS) == [], (width, scheme)
        assert browser.run(DECODED)
        shown = browser.run(SHOWN)
        assert len(shown) == 4  # and one is folded
        assert {(each["left"], each["width"]) for each in shown} == {(shown[0]["left"], shown[0]["width"])}
        assert shown[0]["width"] > 0.85 * width  # no half-empty page
        assert all((each["pixels"] > 2000) == (width == 1280) for each in shown)  # a phone has its own charts
        browser.run(OPENED)
        assert browser.run(DECODED)
        assert browser.run(FAULTS) == [], (width, scheme)
        paper = browser.run("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 21, 26)"}[scheme]
        assert browser.requests() == [page.as_uri()]
        assert browser.errors() == []


def test_faults_are_found(browser: Browser, tmp_path: Path) -> None:
    """The check sees a wide text, a text on another, a cut text, an error and a request."""
    place = '<p style="position: absolute; top: 90px; left: 40px">'
    broken = tmp_path / "broken.html"
    broken.write_text(
        '<!doctype html><body><p style="width: 3000px">wide <span style="float: right">far</span></p>'
        f"{place}upper</p>{place}lower</p>"
        '<p style="width: 30px; overflow: hidden; white-space: nowrap">a text that is cut</p>'
        '<img src="missing.png"><script>console.error("told")</script></body>'
    )
    browser.open(broken, 1280, 900, "light")
    found = browser.run(FAULTS)
    faults = "outside: far", "overlap: upper | lower", "cut: a text that is cut", "the page scrolls sideways"
    assert set(faults) <= set(found)
    assert any("told" in error for error in browser.errors())
    assert any(address.endswith("missing.png") for address in browser.requests())
