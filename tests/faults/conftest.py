"""Tally of all faults, printed at the end."""

import pytest

from tests.faults._harness import Tally, Undisturbed, end_state, folder_of, moments_of, train

TALLY = Tally()


@pytest.fixture(scope="session")
def tally() -> Tally:
    return TALLY


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    output = tmp_path_factory.mktemp("runs")
    folder = folder_of(output, "undisturbed")
    moments = moments_of(train(output, "undisturbed"), output, folder)
    return Undisturbed(output, folder, moments, end_state(folder))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TALLY.tried:
        terminalreporter.section("faults")
        for line in TALLY.lines():
            terminalreporter.write_line(line)
        for phase, lost in TALLY.lost.items():
            for fault in lost:
                terminalreporter.write_line(f"LOST in {phase}: {fault}")
