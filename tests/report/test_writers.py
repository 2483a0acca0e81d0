"""Writers of a table: values by hand, determinism, escaped names."""

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ssl_lightning.report.build import series_tables
from ssl_lightning.report.collect import collect
from ssl_lightning.report.write import make_tables
from ssl_lightning.report.writers import csv_text, latex, markdown, screen, signed

EXPECTED = """\
**A small table (budget cpu)**

Rotation wins: linear 60.0 %, 21.0 ± 1.1 points above the next, jigsaw, and 20.0 ± 1.4 points above the \
untrained backbone (2 seeds; ± is the standard error).

| task | seeds | images/s | pretext | linear | 20-NN | block 1 | transfer |
|---|---:|---:|---:|---:|---:|---:|---:|
| random | 1 | - | - | 40.0 | - | 40.0 | - |
| supervised | 1 | 50 | 70.0 % acc | 80.0 (+40.0 ± 0.6) | - | 80.0 (+40.0 ± 0.6) | - |
| rotation | 2 | 1,234 | 70.0 % acc | **60.0 ± 1.4** (+20.0 ± 1.4) | - | **60.0 ± 1.4** (+20.0 ± 1.4) | - |
| jigsaw | 1 | 50 | 1.25 loss | 39.0 (-1.0 ± 0.7) | 30.2 | 39.0 (-1.0 ± 0.7) | - |

Published beside measured, in %; the difference is measured - published, in points:

| task | figure | measured | published | difference | source |
|---|---|---:|---:|---:|---|
| rotation | linear | 60.0 ± 1.4 | 61.25 | -1.2 | Gidaris et al. 2018, table 1 |
| rotation | block 9 | - | 89.06 | - | the same |
| DeepCluster | linear | - | 70.0 | - | Caron et al. 2018 |

- How it was measured: Test figures in % on 10,000 images; mean ± standard deviation over seeds. \
Held-out images, never test images, choose the stage for each seed. \
Bold: the row pretrained without labels that leads by more than twice the standard error.
- Gains: In points over the row random of the same seed, data, test images and backbone, per seed. \
In points over the same backbone before its first step, per seed for rotation (linear, block 1). \
± standard error over test images and seeds; runs without answers.json count as independent.
- Missing: No figure of a finished run: inpainting. Columns without a figure: transfer.
- Seeds: Fewer than 2: random 1, supervised 1, jigsaw 1.
- Duplicates: rotation, seed 1: the newest finished run counts, rot-1; ignored: rot-1-old.
"""


@pytest.fixture
def outputs(tmp_path: Path, leave: Any, make: Any) -> Path:
    leave("ran", [make(0.4, trained=False)], task="random", images_per_s=0.0, pretext={})
    leave("sup", [make(0.8)], task="supervised", labels="those of the pretraining images")
    for seed, value in ((0, 0.61), (1, 0.59)):
        leave(f"rot-{seed}", [make(value), make(value - 0.2, trained=False)], seed=seed, images_per_s=1234)
    leave("rot-1-old", [make(0.1)], seed=1, ended="2025-01-01T00:00:00+00:00")
    leave("jig", [make(0.39), make(0.3024, probe="knn", k=20)], task="jigsaw")
    return tmp_path / "outputs"


def test_markdown_by_hand(outputs: Path, small_table: Path) -> None:
    (table,) = make_tables(outputs, small_table, "cpu")
    assert markdown(table) == EXPECTED


def test_markdown_depends_on_the_results_alone(tmp_path: Path, outputs: Path, small_table: Path) -> None:
    """Not on the folder, the times of the files, or the order of writing."""
    moved = tmp_path / "elsewhere" / "again"
    for name in sorted((path.name for path in outputs.iterdir()), reverse=True):
        shutil.copytree(outputs / name, moved / name)
        os.utime(moved / name / "results.json", (1, 1))
    (table,) = make_tables(moved, small_table, None)
    assert markdown(table) == EXPECTED


def test_csv_has_a_line_for_each_figure_with_all_that_it_came_from(outputs: Path, small_table: Path) -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(make_tables(outputs, small_table, None)))))
    by_name = {(line["row"], line["column"]): line for line in lines}
    assert len(by_name) == len(lines) == 9 + 2  # measured, and published only
    rotation = by_name["rotation", "linear"]
    assert {key: rotation[key] for key in ("mean", "sd", "n_seeds", "values", "gain", "difference")} == {
        "mean": "60.0000", "sd": "1.4142", "n_seeds": "2", "values": "61.0000 59.0000", "gain": "20.0000",
        "difference": "-1.2500",
    }  # fmt: skip
    assert rotation["gain_error"] == "1.4142"  # the root of 1^2 + 1^2, the errors of two means of two seeds
    assert rotation["folders"].splitlines() == ["rot-0", "rot-1"]
    assert rotation["commands"].splitlines()[1] == "python train.py task=rotation seed=1 name=rot-1"
    assert [p["heldout"] for p in json.loads(rotation["protocols"])] == [0.5, 0.5]
    assert by_name["rotation", "block 9"]["published"] == "89.06"
    assert by_name["rotation", "block 9"]["mean"] == by_name["DeepCluster", "linear"]["difference"] == ""


def test_latex_is_a_booktabs_table_whose_names_are_escaped(outputs: Path, leave: Any, make: Any) -> None:
    row = "a_b & 50% #1 $x$ {y} ~ ^ \\input{z}"
    leave("odd", [make(0.7)], task=row, series_sha256="f" * 64)
    (table,) = series_tables(collect(outputs))
    text = latex(table)
    name = r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}input\{z\}"
    assert rf"{name} & 1 & 50 & 70.0 \% acc & \textbf{{70.0}} (+30.0 $\pm$ 0.7) & - \\" in text
    assert r"60.0 $\pm$ 1.4 (+20.0 $\pm$ 1.4)" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert [line for line in text.splitlines() if line.startswith("%")]


def test_markdown_escapes_names(outputs: Path, leave: Any, make: Any) -> None:
    leave("odd", [make(0.7)], task="a|b <img src=x> **c** `d`\n| e", series_sha256="f" * 64)
    (table,) = series_tables(collect(outputs))
    (line,) = [line for line in markdown(table).splitlines() if line.startswith("| a")]
    assert line.startswith(r"| a\|b &lt;img src=x> \*\*c\*\* \`d\` \| e | 1 |")


def test_the_terminal_shows_the_same_figures(outputs: Path, small_table: Path) -> None:
    (table,) = make_tables(outputs, small_table, None)
    measured, published = screen(table)
    assert [column.header for column in measured.columns][:5] == [
        "task",
        "seeds",
        "images/s",
        "pretext",
        "linear",
    ]
    assert list(measured.columns[4].cells)[2] == "[bold]60.0 ± 1.4[/] (+20.0 ± 1.4)"
    assert list(published.columns[4].cells) == ["-1.2", "-", "-"]


def test_differences_have_a_sign() -> None:
    assert [signed(value) for value in (1.26, -0.04, 0.0, -3.0, None)] == [
        "+1.3",
        "+0.0",
        "+0.0",
        "-3.0",
        "-",
    ]


def test_a_budget_needs_a_benchmark(outputs: Path) -> None:
    with pytest.raises(ValueError, match="give benchmark= too"):
        make_tables(outputs, None, "cpu")
