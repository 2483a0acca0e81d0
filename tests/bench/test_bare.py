"""Equality of the bare loop and the framework, so that its speed is an upper bound."""

from pathlib import Path

import pytest
import torch

from ssl_lightning.bench.bare import BareLoop
from ssl_lightning.bench.build import composed, in_new_process, load_batches, precision_of
from ssl_lightning.bench.graphed import GraphedLoop
from ssl_lightning.bench.steps import PREPARED, TakeTurns, bare_task
from ssl_lightning.engine import trainer as trainer_module
from ssl_lightning.engine.trainer import peak_memory_gb
from ssl_lightning.run.parts import build_parts

# Both loops run only steps. tests/test_user_loop.py checks that validation and callbacks change no weights.

SMALL = ["data=fake", "data.batch_size=8", "backbone.widths=[8,16]", "backbone.strides=[2,2]"]
# tasks without random draws
SAME = {
    "supervised": ["task=supervised"],
    "super_resolution": [
        "task=super_resolution", "task.instance_noise=0", "task.discriminator_lr_factor=1",
        "task.discriminator_width=4", "task.decoder_width=8",
    ],
}  # fmt: skip


def test_files_of_a_measured_run_go_to_its_folder(tmp_path: Path) -> None:
    cfg = composed(["task=rotation", "data=fake"], tmp_path)
    assert cfg.run_dir == cfg.logger.csv.save_dir == str(tmp_path)


@pytest.mark.parametrize("task", SAME)
def test_the_bare_loop_ends_where_the_framework_does(task: str, tmp_path: Path) -> None:
    quick = ["trainer.max_steps=4", "trainer.max_epochs=-1", "trainer.limit_val_batches=0", "probe=[]"]
    quick += ["scheduler=constant", "trainer=cpu", "trainer.precision=32-true", "callbacks=[]"]
    cfg = composed([*SAME[task], *SMALL, *quick, "optimizer.lr=0.001"], tmp_path)
    job = build_parts(cfg, tmp_path)
    bare, optimizers = bare_task(cfg, job.data)
    start = {name: value.clone() for name, value in bare.state_dict().items()}
    loop = BareLoop(bare, load_batches(job.data, bare, 4), optimizers, "32-true")
    for _ in range(4):
        loop.step()
    job.trainer.fit(job.task, datamodule=job.data)
    for name, value in job.task.state_dict().items():
        torch.testing.assert_close(bare.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert any(not torch.equal(start[name], value) for name, value in bare.state_dict().items())


def test_both_take_turns_and_are_timed_alike(tmp_path: Path) -> None:
    quick = ["trainer.max_steps=9", "trainer.max_epochs=-1", "trainer.limit_val_batches=0", "probe=[]"]
    cfg = composed(["task=rotation", *SMALL, "trainer=cpu", "callbacks=[]", *quick], tmp_path)
    job = build_parts(cfg, tmp_path)
    task, optimizers = bare_task(cfg, job.data)
    loop = BareLoop(task, load_batches(job.data, task, PREPARED), optimizers, job.trainer.precision)
    turns = TakeTurns([loop], 3)
    job.trainer.callbacks.append(turns)  # type: ignore[attr-defined]
    job.trainer.fit(job.task, datamodule=job.data)
    assert loop.done == 9
    (theirs,) = turns.theirs
    assert len(turns.ours) == len(theirs) == 2  # the first block warms up
    assert min(turns.ours + theirs) > 0


@pytest.mark.parametrize(
    ("named", "gpus", "expected"),
    [
        ([], False, "32-true"),
        ([], True, "bf16-mixed"),
        (["trainer=cpu"], True, "32-true"),
        (["trainer.precision=16-mixed"], True, "16-mixed"),
        (["trainer=cpu", "trainer.precision=bf16-mixed"], True, "bf16-mixed"),
    ],
)
def test_precision_is_that_of_the_run(
    named: list[str], gpus: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(trainer_module, "_cpu_has_bf16", lambda: False)
    assert precision_of(composed(["task=rotation", "data=fake", *named], tmp_path)) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["jigsaw", "super_resolution", "inpainting"])
def test_the_graphed_loop_ends_where_the_bare_one_does(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # full fp32
    given = [f"task={task}", "data=fake", "trainer=gpu", "trainer.precision=32-true", "scheduler=constant"]
    given += ["optimizer=sgd", "optimizer.lr=0.001", "callbacks=[]", "probe=[]"]
    cfg = composed(given, tmp_path)
    job = build_parts(cfg, tmp_path)
    ends = []
    for kind in (BareLoop, GraphedLoop):
        bare, optimizers = bare_task(cfg, job.data)
        loop = kind(bare, load_batches(job.data, bare, 4), optimizers, "32-true")
        for _ in range(7):
            loop.step()
        ends.append({name: value.cpu() for name, value in bare.state_dict().items()})
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_the_memory_of_a_process_is_not_that_of_the_one_that_asks() -> None:
    held = torch.ones(2**31, dtype=torch.uint8)  # 2.1 GB, touched
    assert peak_memory_gb()["host"] > 2.1
    assert in_new_process(peak_memory_gb)["host"] < 1.5
    del held
