"""Tests of seeded losses, which change only with the maths.

`python -m tests.test_golden TASK ...` writes losses into tests/golden.json; without a name, of all tasks.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.run.build import build_task
from ssl_lightning.run.parts import OURS
from tests._tasks import FORMS
from tests._tasks import TASKS as TASKS_AND_FORMS

GOLDEN = Path(__file__).with_name("golden.json")
CONF = Path(__file__).parent.parent / "conf"
LEFT_OUT = {*FORMS, "combined"}  # tasks that need parts, or have a plain form
TASKS = [*(name for name in TASKS_AND_FORMS if name not in LEFT_OUT), "supervised"]
STEPS = 4  # of one epoch; without callbacks, which change no weight (tests/test_user_loop.py)


class Losses(pl.Callback):
    """Keep the loss of each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.values.append(float(outputs["loss"]))


def seeded_losses(task: str, root: Path) -> list[float]:
    """Losses of the first steps of a task on generated data, seed 0."""
    overrides = [
        f"task={task}",
        "data=fake",
        "data.num_train=256",
        "trainer=debug",
        f"trainer.limit_train_batches={STEPS}",
    ]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", [*overrides, "probe=[]", "logger=[]", "callbacks=[]"])
    data = instantiate(cfg.data)
    data.prepare_data()
    data.setup()
    losses = Losses()
    options = {key: value for key, value in instantiate(cfg.trainer).items() if key not in OURS}
    trainer = make_trainer(**options, callbacks=[losses], default_root_dir=root)
    task, _ = build_task(cfg, data)
    trainer.fit(task, datamodule=data)
    return losses.values


@pytest.mark.parametrize("task", TASKS)
def test_seeded_losses_are_what_they_were(task: str, tmp_path: Path) -> None:
    stored = json.loads(GOLDEN.read_text())
    assert task in stored, f"tests/golden.json has no {task}; run: python -m tests.test_golden {task}"
    expected = stored[task]
    # Processors round sums differently, by about 1e-5 of the first loss. Each update amplifies it.
    # AVX2 against no vector instructions: up to 1e-5, 7e-5, 2e-4 and 3e-3 in steps 1 to 4.
    for step, (loss, golden) in enumerate(zip(seeded_losses(task, tmp_path), expected, strict=True)):
        assert loss == pytest.approx(golden, rel=1e-4 * 5**step), f"step {step + 1}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        golden = {task: seeded_losses(task, Path(folder)) for task in sys.argv[1:] or TASKS}
    GOLDEN.write_text(json.dumps(json.loads(GOLDEN.read_text()) | golden, indent=1) + "\n")
