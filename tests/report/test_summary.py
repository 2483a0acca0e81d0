"""Table at the end of a run."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.results import Results
from ssl_lightning.artifacts.run_facts import UNKNOWN_LABELS, Verdict
from ssl_lightning.report.probe_table import ProbeTable
from ssl_lightning.report.summary import (
    print_brief,
    print_probes,
    print_summary,
    print_times,
    reliability_lines,
    summary_table,
    summary_tables,
    unequal_classes,
)
from tests.artifacts.test_results import FACTS


def record(stage: str, trained: bool, value: float, heldout: float | None, metric: str = "top1") -> Record:
    protocol = {"k": 20, "heldout": heldout}
    return Record(stage, metric, value, 1000, protocol, probe="knn", branch="backbone", trained=trained)


def shown(records: list[Record]) -> list[str]:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(records))
    names = ("backbone ", "stage1 ", "stage2 ")
    return [line for line in console.export_text().splitlines() if line.strip().startswith(names)]


def test_figures_gain_and_the_stage_chosen_on_heldout_images() -> None:
    rows = [
        record("stage1", False, 0.40, 0.42),
        record("stage2", False, 0.45, 0.41),
        record("stage1", True, 0.505, 0.5),
        record("stage2", True, 0.495, 0.6),
        record("stage1", True, 0.99, 0.99, metric="top5"),
    ]
    head, first, second = shown(rows)
    assert "knn k=20" in head
    assert "40.0* → 50.5  +10.5 ± 2.2" in first  # sqrt(0.4 * 0.6 + 0.505 * 0.495) / sqrt(1000)
    assert "45.0  → 49.5*  +4.5 ± 2.2" in second


def test_given_weights_are_named_as_they_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [record("stage1", False, 0.40, 0.42), record("stage1", True, 0.50, 0.5)]
    facts = replace(FACTS, labels=UNKNOWN_LABELS)
    print_summary(Results(facts, {}, rows), tmp_path, {})
    assert "Test top-1 in %, as it came → continued;" in capsys.readouterr().out
    print_summary(Results(facts, {}, rows[1:]), tmp_path, {})  # weights that were only probed
    assert "Test top-1 in %, trained;" in capsys.readouterr().out


def test_the_time_of_a_resumed_run_counts_all_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for resumed, said in ((0, "197 s in total, "), (1, "197 s in total of 2 starts, ")):
        print_summary(Results(replace(FACTS, wall_s=197.0, resumed=resumed), {}, []), tmp_path, {})
        assert said in capsys.readouterr().out


def test_a_control_has_no_speed_of_pretraining(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for speed, said in ((0.0, " s in total, peak "), (1234.5, ", 1,234 images/s in pretraining, ")):
        print_summary(Results(replace(FACTS, images_per_s=speed), {}, []), tmp_path, {})
        assert said in capsys.readouterr().out


def test_a_brief_summary_is_the_verdict_or_without_one_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [record("stage1", True, 0.5, 0.5)]
    judged = replace(FACTS, wall_s=37.2, verdict=Verdict("no better than before", "linear 49.5%"))
    print_brief(Results(judged, {}, rows), tmp_path)
    told = ["verdict: no better than before: linear 49.5%", f"37 s; all figures: {tmp_path}/MODEL_CARD.md"]
    assert capsys.readouterr().out.splitlines() == told
    print_brief(Results(replace(judged, verdict=None), {}, rows), tmp_path)
    printed = capsys.readouterr().out
    assert "verdict" not in printed
    assert printed.startswith("Test top-1 in %, trained;")
    assert printed.endswith(f"{told[1]}\n")


def test_cross_validated_figures_have_another_title() -> None:
    rows = [record("stage1", True, 0.5, 0.5)]
    assert str(summary_table(rows).title).startswith("Test top-1 in %")
    rows[0].protocol["cross_validated"] = 5
    title = "Cross-validated top-1 in %, trained; * best stage, chosen in each fold"
    assert summary_table(rows).title == title


def test_a_control_has_one_figure_and_no_gain() -> None:
    _, line = shown([record("stage1", False, 0.4, 0.4)])
    assert "40.0*" in line
    assert "→" not in line


def test_no_stage_is_marked_where_nothing_was_held_out() -> None:
    rows = [record(f"stage{n}", True, n / 10, None) for n in (1, 2)]
    _, first, second = shown(rows)
    assert "10.0 " in first
    assert "20.0 " in second


def test_of_a_low_shot_curve_three_numbers_of_labels_are_shown() -> None:
    rows = []
    for k in (1, 2, 4, 8, 16):
        row = record("stage1", True, k / 100, k / 100)
        rows.append(replace(row, probe="lowshot", protocol={"k_shot": k, "heldout": k / 100}))
    head, line = shown(rows)
    assert [word for word in head.split() if word.endswith("-shot")] == ["1-shot", "4-shot", "16-shot"]
    assert line.split()[1:] == ["1.0*", "4.0*", "16.0*"]


def test_mean_precision_and_rank_say_what_they_are() -> None:
    rows = [record("stage1", False, 0.3, 0.3, "map"), record("stage1", True, 0.4, 0.4, "map")]
    ranks = [record("stage1", on, value, 0.0, "rankme") for on, value in ((False, 12.25), (True, 50.0))]
    ranks = [replace(r, probe="rankme", protocol={"heldout": None}) for r in ranks]
    head, line = shown(rows + ranks)
    assert "knn k=20 mAP" in head
    assert "rankme (rank)" in head
    assert "30.0* → 40.0* +10.0" in line
    assert "12.2  → 50.0  +37.8" in line  # not in %, and no best stage


def test_a_table_that_is_too_wide_is_cut_between_columns() -> None:
    both = [record("stage1", on, 0.3, 0.3) for on in (False, True)]
    rows = [replace(each, probe=f"probe{n}") for n in range(5) for each in both]
    console = Console(width=70, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    tables = summary_tables(rows, console)
    assert [len(table.columns) for table in tables] == [3, 3, 2]  # the backbone, and two probes side by side
    assert [table.title is None for table in tables] == [False, True, True]
    for table in tables:
        console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert all(text.count(f"probe{n} k=20") == 1 for n in range(5))
    assert summary_tables([], console) == []
    assert len(summary_tables(rows, Console(width=300))) == 1


def test_figures_of_masks_and_boxes_say_what_they_are() -> None:
    rows = []
    for metric, value in (("coco_map", 0.2), ("ap50", 0.4), ("voc07_ap50", 0.5)):
        row = record("stage2", True, value, value, metric)
        rows.append(replace(row, probe="detection", protocol={"heldout": value}))
    head, line = shown(rows)
    assert [part.strip() for part in head.split("detection ")[1:]] == ["COCO mAP", "AP50", "VOC07 AP50"]
    assert line.split()[1:] == ["20.0*", "40.0*", "50.0*"]


def test_the_last_lines_say_where_the_time_went(capsys: pytest.CaptureFixture[str]) -> None:
    print_probes([], {"knn_s": 2.04, "encode_s": 3.4})
    print_probes([], {"segmentation_s": 88.3})  # without features
    print_probes([], {})  # without probes
    print_times({"start": 1.0, "pretraining": 61.26, "probes": 5.5, "rest": 0.04})
    assert capsys.readouterr().out.splitlines() == [
        "probes: encode 3.4 s, knn 2.0 s",
        "probes: segmentation 88.3 s",
        "time: start 1.0 s, pretraining 61.3 s, probes 5.5 s, rest 0.0 s",
    ]


def test_the_share_of_the_largest_class_stands_below_unequal_figures() -> None:
    rows = [record("stage1", True, 0.909, 0.9), record("stage1", True, 0.5, 0.5, metric="balanced")]
    rows[1].protocol.update(majority=0.909, standard_error=0.03)
    head, line = shown(rows)
    assert "knn k=20   knn k=20 balanced" in head
    assert line.split()[1:] == ["90.9*", "50.0*"]
    (said,) = unequal_classes([*rows, *rows])
    assert said.startswith(
        "Unequal classes: always answering the largest one is right on 90.9% of 1,000 test"
    )
    assert unequal_classes(rows[:1]) == []
    assert rows[1].standard_error == 0.03
    text = repr(ProbeTable(rows, ["images: 9"]))
    assert "50.0 ± 3.0*" in text
    assert text.splitlines()[-2:] == [said, "images: 9"]
    assert said in ProbeTable(rows)._repr_html_()


def test_reliability_is_a_line_for_each_backbone() -> None:
    rows = [
        replace(record("stage1", trained, value, None, metric), probe="linear", branch=branch)
        for branch in ("backbone", "discriminator")
        for trained, figures in ((False, (0.1, 1.234, 0.5)), (True, (0.05, 0.987, 0.6)))
        for metric, value in zip(("ece", "nll", "top1_gaussian_noise"), figures, strict=True)
    ]
    of = "calibration error 10.0% → 5.0%, negative log-likelihood 1.23 → 0.99, gaussian noise 50.0% → 60.0%"
    assert reliability_lines(rows) == [
        f"linear on {b}, best stage: {of}" for b in ("backbone", "discriminator")
    ]
    assert reliability_lines([record("stage1", True, 0.5, 0.5)]) == []
