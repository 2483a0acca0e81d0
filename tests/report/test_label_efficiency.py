"""Label-efficiency curves: stage chosen on held-out images, comparable runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssl_lightning.artifacts.records import Evaluation, Record
from ssl_lightning.artifacts.results import Results, write_results
from ssl_lightning.artifacts.run_facts import BenchmarkRow
from ssl_lightning.report import label_efficiency
from ssl_lightning.report.label_efficiency import curve, draw_curves, main, share_curve
from tests.artifacts.test_results import FACTS


def record(
    stage: str, k: int, value: float, heldout: float, trained: bool = True, probe: str = "lowshot"
) -> Record:
    protocol = {"k_shot": k, "sd": value / 10, "heldout": heldout}
    return Record(stage, "top1", value, 100, protocol, probe=probe, branch="backbone", trained=trained)


def run(*probes: Record, task: str = "rotation", data: str = "cifar10") -> Results:
    return Results(replace(FACTS, task=task, data=data), {}, list(probes))


ROWS = [
    record("stage1", 4, 0.5, 0.6),
    record("stage2", 4, 0.9, 0.4),  # better on test, not on held-out images
    record("stage1", 1, 0.2, 0.2),
    record("stage2", 1, 0.3, 0.3),
    record("stage2", 1, 0.1, 0.9, trained=False),
    record("stage1", 1, 1.0, 1.0, probe="svm"),
]


def test_the_stage_is_chosen_on_heldout_images_for_each_number_of_labels() -> None:
    found = curve(run(*ROWS))
    assert (found.name, found.data, found.metric) == ("rotation", "cifar10", "top1")
    assert (found.ks, found.values, found.deviations) == ([1, 4], [0.3, 0.5], [0.03, 0.05])


def test_a_control_has_its_untrained_backbone() -> None:
    found = curve(run(record("stage2", 1, 0.1, 0.9, trained=False), task="random"))
    assert found.values == [0.1]


def test_a_later_evaluation_says_which_data() -> None:
    row = replace(ROWS[0], evaluation=Evaluation("fashion_mnist"))
    assert curve(run(row)).data == "fashion_mnist"


def share(value: float, labels: int, evaluation: Evaluation | None = None, **more: Any) -> Record:
    protocol = {"sd": 0.01, "heldout": value, "labels": {"train": labels}, "class_draws": {}, **more}
    return replace(
        record("stage1", 1, value, value, probe="segmentation"),
        metric="miou",
        protocol=protocol,
        evaluation=evaluation,
    )


def test_a_curve_is_of_one_setting_on_one_data_set() -> None:
    own = [share(0.2, 10, fraction=0.1), share(0.3, 100, fraction=1.0)]
    tuned = share(0.6, 100, Evaluation("cifar10"), fraction=1.0, backbone="fine-tuned, lr 0.005")
    other = share(0.9, 92, Evaluation("camvid"), fraction=0.25)
    found = share_curve(run(*own, tuned, other), "miou")
    assert found is not None
    assert (found.ks, found.values, found.data) == ([10, 100], [0.2, 0.3], "cifar10")
    # without figures of its own, all like the last evaluation, whose rates may differ by share
    later = share(0.5, 10, Evaluation("cifar10"), fraction=0.1, backbone="fine-tuned, lr 0.0005")
    frozen = share(0.4, 10, Evaluation("cifar10"), fraction=0.1, backbone="frozen")
    found = share_curve(run(other, frozen, tuned, later), "miou")
    assert found is not None
    assert (found.ks, found.values, found.data) == ([10, 100], [0.5, 0.6], "cifar10")


def test_low_shot_figures_of_an_evaluation_do_not_mix_with_those_of_the_run() -> None:
    best = replace(record("stage1", 4, 0.95, 0.95), evaluation=Evaluation("mnist"))
    assert curve(run(*ROWS, best)).values == [0.3, 0.5]


def test_what_is_drawn_is_what_was_measured() -> None:
    curves = [curve(run(*ROWS)), curve(run(record("stage1", 2, 0.25, 0.1), task="jigsaw"))]
    (axis,) = draw_curves(curves).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert lines == {"rotation": [[1, 30], [4, 50]], "jigsaw": [[2, 25]]}
    assert [text.get_text() for text in axis.get_xticklabels()] == ["1", "2", "4"]


def test_runs_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.py run=<its folder> probe=\[lowshot\]"):
        curve(run(ROWS[-1]))
    with pytest.raises(ValueError, match="one metric on one data set"):
        draw_curves([curve(run(*ROWS)), curve(run(*ROWS, data="stl10"))])
    with pytest.raises(ValueError, match="curves show nothing"):
        draw_curves([])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "results.json", run(*ROWS))
    assert main([str(tmp_path / "curve.png"), str(tmp_path)]) == 0
    with Image.open(tmp_path / "curve.png") as picture:
        assert min(picture.size) > 300
    assert main([str(tmp_path / "curve.png")]) == 2
    assert main([str(tmp_path / "curve.png"), str(tmp_path / "gone")]) == 1
    assert "usage" in (said := capsys.readouterr().err)
    assert "error: " in said


def test_rows_of_a_benchmark_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for row in ("first", "second"):
        results = run(*ROWS)
        facts = replace(results.run, benchmark=BenchmarkRow("table", row))
        (tmp_path / row).mkdir()
        write_results(tmp_path / row / "results.json", replace(results, run=facts))
        folders.append(str(tmp_path / row))
    drawn = []
    monkeypatch.setattr(
        label_efficiency, "draw_curves", lambda *given: drawn.append(given) or draw_curves(*given)
    )
    assert main([str(tmp_path / "curve.png"), *folders]) == 0
    ((curves, looks),) = drawn
    assert [each.name for each in curves] == ["first", "second"]
    assert len({(look.colour, look.marker) for look in looks}) == 1  # of one task
