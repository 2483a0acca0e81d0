"""Faults in runs that write, train and probe, and in evaluations and reports."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ssl_lightning.artifacts.results import read_results
from tests.faults._harness import (
    DENSE_S,
    ROOT,
    Moment,
    Tally,
    Undisturbed,
    contents,
    draw,
    end_state,
    folder_of,
    moments_of,
    survive,
    train,
)

pytestmark = pytest.mark.slow
TRIALS = {
    "training": 10,
    "checkpointing": 10,
    "curves and pictures": 6,
    "probing": 6,
    "exporting": 4,
    "results": 4,
}


def phase_of(moment: Moment, place: int, moments: list[Moment]) -> str:
    """Return the phase of a moment and the time after it."""
    following = moments[place + 1].file if place + 1 < len(moments) else ""
    if "backbone." in moment.file:
        return "exporting"
    if moment.gap > DENSE_S and ("results.json" in following or "backbone.safetensors" in following):
        return "probing"
    if "results.json" in moment.file or "MODEL_CARD" in moment.file:
        return "results"
    if moment.gap > 10 * DENSE_S and "config" not in moment.file:
        return "training"
    if ".ckpt" in moment.file:
        return "checkpointing"
    return "curves and pictures" if moment.file.endswith((".png.tmp", ".png", ".csv")) else "start"


@pytest.mark.parametrize(("phase", "trial"), [(phase, i) for phase, n in TRIALS.items() for i in range(n)])
def test_a_struck_run_ends_as_an_undisturbed_one(
    undisturbed: Undisturbed, tally: Tally, phase: str, trial: int
) -> None:
    moments = undisturbed.moments
    own = [m for place, m in enumerate(moments) if phase_of(m, place, moments) == phase]
    fault = draw(phase, trial, own, None if phase in ("training", "probing") else DENSE_S)
    name = f"{phase.split()[0]}{trial}"
    folder = folder_of(undisturbed.output, name)
    survive(
        tally, phase, trial, train(undisturbed.output, name), undisturbed.output, folder, fault,
        lambda: end_state(folder), undisturbed.state,
    )  # fmt: skip
    assert json.loads((folder / "results.json").read_text())["run"]["status"] == "finished"


def evaluation(folder: Path) -> list[str]:
    return [str(ROOT / "evaluate.py"), f"run={folder}", "probe=[linear]", "probe.linear.pool=1"]


def probes_of(folder: Path) -> dict[str, object]:
    """Return all results of a run, without the commands that name its folder."""
    records = read_results(folder / "results.json").probes
    return {
        str(place): replace(each, evaluation=each.evaluation and replace(each.evaluation, command=None))
        for place, each in enumerate(records)
    }


@pytest.fixture(scope="module")
def evaluated(undisturbed: Undisturbed) -> tuple[list[Moment], dict[str, object]]:
    copy = shutil.copytree(undisturbed.folder, undisturbed.output / "evaluated")
    moments = moments_of(evaluation(copy), undisturbed.output, copy)
    assert len(probes_of(copy)) > len(probes_of(undisturbed.folder))
    return moments, probes_of(copy)


@pytest.mark.parametrize("trial", range(6))
def test_a_struck_evaluation_adds_its_figures_the_next_time(
    undisturbed: Undisturbed, evaluated: tuple, tally: Tally, trial: int, tmp_path: Path
) -> None:
    moments, expected = evaluated
    folder = shutil.copytree(undisturbed.folder, tmp_path / "run")
    fault = draw("evaluating", trial, moments)
    survive(
        tally, "evaluating", trial, evaluation(folder), tmp_path, folder, fault,
        lambda: probes_of(folder), expected,
    )  # fmt: skip


def report(outputs: Path, out: Path) -> list[str]:
    return [str(ROOT / "report.py"), f"outputs={outputs}", f"out={out}"]


@pytest.fixture(scope="module")
def reported(undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Moment], dict]:
    folder = tmp_path_factory.mktemp("reported")
    moments = moments_of(report(undisturbed.folder, folder / "page"), folder, folder / "page")
    return moments, dict(contents(folder / "page"))


@pytest.mark.parametrize("trial", range(6))
def test_a_struck_report_has_no_torn_file_and_is_complete_the_next_time(
    undisturbed: Undisturbed, reported: tuple, tally: Tally, trial: int, tmp_path: Path
) -> None:
    moments, expected = reported
    fault = draw("report writing", trial, moments)
    page = tmp_path / "page"
    survive(
        tally, "report writing", trial, report(undisturbed.folder, page), tmp_path, page, fault,
        lambda: contents(page), expected,
    )  # fmt: skip
