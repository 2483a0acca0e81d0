"""The tally of all faults, printed at the end."""

import json
from pathlib import Path

import pytest

from tests.faults._harness import Tally

TALLY = Tally()


@pytest.fixture(scope="session")
def tally() -> Tally:
    return TALLY


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.tried:
        terminalreporter.section("faults")
        for line in TALLY.lines():
            terminalreporter.write_line(line)
        for phase, lost in TALLY.lost.items():
            for fault in lost:
                terminalreporter.write_line(f"LOST in {phase}: {fault}")
