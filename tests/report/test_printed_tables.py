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
