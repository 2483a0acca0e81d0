"""A whole run that stops learning: it ends with an error, and its last good checkpoint resumes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_lightning.artifacts.checkpoints import load_checkpoint

ROOT = Path(__file__).parent.parent
# 4 batches an epoch, a look every 20; the gradients are gone after step 50
RUN = [
    "task=rotation", "data=fake", "data.num_train=48", "data.heldout=16", "data.num_test=16",
    "data.batch_size=8", "backbone.widths=[8,16]", "backbone.strides=[2,2]", "trainer=cpu",
    "trainer.max_epochs=40", "callbacks.panel.images=1", "probe=[knn]", "probe.knn.ks=[2]", "name=run",
    "+callbacks.cut._target_=tests.callbacks.test_health.Cut", "+callbacks.cut.what=gradients",
    "+callbacks.cut.after=50",
]  # fmt: skip


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_a_run_without_gradients_stops_and_its_checkpoint_resumes(tmp_path: Path) -> None:
    done = command(*RUN, f"output_dir={tmp_path}")
    folder = tmp_path / "rotation/fake/convnet/run"
    last = folder / "checkpoints/last.ckpt"
    assert done.returncode == 1
    assert "the gradient norm is exactly 0 at step 100, for 3 looks in a row (every 20 steps)" in done.stderr
    assert "parameters have no gradient" in done.stderr
    assert f"The last good checkpoint is {last}" in done.stderr
    facts = json.loads((folder / "results.json").read_text())["run"]
    assert facts["status"] == "failed"
    assert facts["health"]["verdict"] == "dead"
    assert facts["health"]["zero_grad_share"] == pytest.approx(0.5)
    assert load_checkpoint(last)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 48
    resumed = command(f"resume={folder}", "~callbacks.cut", "trainer.max_epochs=20")
    assert resumed.returncode == 0, resumed.stderr
    facts = json.loads((folder / "results.json").read_text())["run"]
    assert (facts["status"], facts["epochs"], facts["health"]["steps"]) == ("finished", 20, 80)
    assert facts["health"]["zero_grad_share"] == 0
