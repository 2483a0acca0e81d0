"""Tables against figures by hand: means, deviations, gains, published figures, notes."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from ssl_lightning.report import notes
from ssl_lightning.report.benchmark import Column, load_benchmark
from ssl_lightning.report.build import benchmark_tables, series_tables
from ssl_lightning.report.cells import RANDOM, TREATED, UNTRAINED, Cell
from ssl_lightning.report.collect import collect
from ssl_lightning.report.opening import judging_column
from ssl_lightning.report.table import Row, Table, group_by, make_rows
from ssl_lightning.report.write import make_tables
from ssl_lightning.report.writers import csv_text


def table(tmp_path: Path, budget: str | None = None) -> Table:
    (found,) = benchmark_tables(
        collect(tmp_path / "outputs"), load_benchmark(tmp_path / "benchmark" / "small.yaml"), budget
    )
    return found


def row(found: Table, label: str) -> Row:
    return next(row for row in found.rows if row.label == label)


def cell(found: Table, label: str, column: str) -> Cell:
    return row(found, label).cells[column]


@pytest.fixture
def outputs(tmp_path: Path, small_table: Path, leave: Any, make: Any) -> Path:
    """Three seeds of rotation with the untrained backbone, two of random, one interrupted jigsaw."""
    for seed, (value, untrained) in enumerate([(0.60, 0.40), (0.62, 0.44), (0.58, 0.39)]):
        leave(
            f"rot-{seed}",
            [
                make(value, 0.55, "stage2"),
                make(0.99, 0.30, "stage1"),  # better on test, worse on held-out images
                make(untrained, 0.45, "stage1", trained=False),
                make(0.98, 0.20, "stage2", trained=False),
            ],
            seed=seed,
        )
    for seed in range(2):
        leave(f"ran-{seed}", [make(0.41, 0.4, trained=False)], task="random", seed=seed, images_per_s=0.0)
    leave("jig-0", [make(0.5, trained=False)], task="jigsaw", status="interrupted")
    return tmp_path / "outputs"


def test_mean_and_deviation_over_seeds_at_the_stage_that_heldout_images_choose(
    tmp_path: Path, outputs: Path
) -> None:
    found = cell(table(tmp_path), "rotation", "linear")
    assert found.values == pytest.approx([60, 62, 58])
    assert found.mean == pytest.approx(60.0)
    assert found.sd == pytest.approx(2.0)  # sqrt((0 + 4 + 4) / 2)
    assert found.stages == ["stage2"] * 3


def test_the_gain_is_the_mean_of_the_differences_seed_by_seed(tmp_path: Path, outputs: Path) -> None:
    found = cell(table(tmp_path), "rotation", "linear")
    assert found.gains == pytest.approx([20, 18, 19])
    assert found.gain == pytest.approx(19.0)
    assert found.over == [UNTRAINED]


def test_a_column_of_one_stage_takes_that_stage(tmp_path: Path, outputs: Path) -> None:
    found = cell(table(tmp_path), "rotation", "block 1")
    assert found.mean == pytest.approx(99.0)
    assert found.gain == pytest.approx(99.0 - 41.0)  # the untrained stage 1: 40, 44, 39


def test_runs_of_an_included_benchmark_are_rows_too(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    leave("rot", [make(0.5)])
    leave("jig", [make(0.6)], task="jigsaw", benchmark={"name": "wide", "budget": "cpu", "row": "jigsaw"})
    assert [row.name for row in table(tmp_path).rows] == ["rotation"]
    small_table.write_text(small_table.read_text() + "  includes: [wide]\n")
    found = table(tmp_path)
    assert [row.name for row in found.rows] == ["rotation", "jigsaw"]
    assert cell(found, "jigsaw", "linear").mean == pytest.approx(60)


def test_a_control_has_its_untrained_figures_and_no_gain(tmp_path: Path, outputs: Path) -> None:
    found = cell(table(tmp_path), "random", "linear")
    assert (found.mean, found.sd, found.gain) == (pytest.approx(41.0), pytest.approx(0.0), None)


def test_without_an_untrained_backbone_the_gain_is_over_random_of_the_same_seed(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    for seed, value in ((0, 0.5), (1, 0.6), (2, 0.7)):
        leave(f"rot-{seed}", [make(value)], seed=seed)
    for seed, value in ((0, 0.30), (1, 0.20)):
        leave(f"ran-{seed}", [make(value, trained=False)], task="random", seed=seed)
    leave("other", [make(0.1, trained=False)], task="random", seed=2, backbone="resnet18")
    found = table(tmp_path)
    assert cell(found, "rotation", "linear").gains == pytest.approx([20, 40])
    assert cell(found, "rotation", "linear").over == [RANDOM]
    said = " ".join(found.notes[notes.GAIN])
    assert RANDOM in said
    assert "Only for some seeds: rotation: linear (2 of 3 seeds); rotation: block 1 (2 of 3 seeds)" in said


def test_a_control_on_other_labelled_images_is_no_pair(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    leave("rot", [make(0.5, labels={"train": 590, "heldout": 66})])
    other = make(0.3, trained=False, labels={"train": 117, "heldout": 14})
    leave("swapped", [other], task="random", ended="2026-01-02T00:00:00+00:00")
    assert cell(table(tmp_path), "rotation", "linear").gain is None
    same = make(0.4, trained=False, labels={"train": 590, "heldout": 66})
    leave("older", [same], task="random")
    assert cell(table(tmp_path), "rotation", "linear").gain == pytest.approx(10)


def test_a_control_that_was_fine_tuned_for_longer_is_no_pair(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    leave("rot", [make(0.5, steps=200)])
    leave("longer", [make(0.4, trained=False, steps=600)], task="random")
    assert cell(table(tmp_path), "rotation", "linear").gain is None
    leave("as_long", [make(0.3, trained=False, steps=200)], task="random")
    assert cell(table(tmp_path), "rotation", "linear").gain == pytest.approx(20)


def test_a_control_of_another_batch_norm_is_said(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    leave("rot", [make(0.5, batch_norm="recalibrated")])
    leave("ran", [make(0.3, trained=False)], task="random")
    found = table(tmp_path)
    assert cell(found, "rotation", "linear").gain == pytest.approx(20)
    assert TREATED in " ".join(found.notes[notes.GAIN])


def test_an_untrained_figure_of_another_batch_norm_is_no_pair(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    leave("rot", [make(0.5, batch_norm="recalibrated"), make(0.3, trained=False)])
    assert cell(table(tmp_path), "rotation", "linear").gain is None


def test_published_figures_stand_beside_with_the_difference(tmp_path: Path, outputs: Path) -> None:
    found = table(tmp_path).comparisons
    assert [(c.published.row, c.published.column, c.published.value) for c in found] == [
        ("rotation", "linear", 61.25),
        ("rotation", "block 9", 89.06),
        ("DeepCluster", "linear", 70.0),
    ]
    assert found[0].difference == pytest.approx(60.0 - 61.25)
    assert [c.difference for c in found[1:]] == [None, None]


def test_what_lacks_is_said(tmp_path: Path, outputs: Path) -> None:
    said = table(tmp_path).notes
    assert said[notes.MISSING] == [
        "No figure of a finished run: supervised, jigsaw, inpainting.",
        "Columns without a figure: 20-NN, transfer.",
    ]
    assert said[notes.SEEDS] == ["Fewer than 3: random 2."]
    assert said[notes.UNFINISHED] == ["jigsaw, seed 0: interrupted, in jig-0."]


def test_the_newest_finished_run_counts_and_that_is_said(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    leave("a-new", [make(0.7)], ended="2026-01-03T00:00:00+00:00")
    leave("b-old", [make(0.5)], ended="2026-01-02T00:00:00+00:00")
    leave("c-failed", [make(0.9)], ended="2026-01-04T00:00:00+00:00", status="failed")
    found = table(tmp_path)
    assert cell(found, "rotation", "linear").values == pytest.approx([70])
    assert found.notes[notes.DUPLICATES] == [
        "rotation, seed 0: the newest finished run counts, a-new; ignored: b-old."
    ]
    assert found.notes[notes.UNFINISHED] == [
        "rotation, seed 0: failed, in c-failed; another run with this seed finished."
    ]


def test_an_older_run_fills_the_columns_that_the_newest_lacks(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    leave("new", [make(0.7)], ended="2026-01-03T00:00:00+00:00")
    leave("old", [make(0.5), make(0.4, probe="knn", k=20)], ended="2026-01-02T00:00:00+00:00")
    found = table(tmp_path)
    assert cell(found, "rotation", "linear").mean == pytest.approx(70)
    assert cell(found, "rotation", "20-NN").mean == pytest.approx(40)
    assert [run.name for run in row(found, "rotation").used] == ["new", "old"]


def test_two_branches_are_two_rows(tmp_path: Path, small_table: Path, leave: Any, make: Any) -> None:
    probes = [make(0.3, branch="discriminator"), make(0.5), make(0.35, branch="discriminator", trained=False)]
    leave("inp", probes, task="inpainting")
    leave("ran", [make(0.4, trained=False)], task="random")
    found = table(tmp_path)
    assert [row.label for row in found.rows] == ["random", "inpainting", "inpainting, discriminator"]
    assert cell(found, "inpainting", "linear").gain == pytest.approx(10)  # over random
    assert cell(found, "inpainting, discriminator", "linear").gain == pytest.approx(-5)  # over itself


def test_data_selects_what_was_probed(tmp_path: Path, small_table: Path, leave: Any, make: Any) -> None:
    later = {"data": "stl10", "checkpoint": "last", "git": "abc"}
    leave("a", [make(0.5), make(0.3, evaluation=later)])
    leave("b", [make(0.2)], task="jigsaw", data="stl10")
    leave("c", [make(0.6)], task="jigsaw", data="cifar10")
    found = table(tmp_path)
    assert cell(found, "rotation", "linear").mean == pytest.approx(50)
    assert cell(found, "rotation", "transfer").mean == pytest.approx(30)
    assert cell(found, "jigsaw", "transfer").mean == pytest.approx(20)


def test_of_several_settings_those_of_the_run_itself_are_shown_and_that_is_said(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    first, last = ({"data": "cifar10", "checkpoint": name, "git": "abc"} for name in ("best", "last"))
    views = {"evaluation": last, "input": "views"}
    probes = [make(0.9, 0.9, **views), make(0.5, 0.4), make(0.6, 0.6, evaluation=first)]
    more = [make(0.3, probe="knn", k=20, evaluation=first), make(0.4, probe="knn", k=20, **views)]
    leave("a", [*probes, *more, make(0.1, probe="knn", k=200)])
    found = table(tmp_path)
    assert cell(found, "rotation", "linear").mean == pytest.approx(50)
    assert cell(found, "rotation", "20-NN").mean == pytest.approx(40)  # the later evaluation
    assert "rotation, seed 0: linear, 20-NN, block 1" in found.notes[notes.SEVERAL][0]


def test_budgets_are_tables_of_their_own(tmp_path: Path, small_table: Path, leave: Any, make: Any) -> None:
    def of(budget: str | None) -> dict[str, Any]:
        return {"name": "small", "budget": budget, "row": "rotation"}

    for name, budget, value in (("a", "cpu", 0.5), ("b", "gpu", 0.7), ("c", None, 0.8)):
        leave(name, [make(value)], benchmark=of(budget))
    leave("other", [make(0.1)], benchmark={"name": "large", "budget": "cpu", "row": "rotation"})
    leave("none", [make(0.1)], benchmark=None)
    expected = load_benchmark(small_table)
    tables = benchmark_tables(collect(tmp_path / "outputs"), expected, None)
    means = {found.name: cell(found, "rotation", "linear").mean for found in tables}
    assert means == pytest.approx({"small-cpu": 50, "small-full": 80, "small-gpu": 70})
    only = table(tmp_path, "gpu")
    assert cell(only, "rotation", "linear").mean == pytest.approx(70)
    assert only.notes[notes.OTHERS] == ["1 run of no benchmark.", "2 runs of another budget."]
    assert table(tmp_path, "tiny").rows == []


def test_a_row_that_nobody_expected_is_shown_last_and_said(
    tmp_path: Path, small_table: Path, leave: Any, make: Any
) -> None:
    leave("a", [make(0.5)], benchmark={"name": "small", "row": "another"})
    leave("b", [make(0.5)], benchmark={"name": "small", "row": "rotation"})
    found = table(tmp_path)
    assert [row.label for row in found.rows] == ["rotation", "another"]
    assert "Not among the rows of the benchmark: another." in found.notes[notes.MISSING]


def test_the_best_has_seen_no_label(tmp_path: Path, outputs: Path, leave: Any, make: Any) -> None:
    leave("sup", [make(0.9)], task="supervised", labels="those of the pretraining images")
    assert table(tmp_path).best("linear") == pytest.approx(60.0)


def test_a_rank_is_plain_and_has_no_best(tmp_path: Path, leave: Any, make: Any) -> None:
    for task, rank in (("rotation", 90.5), ("jigsaw", 80.0)):
        probes = [make(rank, None, probe="rankme", metric="rankme"), make(0.5)]
        leave(task, [*probes, make(60.0, None, probe="rankme", metric="rankme", trained=False)], task=task)
    (found,) = series_tables(collect(tmp_path / "outputs"))
    rank = found.rows[1].cells["rankme (rank)"]
    assert (rank.mean, rank.gain) == (pytest.approx(90.5), pytest.approx(30.5))
    assert found.best("rankme (rank)") is None
    assert found.best("linear") is None  # two rows share it


def test_a_share_of_the_labels_is_no_figure_of_all(tmp_path: Path, leave: Any, make: Any) -> None:
    options = {"probe": "segmentation", "metric": "miou"}
    leave("all", [make(0.5, **options)], task="rotation")
    leave("shares", [make(0.2, fraction=0.1, **options), make(0.6, fraction=1.0, **options)], task="jigsaw")
    (found,) = series_tables(collect(tmp_path / "outputs"))
    means = [{name: cell.mean for name, cell in row.cells.items() if cell} for row in found.rows]
    assert means == [
        {"segmentation mIoU": pytest.approx(50.0)},
        {"segmentation 10 % mIoU": pytest.approx(20.0), "segmentation 100 % mIoU": pytest.approx(60.0)},
    ]


@pytest.mark.parametrize(
    "more",
    [{"backbone": "fine-tuned, lr 0.0005"}, {"hidden": 256}, {"classifier": "MLP"}, {"steps": 9}],
)
def test_gains_are_over_the_same_treatment(
    tmp_path: Path, leave: Any, make: Any, more: dict[str, Any]
) -> None:
    plain = {"backbone": "frozen", "hidden": 0, "steps": 1, "probe": "segmentation", "metric": "miou"}
    leave("control", [make(0.3, trained=False, **plain)], task="random")
    leave("alike", [make(0.6, **plain)], task="rotation")
    leave("other", [make(0.6, **(plain | more))], task="jigsaw")
    (found,) = series_tables(collect(tmp_path / "outputs"))
    gains = {row.label: cell.gain for row in found.rows for cell in row.cells.values() if cell}
    assert gains == {"random": None, "rotation": pytest.approx(30.0), "jigsaw": None}


def test_series_are_told_apart_by_their_overrides(tmp_path: Path, leave: Any, make: Any) -> None:
    for lr in ("0.1", "0.2"):
        for seed in range(2):
            command = f"python train.py task=rotation optimizer.lr={lr} trainer.max_epochs=3 seed={seed}"
            leave(f"{lr}-{seed}", [make(0.5)], seed=seed, command=command, series_sha256=lr[-1] * 64)
    leave("jig", [make(0.5)], task="jigsaw")
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert [(row.label, row.seeds) for row in found.rows] == [
        ("rotation optimizer.lr=0.1", [0, 1]),
        ("rotation optimizer.lr=0.2", [0, 1]),
        ("jigsaw", [0]),
    ]


def test_long_overrides_give_way_to_the_folder(tmp_path: Path, leave: Any, make: Any) -> None:
    for name in ("a", "b"):
        place = f"/a/long/path/to/the/photographs/of/{name}"
        command = f"python train.py task=rotation data.pretrain_dir={place} data.train_dir={place}/labelled"
        leave(name, [make(0.5)], command=command, series_sha256=name * 64)
    short = (
        "python train.py task=rotation data.pretrain_dir=a"  # in a table with the others, no override tells
    )
    leave("c", [make(0.5)], command=short, series_sha256="c" * 64)
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert [row.label for row in found.rows] == ["rotation (a)", "rotation (b)", "rotation (c)"]


def test_cross_validated_rows_are_named_beside_others(tmp_path: Path, leave: Any, make: Any) -> None:
    leave("folds", [make(0.5, cross_validated=5)])
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert "Figures are cross-validated" in " ".join(found.notes[notes.MEASURED])
    leave("split", [make(0.5)], task="jigsaw")
    (found,) = series_tables(collect(tmp_path / "outputs"))
    said = " ".join(found.notes[notes.MEASURED])
    assert "The figures of rotation are on other test images than the rest, and are cross-validated" in said


def test_of_an_override_given_twice_the_last_one_is_shown(tmp_path: Path, leave: Any, make: Any) -> None:
    for lr in ("0.1", "0.2"):
        command = f"python train.py task=rotation optimizer.lr=0.3 optimizer.lr={lr}"
        leave(lr, [make(0.5)], command=command, series_sha256=lr[-1] * 64)
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert [row.label for row in found.rows] == ["rotation optimizer.lr=0.1", "rotation optimizer.lr=0.2"]


def test_old_files_are_series_by_command_else_by_themselves(tmp_path: Path, leave: Any, make: Any) -> None:
    for seed in range(2):
        leave(f"a{seed}", [make(0.5)], seed=seed, series_sha256=None)
        leave(f"b{seed}", [make(0.5)], seed=seed, series_sha256=None, command=None)
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert [row.seeds for row in found.rows] == [[0, 1], [0], [1]]
    assert len({row.label for row in found.rows}) == 3
    assert notes.DUPLICATES not in {kind for kind, said in found.notes.items() if said}


def test_each_data_that_was_probed_is_a_table(tmp_path: Path, leave: Any, make: Any) -> None:
    leave("a", [make(0.5), make(0.3, evaluation={"data": "stl10"})])
    leave("b", [make(0.6)], task="jigsaw")
    leave("off", [], status="failed")
    tables = series_tables(collect(tmp_path / "outputs"))
    assert [len(found.notes[notes.UNFINISHED]) for found in tables] == [1, 0]  # told once
    assert [(found.name, len(found.rows)) for found in tables] == [("runs-cifar10", 2), ("runs-stl10", 1)]
    assert tables[1].rows[0].cells["linear"].mean == pytest.approx(30)
    assert [found.notes[notes.OTHERS] for found in tables] == [[], []]  # each run is in one of them


def test_runs_without_labels_show_their_pretexts(tmp_path: Path, leave: Any, make: Any) -> None:
    for seed, value in ((0, 0.3), (1, 0.5)):
        leave(f"a{seed}", [], seed=seed, pretext={"val/acc": value}, data="folder")
    leave("b", [], task="inpainting", pretext={"val/loss": 2.0, "val/hole_psnr": 14.5}, data="folder")
    leave("off", [], task="jigsaw", status="failed")
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert [(row.name.split(" ")[0], row.seeds, row.pretext) for row in found.rows] == [
        ("rotation", [0, 1], "val/acc"), ("inpainting", [0], "val/hole_psnr"),
    ]  # fmt: skip
    assert [row.pretext_mean() for row in found.rows] == [pytest.approx(0.4), 14.5]
    (measured, advice) = found.notes[notes.MEASURED]
    assert "they do not compare tasks" in measured
    assert "run=<run folder> data.train_dir=<folder>" in advice
    assert "failed" in found.notes[notes.UNFINISHED][0]
    rows = list(csv.DictReader(io.StringIO(csv_text([found]))))
    assert [(row["column"], row["mean"], row["seeds"]) for row in rows] == [
        ("val/acc", "0.4000", "0 1"), ("val/hole_psnr", "14.5000", "0"),
    ]  # fmt: skip
    leave("probed", [make(0.5)], task="jigsaw")
    assert [each.name for each in series_tables(collect(tmp_path / "outputs"))] == [
        "runs-cifar10", "runs-unprobed",
    ]  # fmt: skip


def test_several_machines_are_named(tmp_path: Path, leave: Any, make: Any) -> None:
    leave("a", [make(0.5)], machine="AMD EPYC, 1 thread")
    leave("b", [make(0.6)], task="jigsaw", machine="AMD EPYC, 1 thread")
    leave("c", [make(0.4, trained=False)], task="random", images_per_s=0.0)  # it did not train
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert found.notes[notes.MACHINES] == []
    leave("d", [make(0.6)], task="inpainting")
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert found.notes[notes.MACHINES] == [
        "Images/s are of several machines and do not compare: AMD EPYC, 1 thread (2 runs); "
        "not recorded (1 run)."
    ]


def test_unequal_classes_are_a_column_and_a_note(tmp_path: Path, leave: Any, make: Any) -> None:
    leave("a", [make(0.909), make(0.5, metric="balanced", majority=0.909)])
    (found,) = series_tables(collect(tmp_path / "outputs"))
    assert found.columns == ["linear", "linear balanced"]
    assert [cell.mean for cell in found.rows[0].cells.values()] == [pytest.approx(90.9), pytest.approx(50)]
    assert any(
        "always answering the largest one is right on 90.9%" in note for note in found.notes[notes.MEASURED]
    )
    assert notes.SEVERAL not in {kind for kind, said in found.notes.items() if said}


def test_less_is_better_for_calibration(tmp_path: Path, leave: Any, make: Any) -> None:
    columns = [Column("error", where={"metric": "ece"})]
    leave("a", [make(0.30, trained=False, metric="ece"), make(0.10, metric="ece")])
    leave("b", [make(0.10, trained=False, metric="ece"), make(0.30, metric="ece")], task="jigsaw")
    groups = group_by(collect(tmp_path / "outputs").runs, lambda run: run.facts.task)
    rows, _ = make_rows(groups, columns, {})
    assert [row.cells["error"].trend for row in rows] == [1, -1]
    table = Table("x", "x", [column.name for column in columns], rows)
    assert table.best("error") == pytest.approx(10)
    assert judging_column(rows, ["error"]) is None  # the first sentence is about accuracies


def test_an_empty_folder_is_told_from_unfinished_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run; train one first, or give outputs="):
        make_tables(tmp_path, None, None)


def test_no_figure_at_all_names_what_there_is(tmp_path: Path, leave: Any, make: Any) -> None:
    (leave("broken", []) / "results.json").write_text("{")
    leave("off", [make(0.5)], status="failed")
    with pytest.raises(ValueError, match=r"no finished run.*off \(failed\), broken \(broken: "):
        series_tables(collect(tmp_path / "outputs"))


def test_an_unknown_benchmark_names_those_there_are(small_table: Path) -> None:
    with pytest.raises(ValueError, match="benchmark is 'smal'; allowed are small"):
        load_benchmark(small_table.with_stem("smal"))


@pytest.mark.parametrize("text", ["", "a: 1", "benchmark: {name: x, rows: []}", "benchmark: [", "- a"])
def test_a_file_that_is_no_benchmark(small_table: Path, text: str) -> None:
    small_table.write_text(text)
    with pytest.raises(ValueError, match=r"small\.yaml (has no|is not)"):
        load_benchmark(small_table)
