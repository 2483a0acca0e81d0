"""Tables of the README and of the documentation against the committed results."""

import re
import shlex
from pathlib import Path

import pytest

from ssl_lightning.report.write import make_tables
from ssl_lightning.report.writers import markdown

ROOT = Path(__file__).parent.parent.parent
TABLE = re.compile(r"<!-- (python report\.py [^\n]*) -->\n(.*?)<!-- end of the table -->", re.DOTALL)
PAGES = {"README.md": 1, "docs/dense.md": 4}  # tables on each page
TABLES = [found for page in PAGES for found in TABLE.findall((ROOT / page).read_text())]


def test_each_page_has_its_tables() -> None:
    assert len(TABLES) == sum(PAGES.values())


@pytest.mark.parametrize(("command", "printed"), TABLES, ids=[command for command, _ in TABLES])
def test_a_table_is_what_its_command_makes(command: str, printed: str) -> None:
    given = dict(argument.split("=") for argument in shlex.split(command)[2:])
    benchmark = ROOT / f"conf/benchmark/{given['benchmark']}.yaml"
    (table,) = make_tables(ROOT / given["outputs"], benchmark, given.get("budget"))
    assert printed.strip() == markdown(table).strip(), (
        f"run the command and copy {given.get('out', 'report')}/table.md"
    )


def test_the_tutorial_prints_the_table_of_the_results() -> None:
    page = (ROOT / "docs/tutorials/reproduce_table.md").read_text()
    printed = page.partition("{.text .output}")[2].partition("```")[0]
    (table,) = make_tables(ROOT / "docs/results", ROOT / "conf/benchmark/cifar10_six.yaml", "cpu")
    rows = [line for line in markdown(table).replace("*", "").splitlines() if line.startswith("| ")]
    wanted = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows]
    found = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines()]
    stale = [row for row in wanted if row not in found]
    assert not stale, "run python docs/_site/tutorials.py reproduce_table"
