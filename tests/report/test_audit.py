"""Table of a shortcut audit against values by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.results import Results
from ssl_lightning.report import audit
from ssl_lightning.report.audit import Figure, Row, audit_rows, verdict_on, write_audit
from tests.artifacts.test_results import FACTS


def run(pretext: float, probe: float, untrained: float = 0.4) -> Results:
    """Make results with two stages; the second is better on held-out images only."""
    records = [
        Record(
            stage, "top1", value + (0.0 if stage == "stage2" else 0.2), 10000,
            {"heldout": 0.5 if stage == "stage2" else 0.1, "labels": {"heldout": 5000}},
            probe=name, branch="backbone", trained=trained,
        )
        for name, shift in (("knn", -0.05), ("linear", 0.0))
        for trained, value in ((True, probe + shift), (False, untrained + shift))
        for stage in ("stage1", "stage2")
    ]  # fmt: skip
    return Results(FACTS, {"val/acc": pretext, "val/loss": 1.0}, records)


def test_rows_hold_the_chosen_stage_and_the_mean_over_seeds() -> None:
    found = {"all guards": [run(0.5, 0.55), run(0.6, 0.56)], "gap": [run(0.99, 0.40), run(0.97, 0.44)]}
    first, second = audit_rows(found, {"all guards": "", "gap": "task.gap=false"})
    assert (first.pretext.value, first.probe and first.probe.value) == pytest.approx((0.55, 0.555))
    assert second.untrained is not None
    assert second.untrained.value == pytest.approx(0.4)
    assert first.pretext.error == pytest.approx(0.1 / 2)  # between seeds: sd 0.0707 / sqrt(2)
    assert second.probe is not None
    assert second.probe.error == pytest.approx(0.02)
    assert second.verdict == audit.SHORTCUT
    assert first.verdict == ""


def test_one_seed_has_the_error_of_its_sample() -> None:
    (row,) = audit_rows({"all guards": [run(0.5, 0.2)]}, {"all guards": ""})
    assert row.pretext.error == pytest.approx((0.25 / 5000) ** 0.5)
    assert row.probe is not None
    assert row.probe.error == pytest.approx((0.16 / 10000) ** 0.5)


@pytest.mark.parametrize(
    ("easier", "features", "verdict"),
    [
        (0.1, -0.1, audit.SHORTCUT),
        (0.1, 0.01, audit.EASIER),
        (0.1, 0.1, audit.BETTER_OFF),
        (0.01, -0.1, audit.NEEDED),
        (-0.1, -0.1, audit.NEEDED),
        (0.01, 0.01, audit.NONE),
        (-0.1, 0.01, audit.NONE),
    ],
)
def test_a_verdict_needs_differences_beyond_the_noise(easier: float, features: float, verdict: str) -> None:
    guarded = Row("all guards", "", Figure(0.5, 0.01), Figure(0.5, 0.01), None)
    without = Row("gap", "", Figure(0.5 + easier, 0.01), Figure(0.5 + features, 0.01), None)
    assert verdict_on(guarded, without) == verdict


def test_without_labels_there_is_no_verdict(tmp_path: Path) -> None:
    plain = [replace(run(0.5, 0.5), probes=[])]
    rows = audit_rows(
        {"all guards": plain, "gap": [replace(run(0.9, 0), probes=[])]}, {"all guards": "", "gap": ""}
    )
    assert rows[1].verdict == "no labels, so no verdict"
    write_audit(tmp_path / "AUDIT.md", rows, "python audit.py")
    assert (
        "| without gap | 90.0 | +40.0 | - |  | no labels, so no verdict |"
        in (tmp_path / "AUDIT.md").read_text()
    )
