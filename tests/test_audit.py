"""Tests of the shortcut audit, run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.audit import guards_off
from ssl_lightning.launch.rows import remember
from ssl_lightning.report.audit import ALL

ROOT = Path(__file__).parent.parent
JIGSAW = "ssl_lightning.tasks.jigsaw.Jigsaw"
QUICK = [
    "data=fake",
    "trainer=debug",
    "probe=[knn]",
    "probe.knn.ks=[5]",
    "logger=[]",
    "callbacks=[checkpoint]",
]


def test_each_guard_has_its_overrides() -> None:
    assert guards_off(JIGSAW, None) == {
        "gap": ["task.gap=False"],
        "standardise": ["task.standardise=False"],
        "grey": ["task.grey=0.0"],
        "channel_jitter": ["task.channel_jitter=0"],
    }
    neighbours = guards_off("ssl_lightning.tasks.context_prediction.ContextPrediction", ["colours", "gap"])
    assert neighbours == {"colours": ["task.colours=null"], "gap": ["task.gap=0", "task.jitter=0"]}


def test_bad_audits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Rotation has no guards"):
        guards_off("ssl_lightning.tasks.rotation.Rotation", None)
    with pytest.raises(RunError, match=r"audit\.guards has edges; the task has gap, standardise"):
        guards_off(JIGSAW, ["edges"])
    with pytest.raises(RunError, match=r"audit\.guards is gap; a list is needed: audit\.guards=\[gap\]"):
        guards_off(JIGSAW, "gap")
    remember("audit", tmp_path / "audit.json", {"seeds": [0]})
    remember("audit", tmp_path / "audit.json", {"seeds": [0]})
    with pytest.raises(RunError, match=r"another command \(there seeds=\[0\]; here seeds=\[1\]\)"):
        remember("audit", tmp_path / "audit.json", {"seeds": [1]})


def test_a_seed_is_not_passed_over(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "audit.py"), "seed=3", f"output_dir={tmp_path}", "name=first"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert "seed= cannot be given to an audit; use audit.seeds" in done.stderr
    assert not list(tmp_path.rglob("first*"))  # nor the folder that Hydra made
    assert not list(tmp_path.rglob("audit.json"))


@pytest.mark.slow
def test_an_interrupted_audit_resumes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "audit.py"),
        f"output_dir={tmp_path}",
        "name=a",
        "task=jigsaw",
        *QUICK,
    ]
    command.append("audit.guards=[gap]")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "audit/jigsaw/fake/convnet/a"
    without = json.loads((folder / "gap-0/results.json").read_text())
    assert {r["trained"] for r in without["probes"]} == {True, False}
    assert "gap: false" in (folder / "gap-0/config.yaml").read_text()
    assert "without gap" in (folder / "AUDIT.md").read_text()
    (folder / "gap-0/results.json").unlink()  # as after a kill
    again = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{ALL}, seed 0" in done.stdout
    assert f"{ALL}, seed 0" not in again.stdout  # only the other row runs
    assert "\ngap, seed 0, resumed\n" in again.stdout
