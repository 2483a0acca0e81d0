"""`cuda_graphs=true`: what a replay computes is what a step computes."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from ssl_lightning.engine.cuda_graphs import WARM_UP, StepGraph, use_graphs
from ssl_lightning.run.execute import Run
from tests._composed import composed

TASKS = ["rotation", "jigsaw", "context_prediction", "colorization", "supervised", "inpainting"]
TASKS += ["super_resolution"]
QUICK = [
    "data=fake",
    "trainer.max_steps=25",
    "trainer.max_epochs=-1",
    "trainer.limit_val_batches=0",
    "probe=[]",
]
QUICK += ["scheduler=constant", "optimizer.lr=0.01", "callbacks=[]", "trainer.precision=32-true"]
FINE: dict[str, Any] = {
    "device": torch.device("cuda"),
    "processes": 1,
    "precision": "bf16-mixed",
    "accumulated": 1,
    "recordable": True,
}


class Recomputed(StepGraph):
    """Computes again what a graph would replay."""

    def _record(self, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels, self._stream = images.clone(), labels.clone(), torch.Generator()
        self._graph = self  # type: ignore[assignment]

    def replay(self) -> None:
        self._values = self._compute()


def trained(overrides: list[str], folder: Path, graph: type[StepGraph] | None = None) -> dict[str, Tensor]:
    """Weights after a short run; each run has a folder of its own."""
    folder.mkdir()
    cfg = composed([*QUICK, *overrides], folder)
    job = Run(cfg, folder)
    if graph is not None:
        job.task.graph = graph(job.task)
    job.fit()
    return {name: value.cpu() for name, value in job.task.state_dict().items()}


@pytest.mark.parametrize("options", [[], ["trainer.gradient_clip_val=0.01"]])
@pytest.mark.parametrize("task", ["jigsaw", "super_resolution", "super_resolution task.warmup_steps=7"])
def test_a_task_leaves_its_backward_passes_to_a_graph(task: str, options: list[str], tmp_path: Path) -> None:
    given = [*f"task={task}".split(), "trainer=cpu", *options]
    plain = trained(given, tmp_path / "plain")
    replayed = trained(given, tmp_path / "replayed", Recomputed)
    for name, value in plain.items():
        torch.testing.assert_close(replayed[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": torch.device("cpu")}, "this run is on cpu, and it needs a GPU"),
        ({"processes": 2}, "there are 2 processes, and it takes one"),
        ({"precision": "16-mixed"}, "trainer.precision is 16-mixed, and it takes bf16-mixed or 32-true"),
        ({"accumulated": 4}, "trainer.accumulate_grad_batches is 4, and it takes 1"),
        ({"recordable": False}, "the steps of this task are not said to be alike"),
    ],
)
def test_what_a_graph_cannot_do_is_refused_or_left(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"cuda_graphs is true, but {message}.*leave it at auto"):
        use_graphs(True, **FINE | given)
    assert not use_graphs("auto", **FINE | given)
    assert use_graphs("auto", **FINE)
    assert use_graphs(True, **FINE)
    assert not use_graphs(False, **FINE)


def test_a_run_refuses_it_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cuda_graphs is true, but this run is on cpu"):
        Run(composed(["data=fake", "trainer=cpu", "cuda_graphs=true"], tmp_path), tmp_path)


class Small(torch.nn.Sequential):
    """As much of a task as a graph asks for; fails at one of its passes."""

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
    """Recording without a GPU: what is recorded is computed once, and a replay does nothing."""
    for name in ("CUDAGraph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock)
    for module, name in ((torch.cuda, "stream"), (torch.cuda, "graph"), (torch.random, "fork_rng")):
        monkeypatch.setattr(module, name, lambda *_, **__: nullcontext())


def test_recording_leaves_gradients_and_no_trace_in_the_statistics(no_cuda: None) -> None:
    task = Small()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    images = torch.rand(4, 3, 5, 5)
    scores = StepGraph(task)(images, torch.zeros(4), 0)
    assert task.passes == WARM_UP + 1
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
        (1, RuntimeError, RuntimeError, "^it does not go"),  # the step's own, as without graphs
        (
            WARM_UP + 1,
            RuntimeError,
            ValueError,
            r"that of Small cannot be \(it does not go\); set it to false",
        ),
        (WARM_UP + 1, torch.OutOfMemoryError, torch.OutOfMemoryError, "^it does not go"),
    ],
)
def test_only_what_recording_forbids_is_laid_on_graphs(
    no_cuda: None, fails_at: int, error: type[Exception], raised: type[Exception], message: str
) -> None:
    with pytest.raises(raised, match=message):
        StepGraph(Small(fails_at, error))(torch.rand(4, 3, 5, 5), torch.zeros(4), 0)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full fp32 on a GPU, too."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.gpu
@pytest.mark.parametrize("task", TASKS)
def test_replayed_steps_are_those_that_are_not_recorded(task: str, tmp_path: Path, exact: None) -> None:
    given = [f"task={task}", "trainer=gpu", "trainer.gradient_clip_val=5.0", "cuda_graphs=false"]
    given += ["optimizer=sgd", "optimizer.lr=0.001"]
    given += ["task.warmup_steps=7"] if task == "inpainting" else []
    plain = trained(given, tmp_path / "plain")
    again = trained(given, tmp_path / "again")
    replayed = trained([*given, "cuda_graphs=true"], tmp_path / "replayed")
    for name, value in plain.items():
        # as close as a second run comes, whose additions may have another order
        spread = float((again[name] - value).abs().max())
        torch.testing.assert_close(replayed[name], value, rtol=1e-3, atol=1e-4 + 10 * spread, msg=name)
