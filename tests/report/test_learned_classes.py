"""Figures of shares of the labels: learned classes, errors over draws, table and charts."""

import math
import statistics
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.results import Results
from ssl_lightning.artifacts.typed_json import to_json
from ssl_lightning.report.accuracy import draws_error, gain_error
from ssl_lightning.report.benchmark import Benchmark, Column
from ssl_lightning.report.build import benchmark_tables, series_tables
from ssl_lightning.report.charts import all_classes, detection, learned_classes, row_styles
from ssl_lightning.report.collect import Collection, ReportedRun, collect
from ssl_lightning.report.label_efficiency import draw_curves, share_curve
from ssl_lightning.report.learned_classes import over_classes, with_learned_classes
from ssl_lightning.report.summary import column, summary_table
from ssl_lightning.report.writers import lines
from tests.artifacts.test_results import FACTS
from tests.report.conftest import Leave

NAMES = ("road", "sky", "pole")
Draws = list[tuple[float, float, float | None]]


def share(fraction: float, test: Draws, heldout: Draws, trained: bool = True) -> Record:
    """A figure whose draws have these IoUs of road, sky and pole."""

    def means(draws: Draws) -> list[float]:
        return [statistics.fmean(iou for iou in draw if iou is not None) for draw in draws]

    protocol = {
        "fraction": fraction, "draws": len(test), "values": means(test),
        "sd": statistics.stdev(means(test)) if len(test) > 1 else None,
        "heldout": statistics.fmean(means(heldout)), "labels": {"train": round(400 * fraction), "heldout": 9},
        "class_draws": {
            split: [dict(zip(NAMES, draw, strict=True)) for draw in draws]
            for split, draws in (("heldout", heldout), ("test", test))
        },
    }  # fmt: skip
    value = statistics.fmean(means(test))
    return Record(
        "stage4", "miou", value, 50, protocol, probe="segmentation", branch="backbone", trained=trained
    )


def run(name: str, *records: Record, status: Any = "finished") -> ReportedRun:
    facts = replace(FACTS, task=name, status=status)
    return ReportedRun(name, Path(name), facts, {}, list(records), datetime(2026, 1, 1, tzinfo=UTC))


def test_a_class_that_one_row_learns_counts_for_all_rows_and_test_pictures_do_not_decide() -> None:
    poor = share(0.1, [(0.5, 0.5, 0.9), (0.3, 0.1, 0.9)], [(0.5, 0.04, 0.0)] * 2)
    good = share(0.1, [(0.6, 0.6, 0.9), (0.4, 0.2, 0.9)], [(0.5, 0.0, 0.049), (0.5, 0.1, 0.049)])
    runs = with_learned_classes([run("jigsaw", poor), run("rotation", good)])
    first, second = (each.probes[1] for each in runs)
    assert first.metric == second.metric == "miou_learned"
    assert first.protocol["learned"] == ["road", "sky"]  # sky: 0.05 on average in one row
    assert first.value == pytest.approx((0.5 + 0.2) / 2)
    assert first.protocol["values"] == pytest.approx([0.5, 0.2])
    assert first.protocol["heldout"] == pytest.approx(0.27)
    assert second.protocol["sd"] == pytest.approx(statistics.stdev([0.6, 0.3]))
    assert [each.probes[0] for each in runs] == [poor, good]
    (alone,) = with_learned_classes([run("jigsaw", poor)])
    assert alone.probes[1].protocol["learned"] == ["road"]


def test_unfinished_runs_and_figures_without_shares_add_nothing() -> None:
    good = share(0.1, [(0.6, 0.6, 0.9)] * 2, [(0.5, 0.5, 0.5)] * 2)
    plain = replace(good, protocol={"heldout": 0.5, "per_class": {}})
    runs = [run("rotation", good, status="failed"), run("jigsaw", plain)]
    assert [len(each.probes) for each in with_learned_classes(runs)] == [1, 1]


