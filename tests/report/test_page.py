"""Report page: measured figures, no external resources, escaped names."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ssl_lightning.report.canvas import Picture
from ssl_lightning.report.page import protocols, render
from ssl_lightning.report.write import make_tables

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Reader(HTMLParser):
    """Collect tags with their attributes, and check that they are closed in order."""

    EMPTY = ("meta", "link", "img", "source", "wbr", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def page(tmp_path: Path, small_table: Path, leave: Any, make: Any) -> str:
    leave("ran", [make(0.4, trained=False)], task="random", images_per_s=0.0)
    for seed, value in ((0, 0.61), (1, 0.59)):
        leave(f"rot-{seed}", [make(value), make(value - 0.2, trained=False)], seed=seed)
    leave("inp", [make(0.5), make(0.1234, branch="discriminator")], task="inpainting")
    tables = make_tables(tmp_path / "outputs", small_table, None)
    picture = Picture("a", "A chart", "What it shows.", b"\x89PNG", 100, 50, dark=b"\x89PNG")
    return render(tables, {tables[0].name: [picture]})


def test_the_figures_are_there_with_values_to_sort_by(page: str) -> None:
    cells = [c for c in Reader(page).all("td") if c.get("data-value")]
    assert [c["data-value"] for c in cells if c.get("class") == "num best"] == ["60.0", "60.0"]
    assert '<span class="value">60.0</span><span class="sd"> ± 1.4</span>' in page
    assert '<span class="gain up">+20.0 ± 1.4</span>' in page
    assert "\u22121.2" in page  # measured - published
    assert "No figure of a finished run: supervised, jigsaw." in page
    assert "python train.py task=rotation seed=1 name=rot-1" in page


@pytest.mark.parametrize(("value", "shown"), [(0.41, ""), (0.42, " up"), (0.38, " down")])
def test_a_gain_within_two_standard_errors_has_no_colour(
    tmp_path: Path, small_table: Path, leave: Any, make: Any, value: float, shown: str
) -> None:
    leave("rot", [make(value), make(0.4, trained=False)])
    (table,) = make_tables(tmp_path / "outputs", small_table, None)
    gain = f"{100 * (value - 0.4):+.1f} ± 0.7".replace("-", "\u2212")
    assert f'<span class="gain{shown}">{gain}</span>' in render([table], {table.name: []})


def test_a_run_that_learned_nothing_is_marked(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    well = {"steps": 9, "optimizer_steps": 9, "zero_grad_share": 0.0, "verdict": "good"}
    well |= {"min_grad_norm": 0.5, "max_grad_norm": 2.0}
    for number, ill in enumerate(({}, {"verdict": "dead"}, {"zero_grad_share": 0.75})):
        leave(f"run-{number}", [make(0.5)], seed=number, health=well | ill)
    (table,) = make_tables(tmp_path / "outputs", small_table, None)
    page = render([table], {table.name: []})
    assert page.count('<p class="bad">') == 2
    assert (
        '<p class="bad">Bad training: verdict dead, zero gradients at 0% of the optimizer steps.</p>' in page
    )
    assert '<small class="bad">bad training</small>' in page


def test_verdicts_stand_in_the_page_and_bad_ones_in_the_notes(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    for seed, kind in enumerate(("learned", "worse than before")):
        leave(f"run-{seed}", [make(0.5)], seed=seed, verdict={"kind": kind, "text": "some figures"})
    (table,) = make_tables(tmp_path / "outputs", small_table, None)
    assert table.notes["Verdicts"] == ["rotation, seed 1: worse than before: some figures."]
    page = render([table], {table.name: []})
    for kind in ("learned", "worse than before"):
        assert f"<p>Verdict: {kind}: some figures</p>" in page


def test_every_link_leads_somewhere_in_the_page(page: str) -> None:
    reader = Reader(page)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [str(link["href"]) for link in reader.all("a")]
    assert links
    assert {link[1:] for link in links} <= set(ids)


def test_nothing_is_fetched(page: str) -> None:
    for tag, attributes in Reader(page).tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            if (value := attributes.get(name)) is not None:
                assert value.startswith(("data:", "#")), (tag, name, value)
    styles = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert styles
    assert not re.search(r"@import|url\(", styles)
    scripts = "".join(re.findall(r"<script>(.*?)</script>", page, re.DOTALL))
    assert not re.search(r"fetch|XMLHttp|import\b|https?:", scripts)
    assert "default-src 'none'" in page  # a browser would refuse external resources too


def test_names_and_errors_of_foreign_files_stay_text(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    facts = dict.fromkeys(("task", "data", "backbone", "git", "command"), EVIL)
    leave(
        "a",
        [make(0.5, note=EVIL, branch=EVIL), make(0.5, note=EVIL)],
        versions={EVIL: EVIL},
        **facts,
    )
    (leave("b", []) / "results.json").write_text(
        json.dumps({"schema": 1, "run": EVIL, "pretext": {}, "probes": []})
    )
    leave("c", [make(0.5)], status="failed", task="rotation", benchmark={"name": "small", "row": EVIL})
    for tables in (
        make_tables(tmp_path / "outputs", None, None),
        make_tables(tmp_path / "outputs", small_table, None),
    ):
        for table in tables:
            table.title = EVIL
        picture = Picture("a", EVIL, EVIL, b"", 1, 1, dark=b"")
        page = render(tables, {table.name: [picture, replace(picture, dark=None)] for table in tables})
        reader = Reader(page)
        assert len(reader.all("script")) == 1
        assert all("onerror" not in attributes for _, attributes in reader.tags)
        assert html.escape(EVIL, quote=False)[:20] in page


def test_what_protocols_share_is_said_once(tmp_path: Path, small_table: Path, leave: Any, make: Any) -> None:
    for seed, l2 in ((0, 0.1), (1, 0.01)):
        leave(f"rot-{seed}", [make(0.5, l2=l2, pool=[2, 2])], seed=seed)
    (table,) = make_tables(tmp_path / "outputs", small_table, None)
    common, rest = protocols(table.column("linear"))
    assert common == '"heldout": 0.5, "input": "image", "batch_norm": "trained", "pool": [2, 2]'
    assert rest == [['"l2": 0.1', '"l2": 0.01']]


CHECK = """
<script>
"use strict";
const names = () => [...document.querySelectorAll("table.main tbody th")].map((th) => th.dataset.value);
const heads = [...document.querySelectorAll("table.main thead th")];
const column = heads.findIndex((th) => th.textContent.startsWith("linear"));
const said = [names()];
for (let click = 0; click < 3; click++) {
  heads[column].querySelector("button").click();
  said.push(names(), heads[column].getAttribute("aria-sort"));
}
heads[0].querySelector("button").click();
said.push(names(), heads[0].getAttribute("aria-sort"), heads[column].getAttribute("aria-sort"));
location.hash = "#" + document.querySelector("table.main td a").getAttribute("href").slice(1);
addEventListener("hashchange", () => {
  const wide = document.documentElement.scrollWidth > innerWidth;
  said.push(document.querySelectorAll("details[open]").length, wide);
  document.body.dataset.said = JSON.stringify(said);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser(tmp_path: Path, page: str, width: int) -> None:
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", CHECK + "</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [
        f"--window-size={width},900",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=3000",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    said = json.loads(html.unescape(re.search(r'data-said="(.*?)"', done.stdout)[1]))  # type: ignore[index]
    given = ["random", "rotation", "inpainting", "inpainting, discriminator"]
    assert said == [
        given,
        ["rotation", "inpainting", "random", "inpainting, discriminator"], "descending",
        ["inpainting, discriminator", "random", "inpainting", "rotation"], "ascending",
        given, None,
        ["inpainting", "inpainting, discriminator", "random", "rotation"], "ascending", None,
        1, False,
    ]  # fmt: skip
