"""Runs, evaluations and reports that are struck while they write, train and probe."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults._harness import (
    DENSE_S,
    ROOT,
    Moment,
    State,
    Tally,
    draw,
    end_state,
    moments_of,
    run,
    survive,
)

pytestmark = pytest.mark.slow
RUN = [
    "data=fake", "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=3", "trainer.val_check_interval=0.5",
    "trainer.log_every_n_steps=3", "trainer.precision=32-true", "probe.knn.ks=[5]", "probe_untrained=true",
    "backbone.widths=[8,8]", "backbone.strides=[2,2]", "callbacks.checkpoint.every_n_steps=5", "go_on=true",
]  # fmt: skip
TRIALS = {
    "training": 10,
    "checkpointing": 10,
    "curves and pictures": 6,
    "probing": 6,
    "exporting": 4,
    "results": 4,
}


def train(output: Path, name: str) -> list[str]:
    return [str(ROOT / "train.py"), *RUN, f"output_dir={output}", f"name={name}"]


def folder_of(output: Path, name: str) -> Path:
    return output / "rotation/fake/convnet" / name


@dataclass
class Undisturbed:
    """A run that nothing happened to: where it is, its moments, and how it ended."""

    output: Path
    folder: Path
    moments: list[Moment]
    state: State


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    output = tmp_path_factory.mktemp("runs")
    folder = folder_of(output, "undisturbed")
    moments = moments_of(train(output, "undisturbed"), output, folder)
    return Undisturbed(output, folder, moments, end_state(folder))


def phase_of(moment: Moment, place: int, moments: list[Moment]) -> str:
    """The phase that a moment and the time after it belong to."""
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
