"""Pictures: drawn values, skipped missing and torn files, and the limit of rows."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssl_lightning.report import charts
from ssl_lightning.report.build import series_tables
from ssl_lightning.report.canvas import NARROW, WIDE, chart, grid
from ssl_lightning.report.collect import collect
from ssl_lightning.report.pictures import MOST, PANEL_WIDTH, draw_all
from ssl_lightning.report.table import Table
from ssl_lightning.report.training_log import POINTS, epochs, read_metrics, smooth, thin_points


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Collect the figures by chart name before they are saved."""
    found: dict[str, Any] = {}

    def keep(name: str, title: str, caption: str, figure: Any, folded: bool = False) -> Any:
        found[name] = figure
        return chart(name, title, caption, figure, folded)

    monkeypatch.setattr(charts, "chart", keep)
    return found


def table(tmp_path: Path) -> Table:
    return series_tables(collect(tmp_path / "outputs"))[0]


def lines(axis: Any) -> list[list[list[float]]]:
    return [line.get_xydata().round(6).tolist() for line in axis.lines]


def test_accuracy_by_stage_is_the_mean_over_seeds(
    tmp_path: Path, leave: Any, make: Any, drawn: dict[str, Any]
) -> None:
    for seed, more in ((0, 0.0), (1, 0.1)):
        trained = [make(0.5 + more, stage="stage1"), make(0.6 + more, stage="stage2")]
        untrained = [make(0.4, stage=f"stage{n}", trained=False) for n in (1, 2)]
        other = [make(0.9, stage="stage1", evaluation={"data": "cifar10"}), make(0.9, metric="top5")]
        leave(f"r{seed}", trained + untrained + other, seed=seed)
    pictures = draw_all(table(tmp_path))
    assert [picture.name for picture in pictures] == ["stages", "speed"]
    (axis,) = drawn["stages"].axes
    assert lines(axis) == [[[1, 55], [2, 65]], [[1, 40], [2, 40]]]
    assert [line.get_linestyle() for line in axis.lines] == ["-", "--"]


def test_few_labels_are_those_of_the_pretraining_data(
    tmp_path: Path, leave: Any, make: Any, drawn: dict[str, Any]
) -> None:
    own = [make(0.1 * k, probe="lowshot", k_shot=k, sd=0.01) for k in (1, 2)]
    leave("a", [*own, make(0.9, probe="lowshot", k_shot=1, sd=0.01, evaluation={"data": "stl10"})])
    leave("b", [make(0.5)], task="jigsaw")
    draw_all(table(tmp_path))
    (axis,) = drawn["labels"].axes
    assert lines(axis) == [[[1, 10], [2, 20]]]


METRICS = """\
step,epoch,train/loss,val/acc,online/backbone/knn_top1
10,0,2.0,,
20,0,1.0,,
20,0,,0.5,
20,0,,,0.3
30,1,nan,,
40,1,0.5,0.75,
40,1,,,0.35
50,2,0.25,0.9,
60,2,0.1"""  # the run was killed during a write


def test_training_and_pretext_against_probe(
    tmp_path: Path, leave: Any, make: Any, drawn: dict[str, Any]
) -> None:
    folder = leave("a", [make(0.5)])
    (folder / "metrics.csv").write_text(METRICS)
    (leave("b", [make(0.5)], task="jigsaw") / "metrics.csv").write_bytes(b"\xff\x00")
    pictures = draw_all(table(tmp_path))
    assert [picture.name for picture in pictures] == ["pretext", "training", "speed"]
    (axis,) = drawn["training"].axes
    assert lines(axis)[0] == [[10, 2.0], [20, 1.0], [40, 0.5], [50, 0.25], [60, 0.1]]
    (axis,) = drawn["pretext"].axes
    assert lines(axis) == [[[50, 30], [75, 35]]]  # epoch 2 has no figure of the probe
    assert epochs(read_metrics(folder), ["val/acc"])[-1] == (2, {"val/acc": 0.9})


def test_strips_go_before_panels_and_are_made_small(tmp_path: Path, leave: Any, make: Any) -> None:
    both, panel, torn = (leave(task, [make(0.5)], task=task) for task in ("both", "panel", "torn"))
    Image.new("RGB", (3000, 100), "red").save(both / "strip.png")
    Image.new("RGB", (50, 50), "blue").save(both / "panel.png")
    Image.new("L", (50, 50)).save(panel / "panel.png")
    (torn / "strip.png").write_bytes((both / "strip.png").read_bytes()[:60])
    shown = [picture for picture in draw_all(table(tmp_path)) if not picture.chart]
    assert [(picture.title, picture.caption) for picture in shown] == [
        ("both, seed 0", "over the epochs"),
        ("panel, seed 0", "after the last epoch"),
    ]
    with Image.open(io.BytesIO(shown[0].png)) as image:
        assert image.size == (PANEL_WIDTH, PANEL_WIDTH // 30)
        assert image.convert("RGB").getpixel((5, 5)) == (255, 0, 0)


def test_of_many_rows_the_best_are_drawn_and_that_is_said(
    tmp_path: Path, leave: Any, make: Any, drawn: dict[str, Any]
) -> None:
    for number in range(MOST + 3):
        probes = [make(0.3 + number / 100, stage=f"stage{stage}") for stage in (1, 2)]
        leave(f"{number:02d}", probes, task=f"task{number:02d}")
    pictures = draw_all(table(tmp_path))
    assert [axis.get_title(loc="left")[:6] for axis in drawn["stages"].axes] == [
        f"task{number:02d}" for number in range(3, MOST + 3)
    ]
    assert all(f"Only the {MOST} of {MOST + 3} rows with the best linear" in p.caption for p in pictures)


def test_long_logs_are_thinned() -> None:
    assert thin_points(list(range(10))) == list(range(10))
    assert 0.5 * POINTS < len(thin_points(list(range(12_345)))) <= POINTS
    assert smooth([0.0, 3.0, 0.0]) == [1.5, 1.0, 1.5]


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("count", [1, 2, 4, 5, 9, 12])
def test_a_grid_has_a_chart_for_each(count: int, width: float) -> None:
    figure, axes = grid(count, width, share=True)
    assert len(axes) == len(figure.axes) == count