def test_a_class_without_pixels_counts_as_little_as_in_the_mean_over_all() -> None:
    record = share(0.1, [(0.6, 0.2, None), (0.4, 0.4, 0.1)], [(0.5, 0.5, None)] * 2)
    assert over_classes(record, NAMES).value == pytest.approx(record.value)
    assert over_classes(record, ["pole"]).protocol["values"] == pytest.approx([0.0, 0.1])


def test_the_error_of_a_gain_is_that_of_the_differences_in_each_draw() -> None:
    before = share(0.1, [(0.1, 0.1, 0.1), (0.3, 0.3, 0.3), (0.5, 0.5, 0.5)], [(0.5, 0.5, 0.5)] * 3)
    after = share(0.1, [(0.2, 0.2, 0.2), (0.4, 0.4, 0.4), (0.9, 0.9, 0.9)], [(0.5, 0.5, 0.5)] * 3)
    expected = statistics.stdev([0.1, 0.1, 0.4]) / math.sqrt(3)
    assert gain_error([before], [after]) == pytest.approx(expected)
    same = share(0.1, [(0.2, 0.2, 0.2), (0.4, 0.4, 0.4), (0.6, 0.6, 0.6)], [(0.5, 0.5, 0.5)] * 3)
    two_seeds = draws_error([before, before], [after, same])
    of_draws = statistics.stdev([0.1, 0.1, 0.25]) / math.sqrt(3)
    assert two_seeds == pytest.approx(math.hypot(of_draws, statistics.stdev([0.2, 0.1]) / math.sqrt(2)))
    other = share(0.2, [(0.2, 0.2, 0.2)] * 3, [(0.5, 0.5, 0.5)] * 3)
    assert draws_error([before], [other]) is None
    assert draws_error([before], [share(0.1, [(0.2, 0.2, 0.2)] * 2, [(0.5, 0.5, 0.5)] * 2)]) is None
    single = share(0.1, [(0.2, 0.2, 0.2)], [(0.5, 0.5, 0.5)])
    assert draws_error([single], [single]) is None


def test_the_summary_shows_the_spread_and_the_gain() -> None:
    before = share(0.1, [(0.1, 0.1, 0.1), (0.3, 0.3, 0.3)], [(0.5, 0.5, 0.5)] * 2, trained=False)
    after = share(0.1, [(0.2, 0.2, 0.2), (0.5, 0.5, 0.5)], [(0.5, 0.5, 0.5)] * 2)
    table = summary_table([before, after])
    assert [str(each.header) for each in table.columns] == ["backbone", "segmentation 10 % mIoU"]
    (cell,) = table.columns[1].cells
    assert cell == "20.0 ± 14.1* → 35.0 ± 21.2* +15.0 ± 5.0"
    assert column(over_classes(after, ["road"])) == "segmentation 10 % mIoU of learned classes"


COLUMNS = [
    Column("10 %", where={"probe": "segmentation", "metric": "miou", "fraction": 0.1}),
    Column("10 %, learned", where={"probe": "segmentation", "metric": "miou_learned", "fraction": 0.1}),
]


def collected(leave: Leave, tmp_path: Path) -> Collection:
    """An untrained and a trained row with two shares."""
    for task, better in (("random", 0.0), ("rotation", 0.2)):
        draws: Draws = [(0.5 + better, 0.1 + better, 0.0), (0.3 + better, 0.1 + better, 0.0)]
        records = [share(part, draws, [(0.5, better, 0.0)] * 2, task != "random") for part in (0.1, 1.0)]
        leave(task, [to_json(record) for record in records], task=task)
    return collect(tmp_path / "outputs")


