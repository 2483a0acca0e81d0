"""Tests of the loop that users run: validation within epochs, default callbacks, checkpoint and resume."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.artifacts.results import read_results
from ssl_lightning.callbacks import panel
from ssl_lightning.run import writer
from ssl_lightning.run.execute import execute, pretrain
from ssl_lightning.run.parts import Parts, build_parts
from ssl_lightning.run.writer import RunWriter
from tests._composed import composed
from tests._stand_in import StandIn
from tests._tasks import TASKS, VIT, others
from tests.test_resume import digest

# 32 images, 4 batches an epoch, a validation after the 2nd and the 4th
LOOP = [
    "data=fake", "data.num_train=48", "data.heldout=16", "data.num_test=16", "data.batch_size=8",
    "trainer.max_epochs=3", "trainer.val_check_interval=0.5", "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_steps=1", "callbacks.panel.images=1", "callbacks.panel.keep=false",
    "probe=[knn]", "probe.knn.ks=[2]", "scheduler=constant",
]  # fmt: skip
CONVNET = ["backbone.widths=[8,16]", "backbone.strides=[2,2]"]
SMALL_VIT = [
    "backbone.width=16", "backbone.heads=2", "backbone.depth=2", "backbone.stages=2",
    "backbone.drop_path=0.1",
]  # fmt: skip
TIMM_VIT = [
    "backbone=timm", "backbone.model_name=test_vit", "backbone.img_size=32", "+backbone.patch_size=4",
    "+backbone.dynamic_img_size=true", "+backbone.proj_drop_rate=0.1",
]  # fmt: skip
# views that are similar enough to be told in 12 steps
SIMILAR = [
    "task.hidden=32", "task.embedding=16", "task.crop_scale=[0.7,1.0]", "task.jitter=0", "task.grey=0",
]  # fmt: skip
CASES = {
    "rotation": [],
    "jigsaw": ["task.permutations=4", "task.permutations_per_image=4", "task.hidden=64"],
    "context_prediction": ["task.downsample=0", "task.hidden=32", "task.embedding=16"],
    "colorization": ["task.width=8"],
    "inpainting": ["task.warmup_steps=3", "task.discriminator_width=4", "task.decoder_width=8"],
    "super_resolution": ["task.discriminator_width=4", "task.decoder_width=8"],
    "supervised": [],
    "combined": [
        "task.parts=[rotation,jigsaw,colorization]", "task.weights=[1,0.5,0.2]",
        "+task.options.rotation.copies=1",
        "+task.options.jigsaw={permutations:4,permutations_per_image:4,hidden:64}",
        "+task.options.colorization.width=8",
    ],
    "simclr": [*SIMILAR, "task.temperature=0.2"],
    "pirl": [*SIMILAR, "task.temperature=0.2"],
    "barlow_twins": SIMILAR,
    "vicreg": SIMILAR,
    "byol": [*SIMILAR, "task.momentum=0.5"],
    # a teacher that hardly moves, so that the loss falls
    "dino": [
        *SIMILAR, "task.momentum=0.99", "task.centre_momentum=0.5", "task.teacher_temperature=[0.06,0.04]",
        "task.prototypes=32", "task.local_views=2",
    ],
    "lejepa": [*SIMILAR, "task.slices=32"],
    "rotation and simclr": [
        "+task.options.rotation.copies=1",
        "+task.options.simclr={hidden:32,embedding:16,crop_scale:[0.7,1.0],jitter:0,grey:0,temperature:0.2}",
    ],
}  # fmt: skip
PLAIN = others(CASES)  # without keywords, a transformer may learn too slowly
CASES |= {name: [] for name in PLAIN}
CHOICES = {**TASKS, "supervised": ["task=supervised"]}
RUNS = {
    **{name: [*CHOICES[name], *options, *CONVNET] for name, options in CASES.items()},
    **{
        f"{name} on a ViT": [*CHOICES[name], *options, VIT, *SMALL_VIT]
        for name, options in CASES.items()
        if name not in PLAIN
    },
    **{
        f"{name} on tokens": [*TASKS[f"{name} on tokens"], *CASES[name], *SMALL_VIT]
        for name in ("jigsaw", "context_prediction")
    },
    "mae on a ViT": [*TASKS["mae"], "task.decoder_width=16", "task.decoder_heads=2", VIT, *SMALL_VIT],
    "jigsaw on timm's ViT": ["task=jigsaw", *CASES["jigsaw"], *TIMM_VIT],
}
QUICK = ("rotation on a ViT", "inpainting on a ViT", "mae on a ViT")  # transformers of the fast suite
LEARN = ["optimizer=adam", "optimizer.lr=0.01"]
STOP = (1, 3)  # epoch and batch, both from 0, before which a run is interrupted


class StoppedError(Exception):
    """The run is interrupted."""


class Stop(Callback):
    """Interrupt the run."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == STOP:
            raise StoppedError


def run_job(folder: Path, overrides: list[str], *callbacks: Callback, stand_in: bool = False) -> Parts:
    """Run as a rank process does (`ssl_lightning.run.execute`); resume if the folder has a checkpoint."""
    folder.mkdir(exist_ok=True)
    cfg = composed([*LOOP, *overrides], folder)
    cfg.overrides = [*LOOP, *overrides]  # the launcher does the same, for the model card
    job = build_parts(cfg, folder)
    if stand_in:
        job.task.graph = StandIn(job.task)
    job.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    results = RunWriter(job, began=0.0)
    execute(job, results)
    results.write("finished")
    return job


class Pair(NamedTuple):
    """An uninterrupted run without graphs, and an interrupted and resumed run with graphs."""

    plain: Path
    replayed: Path


