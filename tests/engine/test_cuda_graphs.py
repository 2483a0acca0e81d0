"""CUDA graphs: a replay computes the same as a plain step."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from ssl_lightning.data.fake import Fake
from ssl_lightning.engine.cuda_graphs import WARM_UP, StepGraph, use_graphs
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.run.execute import pretrain
from ssl_lightning.run.parts import build_parts
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.inpainting import Inpainting
from ssl_lightning.tasks.rotation import Rotation
from tests._composed import composed
from tests._stand_in import StandIn
from tests._tasks import TASKS
from tests.test_user_loop import assert_moved_alike

MAKERS = {
    "rotation": Rotation,
    # hinge would give the bias of the decision no gradient: as many logits are within either margin
    "inpainting": partial(
        Inpainting, warmup_steps=3, discriminator_width=4, adversarial_loss="non_saturating"
    ),
    "frozen at first": partial(Rotation, freeze_until=0.5, backbone_lr_factor=0.5),
}
DEVICES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]
RECORDED = {
    **TASKS,
    "supervised": ["task=supervised"],
    "three tasks": ["task=combined", "task.parts=[jigsaw,rotation,colorization]"],
    "inpainting": ["task=inpainting", "task.warmup_steps=7"],
    "inpainting, rotation": ["task=inpainting", "task.discriminator_rotation=1.0"],
    "autoencoder": ["task=inpainting", "task.mask=none"],
    "penalty": ["task=super_resolution", "task.r1=0.1"],
    "batch norm": [
        "task=super_resolution",
        "task.discriminator_norm=batch",
        "task.adversarial_loss=non_saturating",
        "task.discriminator_head=average",
        "task.content=discriminator",
        "task.instance_noise=0.5",
    ],
    "input noise": ["task=inpainting", "task.input_noise=0.5"],
}
# 25 steps without validation and callbacks; tests/test_user_loop.py covers these and several epochs
QUICK = [
    "data=fake", "trainer.max_steps=25", "trainer.max_epochs=-1", "trainer.limit_val_batches=0", "probe=[]",
    "scheduler=constant", "optimizer.lr=0.01", "callbacks=[]", "trainer.precision=32-true",
]  # fmt: skip
FINE: dict[str, Any] = {
    "device": torch.device("cuda"),
    "processes": 1,
    "precision": "bf16-mixed",
    "accumulated": 1,
    "recordable": True,
}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use full fp32 on a GPU too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def trained(overrides: list[str], folder: Path, graph: type[StepGraph] | None = None) -> dict[str, Tensor]:
    """Return the weights after a short run in its own folder."""
    folder.mkdir()
    cfg = composed([*QUICK, *overrides], folder)
    job = build_parts(cfg, folder)
    if graph is not None:
        job.task.graph = graph(job.task)
    pretrain(job)
    return {name: value.cpu() for name, value in job.task.state_dict().items()}


@pytest.mark.parametrize("options", [[], ["trainer.gradient_clip_val=0.01"]])
@pytest.mark.parametrize(
    "task",
    [
        "jigsaw",
        "super_resolution task.discriminator_width=4",
        "super_resolution task.discriminator_width=4 task.warmup_steps=7",
        "super_resolution task.discriminator_width=4 task.r1=0.1",
        "super_resolution task.discriminator_width=4 task.discriminator_norm=batch",
        "super_resolution task.discriminator_width=4 task.discriminator_rotation=1.0",
        "combined task.parts=[jigsaw,rotation] +task.options.rotation.copies=1",
    ],
)
def test_a_task_delegates_backward_passes_to_a_graph(task: str, options: list[str], tmp_path: Path) -> None:
    small = ["trainer.max_steps=13", "data.batch_size=8", "backbone.widths=[8,8]", "backbone.strides=[2,2]"]
    small += ["task.decoder_width=8"] if task.startswith("super_resolution") else []
    given = [*f"task={task}".split(), "trainer=cpu", *small, *options]
    plain = trained(given, tmp_path / "plain")
    replayed = trained(given, tmp_path / "replayed", StandIn)
    for name, value in plain.items():
        torch.testing.assert_close(replayed[name], value, rtol=0, atol=0, msg=name)


class Loop:
    """Fit one task repeatedly, with validation, 4 batches per epoch and a new Trainer for each fit."""

    def __init__(
        self, kind: str, device: str, graph: type[StepGraph] | None, *, momentum: float = 0.9
    ) -> None:
        self.device = device
        self.data = Fake(num_train=48, heldout=16, batch_size=8, image_size=16)
        self.data.setup()
        torch.manual_seed(0)
        backbone = ConvNet(widths=[6, 8], strides=[2, 1])
        optimizer = partial(torch.optim.SGD, lr=0.05, momentum=momentum)
        self.task: PretextTask = MAKERS[kind](backbone, self.data.spec, optimizer=optimizer)
        self.graph = graph(self.task) if graph else None
        self.task.graph = self.graph
        self.first = self.weights()

    def fit(self, *callbacks: Callback, **options: Any) -> None:
        trainer = make_trainer(
            accelerator=self.device, devices=1, precision="32-true", callbacks=callbacks,
            enable_progress_bar=False, **{"max_epochs": 3, "val_check_interval": 0.5} | options,
        )  # fmt: skip
        self.task.train()  # Lightning does not reset it after an exception
        trainer.fit(self.task, datamodule=self.data)

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.task.named_parameters()}


def without_and_with(kind: str, device: str, **options: Any) -> tuple[Loop, Loop]:
    """Return equal loops without and with a graph, on a CPU with the fake graph."""
    graph = StandIn if device == "cpu" else StepGraph
    return Loop(kind, device, None, **options), Loop(kind, device, graph, **options)


def assert_same(one: Loop, other: Loop) -> None:
    """Check that both tasks have equal states: bit-equal on a CPU, up to rounding on a GPU."""
    if one.device == "gpu":
        assert_moved_alike(one.first, one.weights(), other.weights())
        return
    found = other.task.state_dict()
    assert not [name for name, value in one.task.state_dict().items() if not torch.equal(value, found[name])]


@pytest.mark.parametrize("device", DEVICES)
def test_a_backbone_that_is_frozen_at_first(device: str, exact: None) -> None:
    loops = without_and_with("frozen at first", device)
    for loop in loops:
        loop.fit()
    assert_same(*loops)


class Zeroing(Callback):
    """Call `zero_grad` in a hook, in every third batch."""

    def __init__(self, hook: str, *, set_to_none: bool) -> None:
        self.calls = 0
        self.set_to_none = set_to_none
        setattr(self, hook, self._zero)

    def _zero(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            pl_module.zero_grad(set_to_none=self.set_to_none)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(
    "hook",
    [
        "on_train_batch_start",
        "on_before_zero_grad",
        "on_before_backward",
        "on_before_optimizer_step",  # skips the step, or makes its gradient zero
        "on_train_batch_end",
    ],
)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", MAKERS)
def test_zero_grad_in_a_callback_has_the_same_effect_as_without_a_graph(
    kind: str, device: str, hook: str, set_to_none: bool, exact: None
) -> None:
    loops = without_and_with(kind, device)
    for loop in loops:
        start = loop.weights()
        loop.fit(Zeroing(hook, set_to_none=set_to_none), max_epochs=2)
        assert not [name for name, value in loop.weights().items() if torch.equal(value, start[name])]
    assert_same(*loops)


class BreakValidation(Callback):
    """Raise in the middle of the second validation."""

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step > 3:
            raise KeyError("in the middle")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_second_fit_continues_after_an_exception_in_a_validation(
    kind: str, device: str, exact: None
) -> None:
    loops = without_and_with(kind, device)
    for loop in loops:
        with pytest.raises(KeyError, match="in the middle"):
            loop.fit(BreakValidation())
        start = loop.weights()
        loop.fit()
        assert not [name for name, value in loop.weights().items() if torch.equal(value, start[name])]
    assert_same(*loops)
    if isinstance(graph := loops[1].graph, StandIn):
        warm_up = 3 if kind == "inpainting" else 0
        recordings = 3 if kind == "frozen at first" else 2  # again when the backbone thaws
        assert (graph.recordings, graph.replays) == (recordings, 4 + 12 - 2 * warm_up)


class Unfreeze(Callback):
    """Freeze the first stage of the backbone during the first epoch."""

    def __init__(self) -> None:
        self.without: list[bool] = []  # after each step, whether none of its parameters has a gradient

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stage(pl_module).requires_grad_(False)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stage(pl_module).requires_grad_(trainer.current_epoch > 0)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.without.append(all(p.grad is None for p in self.stage(pl_module).parameters()))

    @staticmethod
    def stage(task: Any) -> nn.Module:
        return next(task.backbone.children())[0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", MAKERS)
def test_frozen_weights_have_no_gradient_until_they_learn(kind: str, device: str, exact: None) -> None:
    watches = Unfreeze(), Unfreeze()
    # without momentum, since torch's fused SGD does not take weights that join later
    loops = without_and_with(kind, device, momentum=0.0)
    for loop, watch in zip(loops, watches, strict=True):
        loop.fit(watch, max_epochs=2)
    assert_same(*loops)
    assert watches[0].without == watches[1].without
    assert {True, False} == set(watches[0].without)
    if isinstance(graph := loops[1].graph, StandIn):
        assert graph.recordings == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": torch.device("cpu")}, "this run is on cpu, and it needs a GPU"),
        ({"processes": 2}, "there are 2 processes, and it takes one"),
        ({"precision": "16-mixed"}, "trainer.precision is 16-mixed, and it takes bf16-mixed or 32-true"),
        ({"accumulated": 4}, "trainer.accumulate_grad_batches is 4, and it takes 1"),
        ({"recordable": False}, "this task does not declare its steps recordable"),
    ],
)
def test_unsupported_runs_are_refused_or_run_without_a_graph(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"cuda_graphs is true, but {message}.*leave it at auto"):
        use_graphs(True, **FINE | given)
    assert not use_graphs("auto", **FINE | given)
    assert use_graphs("auto", **FINE)
    assert use_graphs(True, **FINE)
    assert not use_graphs(False, **FINE)


def test_a_run_refuses_graphs_on_a_cpu_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cuda_graphs is true, but this run is on cpu"):
        build_parts(composed(["data=fake", "trainer=cpu", "cuda_graphs=true"], tmp_path), tmp_path)


class Small(torch.nn.Sequential):
    """Minimal task for a graph; one of its passes may fail."""

    def __init__(self, fails_at: int = 0, error: type[Exception] = RuntimeError) -> None:
        super().__init__(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
        self.passes, self.fails_at, self.error = 0, fails_at, error

    def rounds(self, images: Tensor, labels: Tensor, stream: torch.Generator) -> Any:
        self.passes += 1
        if self.passes == self.fails_at:
            raise self.error("it does not go\nsecond line")
        yield "loss", {"loss": self(images).square().mean(), "acc": images.mean()}


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake recording without a GPU: it computes the step once, and a replay does nothing."""
    for name in ("CUDAGraph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock)
    for module, name in ((torch.cuda, "stream"), (torch.cuda, "graph"), (torch.random, "fork_rng")):
        monkeypatch.setattr(module, name, lambda *_, **__: nullcontext())


def test_recording_keeps_gradients_and_restores_the_statistics(no_cuda: None) -> None:
    task = Small()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    images = torch.rand(4, 3, 5, 5)
    graph = StepGraph(task)
    ((loss_name, scores),) = graph.rounds(images, torch.zeros(4), 0)
    assert (loss_name, task.passes) == ("loss", WARM_UP + 1)
    graph.hand_over()
    for name, value in task.state_dict().items():
        assert torch.equal(value, before[name]), name
    found = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    task.zero_grad()
    loss = task(images).square().mean()
    loss.backward()
    torch.testing.assert_close(scores, {"loss": loss.detach(), "acc": images.mean()})
    torch.testing.assert_close(found, {name: p.grad for name, p in task.named_parameters()})


@pytest.mark.parametrize(
    ("fails_at", "error", "raised", "message"),
    [
        (1, RuntimeError, RuntimeError, "^it does not go"),  # the stream of the step, as without graphs
        (
            WARM_UP + 1,
            RuntimeError,
            ValueError,
            r"the step of Small \(it does not go\); set it to false",
        ),
        (WARM_UP + 1, torch.OutOfMemoryError, torch.OutOfMemoryError, "^it does not go"),
    ],
)
def test_only_recording_errors_are_attributed_to_graphs(
    no_cuda: None, fails_at: int, error: type[Exception], raised: type[Exception], message: str
) -> None:
    with pytest.raises(raised, match=message):
        next(StepGraph(Small(fails_at, error)).rounds(torch.rand(4, 3, 5, 5), torch.zeros(4), 0))


@pytest.mark.gpu
@pytest.mark.parametrize("name", RECORDED)
def test_replayed_steps_equal_plain_steps(name: str, tmp_path: Path, exact: None) -> None:
    given = [*RECORDED[name], "trainer=gpu", "trainer.gradient_clip_val=5.0", "cuda_graphs=false"]
    given += ["optimizer=sgd", "optimizer.lr=0.001"]
    plain = trained(given, tmp_path / "plain")
    again = trained(given, tmp_path / "again")
    replayed = trained([*given, "cuda_graphs=true"], tmp_path / "replayed")
    for key, value in plain.items():
        # as close as two plain runs, whose sums may differ in order
        spread = float((again[key] - value).abs().max())
        torch.testing.assert_close(replayed[key], value, rtol=1e-3, atol=1e-4 + 10 * spread, msg=key)