def test_the_table_has_both_means_their_spread_and_the_gain(tmp_path: Path, leave: Leave) -> None:
    found = collected(leave, tmp_path)
    (table,) = benchmark_tables(
        found, Benchmark("small", "Small", ["random", "rotation"], COLUMNS, {}, []), None
    )
    _, random, rotation = lines(table)
    assert random[4:] == ["16.7 ± 4.7", "25.0 ± 7.1"]
    assert rotation[4:] == ["30.0 ± 4.7 (+13.3 ± 0.0)", "45.0 ± 7.1 (+20.0 ± 0.0)"]
    said = " ".join(table.notes["How it was measured"])
    assert "of one seed ± is over them" in said
    assert "Learned classes (held-out IoU of at least 5 % in some row and share): road, sky." in said


def test_the_charts_show_what_was_measured(tmp_path: Path, leave: Leave) -> None:
    found = collected(leave, tmp_path)
    (table,) = benchmark_tables(
        found, Benchmark("small", "Small", ["random", "rotation"], COLUMNS, {}, []), None
    )
    pictures = [draw(table.rows, row_styles(table.rows), 11.6) for draw in (all_classes, learned_classes)]
    assert [picture and picture.name for picture in pictures] == ["shares", "shares_learned"]
    curves = []
    for run in found.runs:
        curve = share_curve(Results(run.facts, {}, run.probes), "miou")
        assert curve is not None
        curves.append(curve)
    (axis,) = draw_curves(curves).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert drawn["rotation"] == [[40, pytest.approx(30)], [400, pytest.approx(30)]]
    assert axis.get_xlabel() == "labelled images"
    assert share_curve(Results(FACTS, {}, []), "miou") is None


BROKEN = [
    [],
    {"test": []},
    {"test": 3, "heldout": [{"a": 0.1}]},
    {"test": [], "heldout": []},
    {"test": [{"a": 0.1}], "heldout": [{"b": 0.1}]},
    {"test": [{"a": 2.0}], "heldout": [{"a": 0.1}]},
]


def test_detection_has_a_chart_of_its_own(tmp_path: Path, leave: Leave) -> None:
    draws: Draws = [(0.5, 0.1, 0.0), (0.3, 0.1, 0.0)]
    records = [replace(share(part, draws, draws), metric="ap50", probe="detection") for part in (0.1, 1.0)]
    leave("rotation", [to_json(record) for record in records])
    columns = [Column("10 %", where={"probe": "detection", "metric": "ap50", "fraction": 0.1})]
    found = collect(tmp_path / "outputs")
    (table,) = benchmark_tables(found, Benchmark("small", "Small", ["rotation"], columns, {}, []), None)
    looks = row_styles(table.rows)
    assert all_classes(table.rows, looks, 11.6) is None
    picture = detection(table.rows, looks, 11.6)
    assert picture is not None
    assert picture.name == "shares_detection"


@pytest.mark.parametrize("draws", BROKEN)
def test_broken_draws_are_skipped_with_a_reason(draws: Any, tmp_path: Path, leave: Leave, make: Any) -> None:
    leave("a", [make(0.5, metric="miou", class_draws=draws)])
    assert "class_draws" in collect(tmp_path / "outputs").skipped["a"]


@pytest.mark.parametrize(
    ("changes", "gain"),
    [({}, 10.0), ({"image_size": [90, 120]}, None), ({"per_class": {"sky": 0.2, "cat": 0.2}}, None)],
)
def test_masks_of_another_size_or_of_other_classes_give_no_gain(
    changes: dict[str, Any], gain: float | None, tmp_path: Path, leave: Any, make: Any
) -> None:
    masks = {"probe": "segmentation", "metric": "miou", "image_size": [180, 240]}
    masks |= {"per_class": {"sky": 0.2, "car": 0.4}}
    leave("rotation", [make(0.3, **masks)])
    leave("random", [make(0.2, trained=False, **masks | changes)], task="random")
    (table,) = series_tables(collect(tmp_path / "outputs"))
    (row,) = [row for row in table.rows if row.label.startswith("rotation")]
    assert row.cells["segmentation mIoU"].gain == (None if gain is None else pytest.approx(gain))
