"""What a run does on a GPU: the same as on a CPU, and without waiting for the device in every step."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.bench.build import composed
from ssl_lightning.run.execute import Run
from tests.data.test_in_memory import cache
from tests.test_cluster import train
from tests.test_train import results_of

pytestmark = pytest.mark.gpu

CASES = {
    "rotation": ["task=rotation"],
    "rotation, one copy": ["task=rotation", "task.copies=1"],
    "jigsaw": ["task=jigsaw", "task.channel_jitter=1"],
    "context prediction": ["task=context_prediction"],
    "three patches": ["task=context_prediction", "task.colours=dropping", "task.pairs_per_image=3"],
    "colorization": ["task=colorization"],
    "colorization, l2": ["task=colorization", "task.target=l2"],
    "inpainting": ["task=inpainting"],
    "inpainting, blocks": ["task=inpainting", "task.mask=blocks"],
    "inpainting, center": ["task=inpainting", "task.mask=center"],
    "super-resolution": ["task=super_resolution"],
    "supervised": ["task=supervised"],
}
FAKE = ["data=fake", "trainer=gpu"]
STEPS = [*FAKE, "data.num_train=2624", "probe=[]", "callbacks=[progress]", "logger=[csv]"]
STEPS += ["trainer.max_steps=-1", "trainer.max_epochs=1", "trainer.limit_val_batches=0"]


class NoWaiting(Callback):
    """Make torch refuse to wait for the device, once the first steps have warmed everything up."""

    def __init__(self) -> None:
        self.watched = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx >= 5:
            torch.cuda.set_sync_debug_mode("error")
            self.watched += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("resident", "graphs"), [(False, "false"), (True, "false"), (True, "auto")])
@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(name: str, resident: bool, graphs: str, tmp_path: Path) -> None:
    few = [*STEPS, *CASES[name], "trainer.log_every_n_steps=1000", f"cuda_graphs={graphs}"]
    cfg = composed(few, tmp_path)
    job = Run(cfg, tmp_path)
    if resident:
        job.data._loaded.pretrain.place(torch.device("cuda"))  # type: ignore[attr-defined]
    watch = NoWaiting()
    job.trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    try:
        job.fit()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.watched == 75  # of 80, with the divergence guard's look at 64 steps among them
    assert all(torch.isfinite(value).all() for value in job.task.state_dict().values())


# tasks without random draws, which differ between devices
@pytest.mark.parametrize("name", ["rotation", "colorization", "colorization, l2", "supervised"])
def test_steps_on_a_gpu_are_those_of_a_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["trainer.precision=32-true", "trainer.limit_train_batches=8", "scheduler=constant"]
    few += [*CASES[name], "optimizer=sgd", "optimizer.lr=0.001"]  # Adam would make much of rounding
    states: list[dict[str, Tensor]] = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for device in ("cpu", "gpu"):
        folder = tmp_path / device
        folder.mkdir()
        job = Run(composed([*STEPS, *few, f"trainer={device}"], folder), folder)
        job.fit()
        states.append({key: value.cpu() for key, value in job.task.state_dict().items()})
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=2e-3, msg=key)


@pytest.mark.parametrize(
    ("task", "precision"),
    [
        ("rotation", "bf16-mixed"),
        ("rotation", "16-mixed"),
        ("colorization", "bf16-mixed"),
        ("inpainting", "bf16-mixed"),
        ("inpainting", "16-mixed"),
        ("super_resolution", "32-true"),
    ],
)
def test_whole_runs(task: str, precision: str, tmp_path: Path) -> None:
    few = [*FAKE, "name=run", f"task={task}", "trainer.max_epochs=1", f"trainer.precision={precision}"]
    probes = ["probe=[linear,knn,lowshot,rankme,nonlinear,finetune]", "probe.knn.ks=[5]"]
    probes += ["probe_untrained=true", "probe.lowshot.ks=[1,4]", "probe.nonlinear.epochs=2"]
    probes += ["probe.finetune.epochs=1", "probe.finetune.min_steps=1"]
    train(tmp_path, *few, *probes)
    results = results_of(tmp_path / f"{task}/fake/convnet/run")
    assert results.run.status == "finished"
    assert results.run.peak_memory_gb["gpu"] > 0


@pytest.mark.parametrize(
    "task", ["jigsaw", "context_prediction", "colorization", "inpainting", "super_resolution"]
)
def test_deterministic_runs_end_with_the_same_bits(task: str, tmp_path: Path) -> None:
    states, probes = [], []
    for name in ("one", "two"):
        few = [*FAKE, f"name={name}", f"task={task}", "trainer.max_epochs=2", "probe=[linear]"]
        train(tmp_path, *few, "deterministic=true")
        folder = tmp_path / f"{task}/fake/convnet" / name
        states.append(load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"])
        probes.append(results_of(folder).probes)
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    assert probes[0] == probes[1]


@pytest.mark.parametrize("probe", ["linear,knn,lowshot", "nonlinear,finetune"])
def test_images_that_stay_on_the_gpu_are_probed(probe: str, tmp_path: Path) -> None:
    few = ["data=cifar10", f"data.root={cache(tmp_path, 'cifar10', 32, 3)}", "data.heldout=20", "trainer=gpu"]
    few += ["task=colorization", "data.batch_size=8", "trainer.max_epochs=1", "trainer.precision=32-true"]
    few += [f"probe=[{probe}]", "deterministic=true"]
    if probe == "nonlinear,finetune":
        few += ["probe.nonlinear.epochs=1", "probe.finetune.epochs=1", "probe.finetune.min_steps=1"]
        few += ["probe.finetune.fractions=[1.0]"]
    else:
        few += ["probe.knn.ks=[5]", "probe.lowshot.ks=[1]"]
    found = []
    for resident in ("auto", "false"):
        train(tmp_path, *few, f"data.device_resident={resident}", f"name={resident}.")
        found.append(results_of(tmp_path / f"colorization/cifar10/convnet/{resident}."))
    assert found[0].probes == found[1].probes
    assert found[0].pretext == found[1].pretext


@pytest.mark.parametrize("task", ["rotation", "inpainting"])  # one network; two with an optimizer each
def test_compiled_steps_are_those_that_are_not_compiled(task: str, tmp_path: Path) -> None:
    few = [*FAKE, f"task={task}", "trainer.max_epochs=1", "trainer.limit_train_batches=3", "probe=[]"]
    few += ["optimizer=sgd", "optimizer.lr=0.01", "trainer.precision=32-true"]
    states = []
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        train(tmp_path, *few, f"compile={compiled}", f"name={name}")
        folder = tmp_path / f"{task}/fake/convnet" / name
        states.append(load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=2e-3, msg=key)


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_run_with_graphs_is_probed_and_resumed(compiled: str, tmp_path: Path) -> None:
    few = [*FAKE, "name=run", "task=rotation", "trainer.max_epochs=2", "probe=[linear]"]
    train(tmp_path, *few, "probe_untrained=true", "cuda_graphs=true", f"compile={compiled}")
    folder = tmp_path / "rotation/fake/convnet/run"
    assert {r.trained for r in results_of(folder).probes} == {False, True}
    train(tmp_path, f"resume={folder}", "trainer.max_epochs=3")
    assert results_of(folder).run.epochs == 3
