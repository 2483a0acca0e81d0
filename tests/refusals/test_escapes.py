"""Escapes of texts from an untrusted results.json in everything that is written from it.

Another program reads each output back: an HTML parser, a Markdown parser, a CSV reader, and a few lines that
undo TeX's escapes. The original text must come out, and nothing else.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt

from ssl_lightning.report.build import series_tables
from ssl_lightning.report.collect import collect
from ssl_lightning.report.page import render
from ssl_lightning.report.summary import print_table
from ssl_lightning.report.table import Table
from ssl_lightning.report.write import write_report
from ssl_lightning.report.writers import LATEX, csv_text, latex, markdown, screen
from tests.refusals.test_results import GOOD

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title></textarea><svg/onload=alert(1)>",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "&lt;b&gt; &#60;i&#62;",
    r"\input{/etc/passwd} \write18{id} $x^2$ 50% #1 a_b ~ & {c}",
    "a | b | c",
    "**bold** _it_ `code` [link](http://evil) ![i](http://evil) ~~s~~",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "[bold red]rich[/] [link=http://evil]x[/link]",
]
OBEYED = ["\x1b[2J\x1b]0;owned\x07", "a\rb", "zero\0byte", "\u202etxt.exe", "\x9b31m", "\ud800", "\x08\x08"]


def slow(texts: list[str]) -> list[Any]:
    return [pytest.param(text, marks=pytest.mark.slow) for text in texts]


FEW = [HOSTILE[0], *slow(HOSTILE[1:])]  # all texts take the same path, so the fast tests use one


def leave(outputs: Path, text: str, folder: str = "x") -> None:
    """Write a finished run that has the text in every text field."""
    content: dict[str, Any] = copy.deepcopy(GOOD)
    run, (record,) = content["run"], content["probes"]
    run |= dict.fromkeys(("task", "data", "backbone", "git", "command", "labels"), text)
    run |= {"versions": {text: text}, "devices": 1, "precision": text}
    run |= {"benchmark": {"name": text, "row": text, "budget": text}}
    content["pretext"] = {text: 1.25}
    record |= {"probe": text}
    record["protocol"] |= {text: text, "heldout": 0.25}
    record["evaluation"] = {"data": text, "checkpoint": text, "git": text, "command": text}
    place = outputs / folder
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(content))


def tables_of(folder: Path, text: str) -> list[Table]:
    leave(folder, text)
    found = collect(folder)
    assert not found.skipped
    return series_tables(found)


class Page(HTMLParser):
    """Parser that collects the elements of a page, their attributes, and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[tuple[str, str]] = set()
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += tag != "wbr"  # where a long name may wrap
        self.attributes |= {(tag, name) for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


@pytest.mark.parametrize("text", FEW)
def test_a_page_has_no_other_elements(text: str, tmp_path: Path) -> None:
    plain = Page(render(tables := tables_of(tmp_path / "a", "plain"), {t.name: [] for t in tables}))
    found = Page(render(tables := tables_of(tmp_path / "b", text), {t.name: [] for t in tables}))
    assert found.tags - plain.tags == Counter()
    assert found.attributes <= plain.attributes
    assert any(text in shown for shown in found.texts)


def untex(cell: str) -> str:
    """Return TeX's output for a cell that holds only letters and escaped characters."""
    signs = {escape: sign for sign, escape in LATEX.items()}
    found = re.split("(" + "|".join(map(re.escape, sorted(signs, key=len, reverse=True))) + ")", cell)
    assert not re.search(r"[\\{}$&#%_^~]", "".join(part for part in found if part not in signs)), cell
    return "".join(signs.get(part, part) for part in found)


@pytest.mark.parametrize("text", FEW)
def test_tex_prints_the_text(text: str, tmp_path: Path) -> None:
    (table,) = tables_of(tmp_path, text)
    lines = latex(table).splitlines()
    commands = [line for line in lines if line.startswith("\\") and not line.endswith(r" \\")]
    assert [line.partition("{")[0] for line in commands] == [
        "\\begin", "\\toprule", "\\midrule", "\\bottomrule", "\\end",
    ]  # fmt: skip
    head, row = [line for line in lines if line.endswith(r" \\")]
    cells = re.split(r"(?<!\\) & ", row.removesuffix(r" \\"))
    assert untex(cells[0]) == " ".join(text.split())
    assert len(cells) == len(re.split(r"(?<!\\) & ", head))


@pytest.mark.parametrize("text", FEW)
def test_markdown_shows_the_text(text: str, tmp_path: Path) -> None:
    (table,) = tables_of(tmp_path, text)
    page = Page(
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown(table))
    )
    assert set(page.tags) <= {"p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert page.tags["tr"] == 2
    assert {name for _, name in page.attributes} <= {"style"}
    assert " ".join(text.split()) in page.texts


@pytest.mark.parametrize("text", FEW)
def test_a_spreadsheet_sees_no_formula(text: str, tmp_path: Path) -> None:
    (line,) = csv.DictReader(io.StringIO(csv_text(tables_of(tmp_path, text))))
    for field in ("table", "row", "branch", "column", "stages", "commands", "folders"):
        assert not line[field].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert text in line["row"]
    assert float(line["mean"]) == 50.0


def obeyed(text: str) -> list[str]:
    return [sign for sign in text if not sign.isprintable() and sign != "\n"]


@pytest.mark.parametrize("text", [OBEYED[0], *slow(OBEYED[1:]), *FEW])
def test_a_terminal_obeys_nothing(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    tables = tables_of(tmp_path, text)
    for table in tables:
        for shown in screen(table):
            print_table(shown)
    output = capsys.readouterr().out
    written = [output, csv_text(tables).replace("\r", ""), *map(markdown, tables), *map(latex, tables)]
    for content in written:
        assert not obeyed(content)
        content.encode()
    if text in HOSTILE:
        assert " ".join(text.split()) in " ".join(output.split())


@pytest.mark.slow
def test_a_full_report_of_all_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "outputs"
    for number, text in enumerate([*HOSTILE, *OBEYED]):
        leave(outputs, text, f"run-{number}")
    odd = os.fsencode(outputs) + b"/\xff\x1b[2J =cmd"
    os.mkdir(odd)
    with open(odd + b"/results.json", "w") as file:
        file.write("broken \x1b[2J")
    write_report(outputs, tmp_path / "report", None, None)
    output = capsys.readouterr()
    assert not obeyed(output.out + output.err)
    page = (tmp_path / "report/report.html").read_text()
    assert "alert(1)" in "".join(Page(page).texts)
    assert Page(page).tags["script"] == 1
    assert {path.parent for path in (tmp_path / "report").iterdir()} == {tmp_path / "report"}


@pytest.mark.parametrize("length", [201, 100_000])
def test_a_name_that_no_file_could_have_is_refused(length: int, tmp_path: Path) -> None:
    leave(tmp_path, "a" * length)
    assert re.search("foreign: run.task is 'aaa", collect(tmp_path).skipped["x"])
