"""First sentence of a table: a win, a tie, no gain, and what does not compete."""

import math
from pathlib import Path
from typing import Any

import pytest

from ssl_lightning.artifacts.run_facts import UNKNOWN_LABELS
from ssl_lightning.report.build import series_tables
from ssl_lightning.report.collect import collect
from ssl_lightning.report.table import Table

END = "(1 seed; ± is the standard error)."


@pytest.fixture
def table(tmp_path: Path, leave: Any, make: Any) -> Any:
    """Return a function that makes the table of tasks, each with its figures of one seed after and before."""

    def build(untrained: float | None = 0.4, n: int = 10_000, facts: Any = None, **tasks: float) -> Table:
        for task, value in tasks.items():
            before = [] if untrained is None else [make(untrained, trained=False)]
            probes = [{**record, "n": n} for record in [make(value), *before]]
            leave(task, probes, task=task, **(facts or {}))
        (found,) = series_tables(collect(tmp_path / "outputs"))
        return found

    return build


def error(*shares: float, n: int = 10_000) -> str:
    """Return the standard error of a difference of two independent shares, in points."""
    return f"{100 * math.sqrt(sum(p * (1 - p) / n for p in shares)):.1f}"


def test_a_winner_has_its_lead_and_its_gain_with_errors(table: Any) -> None:
    found = table(jigsaw=0.5, super_resolution=0.57, rotation=0.6)
    assert found.opening == (
        f"Rotation wins: linear 60.0 %, 3.0 ± {error(0.6, 0.57)} points above the next, super-resolution, "
        f"and 20.0 ± {error(0.6, 0.4)} points above the untrained backbone {END}"
    )


@pytest.mark.parametrize(("second", "tie"), [(0.599, True), (0.5863, True), (0.5860, False), (0.60, True)])
def test_a_lead_of_less_than_twice_its_error_is_a_tie(table: Any, second: float, tie: bool) -> None:
    found = table(rotation=0.6, jigsaw=second)  # twice the error is 1.39 points
    assert found.opening.startswith("The best cannot be told apart in linear: ") == tie
    assert ("wins" in found.opening) != tie
    assert (found.best("linear") is None) == tie


def test_a_tie_names_four_rows(table: Any) -> None:
    found = table(**{f"task{number}": 0.6 for number in range(6)})
    assert "task0 60.0 %, task1 60.0 %, task2 60.0 %, task3 60.0 % and 2 more; task0 is 20.0" in found.opening


def test_two_rows_that_tie_are_far_from_a_third(table: Any) -> None:
    assert "jigsaw" not in table(rotation=0.6, colorization=0.595, jigsaw=0.5).opening


def test_nothing_beats_the_untrained_backbone(table: Any) -> None:
    found = table(rotation=0.405, jigsaw=0.35)
    assert found.opening == (
        "In linear no task beats the untrained backbone beyond the error. The highest is rotation 40.5 %, "
        f"+0.5 ± {error(0.405, 0.4)} points against the untrained backbone, within the error {END}"
    )


def test_one_row_is_no_winner(table: Any) -> None:
    assert table(rotation=0.3).opening == (
        f"Rotation: linear 30.0 %, 10.0 ± {error(0.3, 0.4)} points below the untrained backbone {END}"
    )


def test_without_an_untrained_figure_there_is_only_the_lead(table: Any) -> None:
    lead = f"20.0 ± {error(0.6, 0.4)} points above the next, jigsaw"
    assert table(None, rotation=0.6, jigsaw=0.4).opening == f"Rotation wins: linear 60.0 %, {lead} {END}"


def test_controls_and_labels_do_not_compete(table: Any, leave: Any, make: Any) -> None:
    leave("sup", [make(0.9), make(0.4, trained=False)], task="supervised", labels="those of the images")
    leave("ran", [make(0.7, trained=False)], task="random")
    assert table(rotation=0.6).opening.startswith("Rotation: linear 60.0 %, 20.0")


def test_continued_weights_are_compared_with_themselves(table: Any) -> None:
    found = table(facts={"labels": UNKNOWN_LABELS}, rotation=0.6, jigsaw=0.5)
    assert found.opening.endswith(f"points above the weights it started from {END}")


def test_balanced_accuracy_judges_unequal_classes(tmp_path: Path, leave: Any, make: Any) -> None:
    for task, balanced in (("rotation", 0.5), ("jigsaw", 0.8)):
        more = make(balanced, metric="balanced", standard_error=0.03, majority=0.9)
        leave(task, [make(0.9), more], task=task)
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert found.opening.startswith("Jigsaw wins: linear balanced 80.0 %, 30.0 ± 4.2 points above the next")


def test_the_spread_of_seeds_counts_if_it_is_larger(tmp_path: Path, leave: Any, make: Any) -> None:
    for seed, (rotation, jigsaw) in enumerate([(0.70, 0.60), (0.50, 0.55), (0.60, 0.53)]):
        leave(f"r{seed}", [make(rotation)], seed=seed)
        leave(f"j{seed}", [make(jigsaw)], seed=seed, task="jigsaw")
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert "cannot be told apart" in found.opening  # 4 points, with an error of 6.1


def test_runs_without_figures_have_no_opening(tmp_path: Path, leave: Any) -> None:
    leave("a", [], data="folder")
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert found.opening == ""


def test_a_gain_within_its_error_has_no_direction(table: Any) -> None:
    found = table(rotation=0.404, jigsaw=0.5, colorization=0.3)
    directions = {row.name: row.cells["linear"].trend for row in found.rows}
    assert directions == {"rotation": 0, "jigsaw": 1, "colorization": -1}