def both(folder: Path, overrides: list[str], *graphs: str, stand_in: bool = False) -> Pair:
    """Run both; `graphs` are the overrides that switch graphs on."""
    pair = Pair(folder / "plain", folder / "replayed")
    run_job(pair.plain, [*overrides, "cuda_graphs=false"] if graphs else overrides)  # composed once
    with pytest.raises(StoppedError):
        run_job(pair.replayed, [*overrides, *graphs], Stop(), stand_in=stand_in)
    resumed = run_job(pair.replayed, [*overrides, *graphs], stand_in=stand_in)
    assert resumed.resumed_from == pair.replayed / "checkpoints/last.ckpt"
    return pair


def last_weights(folder: Path) -> dict[str, Tensor]:
    """The state of the task in the newest checkpoint."""
    return {k: v.cpu() for k, v in load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"].items()}


def first_weights(folder: Path, overrides: list[str]) -> dict[str, Tensor]:
    """The parameters of the task before the first step."""
    task = build_parts(composed(overrides, folder), folder, resume=False).task
    return {name: value.detach().cpu().clone() for name, value in task.named_parameters()}


def assert_moved_alike(
    first: dict[str, Tensor], one: dict[str, Tensor], other: dict[str, Tensor], within: float = 0.1
) -> None:
    """Check that two trainings moved the parameters, taken as one vector, by nearly the same.

    If the weights stop moving after half of the steps, they differ by about half of the length.
    """
    moves = [torch.cat([(end[k] - v).double().flatten() for k, v in first.items()]) for end in (one, other)]
    assert (moves[1] - moves[0]).norm() < within * moves[0].norm()


def epoch_losses(folder: Path) -> list[float]:
    """Mean of the training loss in each epoch."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    losses = [[float(row["train/loss"]) for row in rows if row["epoch"] == str(epoch)] for epoch in range(3)]
    assert [len(each) for each in losses] == [4, 4, 4]
    return [sum(each) / len(each) for each in losses]


def assert_falls(losses: list[float]) -> None:
    assert losses[2] < losses[1] < losses[0], losses
    assert losses[2] < 0.9 * losses[0], losses


def of_a_suite(name: str) -> Any:
    """Leave most runs of ViTs to the slow suite."""
    slow = name.endswith(("on a ViT", "on tokens")) and name not in QUICK
    return pytest.param(name, marks=pytest.mark.slow if slow else ())


@pytest.fixture(scope="module", params=map(of_a_suite, RUNS))
def case(request: pytest.FixtureRequest) -> list[str]:
    """The overrides of a task and its backbone."""
    return [*RUNS[request.param], *LEARN, "trainer=cpu", "trainer.precision=32-true"]


@pytest.fixture(scope="module", autouse=True)
def no_drawing() -> Iterator[None]:
    """Leave panels empty, whose drawing takes half of these runs; tests/callbacks/test_panel.py checks it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panel, "draw_panel", lambda _: Figure())
        yield


@pytest.fixture(scope="module")
def pair(case: list[str], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return both(tmp_path_factory.mktemp("pair"), case, stand_in=True)


def test_graphs_and_an_interruption_change_no_bit(pair: Pair) -> None:
    assert digest(pair.replayed) == digest(pair.plain)


def test_the_pretext_loss_falls_from_epoch_to_epoch(pair: Pair) -> None:
    for folder in pair:
        assert_falls(epoch_losses(folder))


def test_validation_callbacks_and_probes_change_no_weight(
    pair: Pair, case: list[str], tmp_path: Path
) -> None:
    """Check that quick tests, which switch these off, test the same training."""
    off = ["trainer.limit_val_batches=0", "callbacks=[]", "probe=[]", "logger=[]"]
    loop = [option for option in LOOP if not option.startswith(("callbacks", "probe"))]
    job = build_parts(composed([*loop, *case, *off], tmp_path), tmp_path)
    pretrain(job)
    found = job.task.state_dict()
    assert not [
        name for name, value in last_weights(pair.plain).items() if not torch.equal(value, found[name])
    ]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use full fp32 on a GPU too, and compile again in every test."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "compiled"), [("32-true", "false"), ("32-true", "true"), ("bf16-mixed", "false")]
)
@pytest.mark.parametrize("name", RUNS)
def test_on_a_gpu_graphs_an_interruption_and_compiling_change_little(
    name: str, precision: str, compiled: str, tmp_path: Path, exact: None
) -> None:
    given = [*RUNS[name], "trainer=gpu", f"trainer.precision={precision}"]
    given += ["optimizer=sgd", "optimizer.lr=0.001"]  # Adam would amplify rounding
    first = first_weights(tmp_path, [*LOOP, *given])
    pair = both(tmp_path, given, "cuda_graphs=true", f"compile={compiled}")
    assert_moved_alike(first, *map(last_weights, pair))


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("name", RUNS)
def test_on_a_gpu_the_pretext_loss_falls_with_the_defaults(
    name: str, compiled: str, tmp_path: Path, exact: None
) -> None:
    given = [*RUNS[name], *LEARN, "trainer=gpu", f"compile={compiled}"]
    run_job(tmp_path, given)
    assert_falls(epoch_losses(tmp_path))


def test_results_name_the_commit_of_the_code_that_ran(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = iter(["before", "of a commit during the run"])
    monkeypatch.setattr(writer, "git_revision", lambda: next(commits))
    run_job(tmp_path / "run", [*TASKS["rotation"], *CONVNET])
    assert read_results(tmp_path / "run/results.json").run.git == "before"
