"""Tests of runs on a GPU: the same result as on a CPU, and no wait for the device in a step."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.artifacts.results import read_results
from ssl_lightning.data.cifar10 import CIFAR10
from ssl_lightning.networks.nin import NIN
from ssl_lightning.probes._choice import Choice
from ssl_lightning.probes._map_sources import FreshMaps
from ssl_lightning.probes._shared_maps import MapRequest, SharedMaps
from ssl_lightning.probes.nonlinear import NonLinearProbe, Training, with_cuda_graphs
from ssl_lightning.run.execute import pretrain
from ssl_lightning.run.parts import build_parts
from tests._composed import composed
from tests._tasks import TASKS
from tests.data.test_in_memory import cache
from tests.test_cluster import train
from tests.test_user_loop import assert_moved_alike, first_weights

pytestmark = pytest.mark.gpu

CASES = {
    **TASKS,
    "rotation, one copy": ["task=rotation", "task.copies=1"],
    "jigsaw": ["task=jigsaw", "task.channel_jitter=1"],
    "three patches": ["task=context_prediction", "task.colours=dropping", "task.pairs_per_image=3"],
    "colorization, l2": ["task=colorization", "task.target=l2"],
    "inpainting, blocks": ["task=inpainting", "task.mask=blocks"],
    "inpainting, center": ["task=inpainting", "task.mask=center"],
    "autoencoder": ["task=inpainting", "task.mask=none"],
    "super-resolution, rotation": ["task=super_resolution", "task.discriminator_rotation=1.0"],
    "supervised": ["task=supervised"],
    "combined": ["task=combined", "task.parts=[rotation,jigsaw,colorization]"],
    "simclr": ["task=simclr", "task.blur=0.5", "task.solarise=0.2"],
}
FAKE = ["data=fake", "trainer=gpu"]
# two epochs of 80 steps with a validation after each; test_user_loop.py tests the panel, which takes seconds
STEPS = [*FAKE, "data.num_train=2624", "probe=[]", "callbacks=[checkpoint,progress,collapse]", "logger=[csv]"]
STEPS += ["trainer.max_epochs=2"]


class NoWaiting(Callback):
    """Make torch refuse waits for the device in all steps after the first five."""

    def __init__(self) -> None:
        self.watched = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch or batch_idx >= 5:
            torch.cuda.set_sync_debug_mode("error")
            self.watched += 1

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.is_last_batch:  # the validation that follows may wait
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("resident", "graphs"), [(False, "false"), (True, "false"), (True, "auto")])
@pytest.mark.parametrize("name", CASES)
def test_no_step_waits_for_the_device(name: str, resident: bool, graphs: str, tmp_path: Path) -> None:
    few = [*STEPS, *CASES[name], "trainer.log_every_n_steps=1000", f"cuda_graphs={graphs}"]
    cfg = composed(few, tmp_path)
    job = build_parts(cfg, tmp_path)
    if resident:
        job.data._loaded.pretrain.place(torch.device("cuda"))  # type: ignore[attr-defined]
    watch = NoWaiting()
    job.trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    try:
        pretrain(job)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.watched == 155  # of 160 steps, all but the first five
    assert all(torch.isfinite(value).all() for value in job.task.state_dict().values())


# tasks without random draws, since these differ between devices
@pytest.mark.parametrize("name", ["rotation", "colorization", "colorization, l2", "supervised"])
def test_steps_on_a_gpu_equal_steps_on_a_cpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ["trainer.precision=32-true", "trainer.limit_train_batches=4", "scheduler=constant"]
    few += [*CASES[name], "optimizer=sgd", "optimizer.lr=0.001"]  # Adam would amplify rounding
    first = first_weights(tmp_path, [*STEPS, *few, "trainer=cpu"])
    states: list[dict[str, Tensor]] = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for device in ("cpu", "gpu"):
        folder = tmp_path / device
        folder.mkdir()
        job = build_parts(composed([*STEPS, *few, f"trainer={device}"], folder), folder)
        pretrain(job)
        states.append({key: value.cpu() for key, value in job.task.state_dict().items()})
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=2e-3, msg=key)
    assert_moved_alike(first, *states)


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
def test_complete_runs(task: str, precision: str, tmp_path: Path) -> None:
    few = [*FAKE, "name=run", f"task={task}", "trainer.max_epochs=2", f"trainer.precision={precision}"]
    probes = ["probe=[linear,knn,lowshot,rankme,nonlinear,finetune]", "probe.knn.ks=[5]"]
    probes += ["probe_untrained=true", "probe.lowshot.ks=[1,4]", "probe.nonlinear.epochs=2"]
    probes += ["probe.finetune.epochs=1", "probe.finetune.min_steps=1"]
    train(tmp_path, *few, *probes)
    results = read_results(tmp_path / f"{task}/fake/convnet/run/results.json")
    assert results.run.status == "finished"
    assert results.run.peak_memory_gb["gpu"] > 0


@pytest.mark.parametrize("task", TASKS)
def test_deterministic_runs_end_with_the_same_bits(task: str, tmp_path: Path) -> None:
    states, probes = [], []
    for name in ("one", "two"):
        few = [*FAKE, f"name={name}", *TASKS[task], "trainer.max_epochs=2", "probe=[linear]"]
        train(tmp_path, *few, "deterministic=true")
        (folder,) = tmp_path.glob(f"*/fake/*/{name}")
        states.append(load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"])
        probes.append(read_results(folder / "results.json").probes)
    assert all(torch.equal(states[0][key], value) for key, value in states[1].items())
    assert probes[0] == probes[1]


@pytest.mark.parametrize("probe", ["linear,knn,lowshot", "nonlinear,finetune"])
def test_images_that_stay_on_the_gpu_are_probed(probe: str, tmp_path: Path) -> None:
    few = ["data=cifar10", f"data.root={cache(tmp_path, 'cifar10', 32, 3)}", "data.heldout=20", "trainer=gpu"]
    few += ["task=colorization", "data.batch_size=8", "trainer.max_epochs=2", "trainer.precision=32-true"]
    few += [f"probe=[{probe}]", "deterministic=true"]
    if probe == "nonlinear,finetune":
        few += ["probe.nonlinear.epochs=1", "probe.finetune.epochs=1", "probe.finetune.min_steps=1"]
        few += ["probe.finetune.fractions=[1.0]"]
    else:
        few += ["probe.knn.ks=[5]", "probe.lowshot.ks=[1]"]
    found = []
    for resident in ("auto", "false"):
        train(tmp_path, *few, f"data.device_resident={resident}", f"name={resident}.")
        found.append(read_results(tmp_path / f"colorization/cifar10/convnet/{resident}." / "results.json"))
    assert found[0].probes == found[1].probes
    assert found[0].pretext == found[1].pretext


@pytest.mark.parametrize("task", ["rotation", "inpainting"])  # one network, and two with an optimizer each
def test_compiled_steps_equal_plain_steps(task: str, tmp_path: Path) -> None:
    few = [*FAKE, f"task={task}", "trainer.max_epochs=2", "trainer.limit_train_batches=2", "probe=[]"]
    few += ["optimizer=sgd", "optimizer.lr=0.01", "trainer.precision=32-true"]
    first = first_weights(tmp_path, few)
    states = []
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        train(tmp_path, *few, f"compile={compiled}", f"name={name}")
        folder = tmp_path / f"{task}/fake/convnet" / name
        states.append(load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"])
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-2, atol=2e-3, msg=key)
    assert_moved_alike(first, *states)


@pytest.mark.parametrize("compiled", ["false", "true"])
def test_a_run_with_graphs_is_probed_and_resumed(compiled: str, tmp_path: Path) -> None:
    few = [*FAKE, "name=run", "task=rotation", "trainer.max_epochs=2", "probe=[linear]"]
    train(tmp_path, *few, "probe_untrained=true", "cuda_graphs=true", f"compile={compiled}")
    folder = tmp_path / "rotation/fake/convnet/run"
    assert {r.trained for r in read_results(folder / "results.json").probes} == {False, True}
    train(tmp_path, f"resume={folder}", "trainer.max_epochs=3")
    assert read_results(folder / "results.json").run.epochs == 3


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_recorded_classifiers_train_like_plain_ones(kind: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    shape = torch.Size([12, 8, 8])
    maps = torch.randn(10, 16, *shape, generator=torch.Generator().manual_seed(0)).cuda()
    labels = (torch.arange(16) % 4).cuda()
    probe = NonLinearProbe(classifier=kind)
    states = []
    for graphs in (False, True):
        network = probe.build(shape, 4, 0).cuda()
        before = {key: value.clone() for key, value in network.state_dict().items()}
        if graphs:
            with_cuda_graphs(network, maps[0])
            assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
        training = Training(network, 0.1, [1])
        for batch in maps:
            training.step(batch, labels)
        states.append({key: value.clone() for key, value in network.state_dict().items()})
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_no_step_of_an_augmented_classifier_waits_for_the_device(tmp_path: Path) -> None:
    root, device = cache(tmp_path, "cifar10", 32, 3), torch.device("cuda")
    data = CIFAR10(root=root, heldout=20, batch_size=8, crop_padding=4, device_resident=True)
    data.prepare_data()
    data.setup()
    data.place(device)
    backbone = NIN(blocks=3).to(device)
    wanted = [MapRequest(f"stage{n}", 8, 4.0) for n in (1, 2, 3)]
    loaders = {"test": data.downstream("test")}
    maps = SharedMaps(backbone, lambda x: x, loaders, 0, (), precision=nullcontext, device=device)
    setting: Any = SimpleNamespace(maps=maps, data=data, device=device, loaders=loaders)
    source = FreshMaps(setting, wanted, Choice("nonlinear", "last", "train"), 8)
    probe = NonLinearProbe()
    trainings = []
    for size in source.shapes:
        network = with_cuda_graphs(probe.build(size, 10, 0).to(device), torch.zeros(8, *size, device=device))
        trainings.append(Training(network, 0.1, [1]))
    for epoch in range(3):
        steps = 0
        for batch, labels in source.batches(epoch):
            if epoch:
                torch.cuda.set_sync_debug_mode("error")
            for training, x in zip(trainings, batch, strict=True):
                training.step(x, labels)
            steps += 1
        torch.cuda.set_sync_debug_mode("default")
        assert steps == 5
    assert all(0 <= value <= 1 for value in source.accuracies([t.network for t in trainings], "test"))


def test_the_protocol_of_rotnet(tmp_path: Path) -> None:
    few = [
        *FAKE,
        "name=run",
        "task=rotation",
        "trainer.max_epochs=1",
        "data.crop_padding=2",
        "data.heldout=0",
    ]
    few += ["probe=[nonlinear,finetune]", "callbacks=[checkpoint,progress,collapse]"]
    few += [
        "probe.nonlinear.stage=[stage1,stage2]",
        "probe.nonlinear.augment=true",
        "probe.nonlinear.epochs=2",
    ]
    few += ["probe.finetune.classifier=conv", "probe.finetune.stage=stage2", "probe.finetune.epochs=1"]
    few += ["probe.finetune.min_steps=1", "probe.finetune.fractions=[1.0]"]
    train(tmp_path, *few)
    results = read_results(tmp_path / "rotation/fake/convnet/run/results.json")
    assert results.run.status == "finished"
    assert [r.stage for r in results.probes] == ["stage1", "stage2", "stage2"]
