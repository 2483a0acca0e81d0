"""Command line of `python report.py`."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssl_lightning.report.write import write_report
from tests._plugin import write_plugin
from tests.report.conftest import BENCHMARK

ROOT = Path(__file__).parents[2]
# prints the help without importing torch
COMMAND = """
import runpy, sys
sys.argv[0] = "report.py"
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert "torch" not in sys.modules
"""


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMMAND, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path, leave: Any, make: Any) -> None:
    leave("anywhere/deep", [make(0.5), make(0.3, trained=False)])
    before = set(ROOT.iterdir())
    done = call(f"outputs={tmp_path / 'outputs'}", f"out={tmp_path / 'report'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert "50.0 (+20.0 ± " in done.stdout
    assert f"page: {tmp_path / 'report' / 'report.html'}" in done.stdout
    names = {path.name for path in (tmp_path / "report").glob("[!.]*")}
    assert names == {"report.html", "table.md", "table.csv", "table.tex", "runs-cifar10-speed.png"}
    assert set(ROOT.iterdir()) - before <= {ROOT / "__pycache__"}  # Hydra creates no run folder


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("benchmark=nothing", "error: benchmark is 'nothing'; allowed are "),
        ("outputs=/nowhere", "error: outputs is '/nowhere', which is not a folder"),
    ],
)
def test_an_error_is_one_line(tmp_path: Path, argument: str, message: str) -> None:
    done = call(f"out={tmp_path / 'report'}", argument)
    assert done.returncode == 1
    assert len([line for line in done.stderr.splitlines() if line.startswith(message)]) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report").exists()


def test_a_plugin_with_a_benchmark_has_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(write_plugin(tmp_path / "packages")))
    folder = tmp_path / "packages/mytasks/conf/benchmark"
    folder.mkdir()
    (folder / "mine.yaml").write_text(BENCHMARK.lstrip())
    (tmp_path / "outputs").mkdir()
    for name in ("mine", "cifar10_six"):
        done = call(f"benchmark={name}", f"outputs={tmp_path / 'outputs'}", f"out={tmp_path / name}")
        assert (done.returncode, done.stderr) == (0, "")
        assert "rotation" in (tmp_path / name / "table.md").read_text()


def test_files_of_others_stay(tmp_path: Path, leave: Any, make: Any) -> None:
    leave("x", [make(0.5)])
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "table.csv").write_text("a,b")
    with pytest.raises(
        ValueError, match=r"notes has table\.csv and no report\.html, so it is no report; give"
    ):
        write_report(tmp_path / "outputs", notes, None, None)
    assert [(path.name, path.read_text()) for path in notes.iterdir()] == [("table.csv", "a,b")]
    for _ in range(2):  # a report may be written again
        write_report(tmp_path / "outputs", tmp_path / "report", None, None)


def test_a_benchmark_without_runs_yet(tmp_path: Path, small_table: Path) -> None:
    (tmp_path / "outputs").mkdir()
    write_report(tmp_path / "outputs", tmp_path / "report", small_table, None)
    text = (tmp_path / "report" / "table.md").read_text()
    assert "| rotation | block 9 | - | 89.06 | - | the same |" in text
    assert "No figure of a finished run: random, supervised, rotation, jigsaw, inpainting." in text
    assert "no finished run yet" in (tmp_path / "report" / "report.html").read_text()
