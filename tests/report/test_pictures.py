"""Pictures: drawn values, skipped missing and torn files, and the limit of rows."""

import io
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from ssl_lightning.report import charts
from ssl_lightning.report.build import series_tables
from ssl_lightning.report.canvas import NARROW, WIDE, Picture, grid
from ssl_lightning.report.collect import collect
from ssl_lightning.report.colours import DARK_INK, DARK_PAPER, LIGHT_INK, LIGHT_PAPER, TASKS
from ssl_lightning.report.pictures import MOST, PANEL_WIDTH, draw_all
from ssl_lightning.report.table import Table
from ssl_lightning.report.training_log import POINTS, epochs, read_metrics, smooth, thin_points


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Collect the figures by chart name instead of rendering them."""
    found: dict[str, Any] = {}

    def keep(name: str, title: str, caption: str, figure: Any, folded: bool = False) -> Any:
        found[name] = figure
        return Picture(name, title, caption, b"", 1, 1, dark=b"", folded=folded)

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


def test_accuracy_by_stage_is_balanced_where_that_judges(
    tmp_path: Path, leave: Any, make: Any, drawn: dict[str, Any]
) -> None:
    stages = ("stage1", "stage2")
    balanced = [make(0.3, stage=stage, metric="balanced") for stage in stages]
    leave("r", [*(make(0.9, stage=stage) for stage in stages), *balanced])
    draw_all(table(tmp_path))
    assert lines(drawn["stages"].axes[0]) == [[[1, 30], [2, 30]]]
    assert drawn["stages"].get_supylabel() == "linear probe, test balanced accuracy in %"


def test_few_labels_are_those_of_the_pretraining_data(
    tmp_path: Path, leave: Any, make: Any, drawn: dict[str, Any]
) -> None:
    own = [make(0.1 * k, probe="lowshot", k_shot=k, sd=0.01) for k in (1, 2)]
    leave("a", [*own, make(0.9, probe="lowshot", k_shot=1, sd=0.01, evaluation={"data": "stl10"})])
    leave("b", [make(0.5)], task="jigsaw")
    draw_all(table(tmp_path))
    (axis,) = drawn["labels"].axes
    assert lines(axis) == [[[1, 10], [2, 20]]]


def test_few_labels_are_a_mean_over_seeds(
    tmp_path: Path, leave: Any, make: Any, drawn: dict[str, Any]
) -> None:
    for seed, more in enumerate((0.0, 0.02, 0.04)):
        shots = [make(0.1 * k + more, probe="lowshot", k_shot=k, sd=0.5) for k in (1, 2, 4)[: 3 - seed // 2]]
        leave(f"a{seed}", shots, seed=seed)
    draw_all(table(tmp_path))
    (axis,) = drawn["labels"].axes
    assert lines(axis) == [[[1, 12], [2, 22]]]  # the third seed has no 4 labels
    low, high = axis.collections[0].get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == (pytest.approx(10), pytest.approx(24))  # 2 points over the seeds, not 50 over draws


def test_a_task_has_its_colour_in_every_chart(
    tmp_path: Path, leave: Any, make: Any, drawn: dict[str, Any]
) -> None:
    for task in ("jigsaw", "rotation", "random"):
        trained = task != "random"
        shots = [make(0.1 * k, probe="lowshot", k_shot=k, sd=0.01, trained=trained) for k in (1, 2)]
        stages = [make(0.5, stage=f"stage{n}", trained=trained) for n in (1, 2)]
        (leave(task, shots + stages, task=task) / "metrics.csv").write_text(METRICS)
    pictures = draw_all(table(tmp_path))
    assert {name: picture.folded for name, picture in zip(drawn, pictures, strict=True)} == {
        "stages": False, "labels": False, "pretext": False, "training": False, "speed": True,
    }  # fmt: skip
    colours = {task: TASKS[task][0] for task in ("jigsaw", "rotation", "random")}
    order = ["jigsaw", "random", "rotation"]
    (labels,) = drawn["labels"].axes
    assert {line.get_label(): line.get_color() for line in labels.lines} == colours
    for name in ("pretext", "training"):
        assert {axis.get_title(loc="left"): axis.lines[0].get_color() for axis in drawn[name].axes} == colours
    assert [to_hex(bar.get_facecolor()) for bar in drawn["speed"].axes[0].patches] == [
        colours[task] for task in order
    ]
    (stages,) = (axis for axis in drawn["stages"].axes if axis.get_title(loc="left") == "rotation")
    assert colours["rotation"] in [line.get_color() for line in stages.lines]


def test_dark_paper_changes_text_and_axes_but_no_task(tmp_path: Path, leave: Any, make: Any) -> None:
    leave("a", [make(0.1 * k, probe="lowshot", k_shot=k, sd=0.01) for k in (1, 2)])
    (picture, _) = draw_all(table(tmp_path))
    for png, paper, ink in (
        (picture.png, LIGHT_PAPER, LIGHT_INK),
        (picture.dark, DARK_PAPER, DARK_INK),
    ):
        assert png is not None
        with Image.open(io.BytesIO(png)) as image:
            counts = {to_hex([part / 255 for part in rgb]): n for n, rgb in image.convert("RGB").getcolors()}
        assert max(counts, key=counts.__getitem__) == paper
        assert counts[ink] > 100
        assert counts[TASKS["rotation"][0]] > 100


def beyond(axis: Any) -> list[Any]:
    """Return the labels of ticks beyond the limits, which are not drawn."""
    found = []
    for its in (axis.xaxis, axis.yaxis):
        low, high = sorted(its.get_view_interval())
        found += [tick.label1 for tick in its.get_major_ticks() if not low <= tick.get_loc() <= high]
    return found


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_no_text_of_a_chart_is_cut_or_overlaps(
    tmp_path: Path, leave: Any, make: Any, monkeypatch: pytest.MonkeyPatch, width: float
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(charts, "chart", lambda *given, **folded: figures.append(given[3]))
    for number, task in enumerate([*TASKS, "a task of another package, lr=0.1"]):
        shots = [make(0.02 * k, probe="lowshot", k_shot=k, sd=0.01) for k in (1, 2, 4, 8, 16, 32)]
        stages = [make(0.5, stage=f"stage{n}") for n in (1, 2, 3)]
        folder = leave(str(number), shots + stages, task=task, images_per_s=12_345.0, wall_s=8100.0)
        (folder / "metrics.csv").write_text(METRICS)
    found = table(tmp_path)
    for draw in (charts.by_stage, charts.few_labels, charts.over_training, charts.training, charts.speed):
        draw(found.rows, charts.row_styles(found.rows), width)
    assert len(figures) == 5
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        hidden = {id(label) for axis in figure.axes for label in beyond(axis)}
        texts = [text for text in figure.findobj(Text) if text.get_text().strip() and id(text) not in hidden]
        boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts]
        for text, box in boxes:
            assert -1 < box.x0 < box.x1 < figure.bbox.x1 + 1, text
            assert -1 < box.y0 < box.y1 < figure.bbox.y1 + 1, text
        for (one, a), (other, b) in combinations(boxes, 2):
            overlap = min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
            assert not overlap, (one, other)


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


def test_a_task_is_shown_before_and_after_training(tmp_path: Path, leave: Any, make: Any) -> None:
    both, one, torn = (leave(task, [make(0.5)], task=task) for task in ("both", "one", "torn"))
    for folder, kept in ((both, (1, 2, 10)), (one, (3,)), (torn, (1, 2))):
        (folder / "panels").mkdir()
        for epoch in kept:
            Image.new("RGB", (60, 40 + epoch)).save(folder / "panels" / f"epoch_{epoch:04d}.png")
        (folder / "panels" / "epoch_next.png").write_text("no number")
        Image.new("RGB", (50, 50)).save(folder / "panel.png")
    (torn / "panels" / "epoch_0002.png").write_bytes(b"torn")
    shown = [picture for picture in draw_all(table(tmp_path)) if not picture.chart]
    assert [(picture.title, picture.caption, picture.height) for picture in shown] == [
        ("both, seed 0", "epoch 1", 41),
        ("both, seed 0", "epoch 10", 50),
        ("one, seed 0", "after the last epoch", 50),
        ("torn, seed 0", "after the last epoch", 50),
    ]


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
