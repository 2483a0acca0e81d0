"""The table of refusals in docs/trust.md counts the cases of these suites."""

import re
from pathlib import Path

from tests.refusals import (
    test_archives,
    test_checkpoints,
    test_config,
    test_data,
    test_escapes,
    test_results,
    test_untrusted,
)

PAGE = Path(__file__).parents[2] / "docs/trust.md"
TABLES = {
    "configs": [test_config.CASES],
    "pictures": [test_data.READ, test_data.REFUSED, test_data.LABELS, test_data.XML],
    "checkpoints": [
        test_checkpoints.FILES,
        test_checkpoints.WEIGHTS,
        test_checkpoints.OF_A_RUN,
        test_checkpoints.OF_A_RESUME,
        test_checkpoints.EXPORT,
        test_checkpoints.DESCRIPTION,
    ],
    "`results": [test_results.CASES],
    "run": [test_untrusted.ATTACKS],
    "texts": [test_escapes.HOSTILE, test_escapes.OBEYED],
    "archives": [test_archives.ATTACKS],
}


def test_the_page_counts_the_cases() -> None:
    table = PAGE.read_text().partition("| input | cases |")[2].partition("\n\n")[0]
    counted = {name: int(count) for name, count in re.findall(r"^\| (`?\w+).*? \| (\d+) \|", table, re.M)}
    assert counted == {name: sum(map(len, tables)) for name, tables in TABLES.items()}
