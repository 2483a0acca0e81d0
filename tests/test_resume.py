"""Tests of killed and resumed runs, each in its own process; digests compare their results."""

import copy
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ssl_lightning.artifacts.checkpoints import FIRST_STEPS, AtomicCheckpointIO, load_checkpoint
from ssl_lightning.artifacts.results import read_results
from ssl_lightning.core.errors import RunError
from ssl_lightning.data.pack.__main__ import main as pack
from ssl_lightning.launch.resume import check_checkpoint, resume_main, resumed_config
from tests._tasks import VIT, others, tasks_in

ROOT = Path(__file__).parent.parent
KILLS = int(os.environ.get("SSL_LIGHTNING_KILLS", 0))  # trials of each case; 0: the numbers below
RUN = [
    "data=fake", "data.batch_size=8", "trainer=cpu", "trainer.max_epochs=3", "trainer.val_check_interval=0.5",
    "trainer.log_every_n_steps=3", "probe.knn.ks=[5]", "probe_untrained=true", "backbone.widths=[8,8]",
    "backbone.strides=[2,2]", "callbacks.checkpoint.every_n_steps=2",
]  # fmt: skip

ADVERSARIAL = [
    "optimizer=adam", "task.instance_noise=0.3", "task.warmup_steps=5",
    "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0", "task.discriminator_norm=batch",
    "task.discriminator_head=average", "task.adversarial_loss=non_saturating", "task.input_noise=0.2",
]  # fmt: skip


SPECTRAL = [
    "task.discriminator_norm=spectral", "task.discriminator_head=flattened", "task.adversarial_loss=hinge",
    "task.discriminator_steps=2", "task.r1=0.1", "task.discriminator_augment=[translation,cutout]",
    "task.discriminator_rotation=1.0",
]  # fmt: skip


def start(output: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    if not any(o.startswith("resume=") for o in overrides):
        command += [f"output_dir={output}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=output, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], ok: bool = True) -> str:
    output, _ = process.communicate(timeout=300)
    assert (process.returncode == 0) == ok, output
    return output


def folder_of(output: Path, name: str) -> Path:
    return output / "rotation/fake/convnet" / name


def wait_for_checkpoint(process: subprocess.Popen[str], folder: Path) -> None:
    while not (folder / "checkpoints/last.ckpt").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def digest(folder: Path) -> dict[str, Any]:
    """Digest of all results that must be bit-equal: training state, figures, curves, export."""
    state = load_checkpoint(folder / "checkpoints/last.ckpt")
    results = json.loads((folder / "results.json").read_text())
    assert results["run"]["status"] == "finished"
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "train/images_per_s"} for row in csv.DictReader(file)]
    return {
        **{
            key: sha(state[key]) for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
        },
        "pretext": results["pretext"],
        "probes": results["probes"],
        "rows": rows,
        "export": hashlib.sha256((folder / "backbone.safetensors").read_bytes()).hexdigest(),
    }


def sha(node: Any) -> str:
    if isinstance(node, torch.Tensor):
        values = node.flatten().view(torch.uint8).numpy().tobytes()
        node = (str(node.dtype), list(node.shape), hashlib.sha256(values).hexdigest())
    elif isinstance(node, dict):
        node = sorted((str(key), sha(value)) for key, value in node.items())
    elif isinstance(node, (list, tuple)):
        node = [sha(value) for value in node]
    return hashlib.sha256(repr(node).encode()).hexdigest()


# one run resumes many tasks
PARTS = [
    "task.parts=[rotation,jigsaw,simclr,pirl,barlow_twins,vicreg,lejepa]",
    "+task.options.simclr.hidden=32", "+task.options.pirl={hidden:8,embedding:16}",
    "+task.options.barlow_twins={hidden:32,embedding:16}", "+task.options.vicreg={hidden:32,embedding:16}",
    "+task.options.lejepa.hidden=32",
]  # fmt: skip
PARTS_ON_A_VIT = [
    VIT, "backbone.width=24", "backbone.depth=2", "backbone.stages=2",
    "task.parts=[mae,jigsaw,context_prediction]", "+task.options.jigsaw.on=tokens",
    "+task.options.context_prediction.on=tokens",
]  # fmt: skip
FP32, TWO = "trainer.precision=32-true", "trainer.devices=2"
# for each case: the number of killed runs, and overrides
KILLED = {
    "fp32": (KILLS or 10, ["task=rotation", FP32]),
    "bf16": (KILLS or 3, ["task=rotation", "trainer.precision=bf16-mixed"]),
    "two-processes": (KILLS or 5, ["task=rotation", FP32, TWO]),
    "sharded": (KILLS or 2, ["task=rotation", FP32, TWO, "trainer.strategy=fsdp"]),
    "jigsaw": (KILLS or 2, ["task=jigsaw", FP32, TWO]),
    "context": (KILLS or 2, ["task=context_prediction", "trainer.precision=bf16-mixed"]),
    "colour": (KILLS or 2, ["task=colorization", FP32]),
    "gan-fp32": (KILLS or 4, ["task=inpainting", FP32, *ADVERSARIAL]),
    "gan-bf16": (KILLS or 2, ["task=inpainting", "trainer.precision=bf16-mixed", *ADVERSARIAL]),
    "gan-two-processes": (KILLS or 2, ["task=inpainting", FP32, TWO, *ADVERSARIAL]),
    "gan-accumulated": (
        KILLS or 2,
        ["task=super_resolution", "optimizer=adam", "trainer.accumulate_grad_batches=3"],
    ),
    "gan-spectral": (KILLS or 2, ["task=super_resolution", FP32, *SPECTRAL]),
    "simclr": (KILLS or 2, ["task=simclr", FP32, TWO]),
    "byol": (KILLS or 2, ["task=byol", FP32, TWO]),
    "dino": (KILLS or 2, ["task=dino", FP32, TWO]),
    "combined": (KILLS or 2, ["task=combined", FP32, TWO, *PARTS]),
    "combined-vit": (KILLS or 1, ["task=combined", FP32, TWO, *PARTS_ON_A_VIT]),
}
KILLED |= {
    name: (KILLS or 2, [f"task={name}", FP32])
    for name in others(set().union(*(tasks_in(overrides) for _, overrides in KILLED.values())))
}


@pytest.mark.slow
@pytest.mark.parametrize("case", KILLED)
def test_killed_runs_end_like_undisturbed_ones(tmp_path: Path, case: str) -> None:
    trials, overrides = KILLED[case]
    task = overrides[0].removeprefix("task=")
    if VIT in overrides:
        run = [option for option in RUN if not option.startswith("backbone.")]
        folders = tmp_path / task / "fake/vit_tiny_small_images"
    else:
        run, folders = RUN, tmp_path / task / "fake/convnet"
    finish(start(tmp_path, *run, *overrides, "name=undisturbed"))
    expected = digest(folders / "undisturbed")
    draw = random.Random(time.time_ns())
    resumed = 0
    for trial in range(trials):
        folder = folders / f"killed{trial}"
        process = start(tmp_path, *run, *overrides, f"name=killed{trial}")
        wait_for_checkpoint(process, folder)
        time.sleep(draw.uniform(0, 4))
        os.killpg(process.pid, signal.SIGKILL)  # the launcher and all ranks
        process.communicate()
        finish(start(tmp_path, f"resume={folder}"))
        assert digest(folder) == expected, f"trial {trial}"
        resumed += json.loads((folder / "results.json").read_text())["run"]["resumed"]
    assert resumed == trials


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_killed_runs_on_shards_end_like_undisturbed_ones(tmp_path: Path, devices: int) -> None:
    draw = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 12)):
        for number in range(count):
            path = tmp_path / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (24, 32, 3), np.uint8)).save(path)
        options = ["--labels", "--samples-per-shard", "10"]
        assert pack([str(tmp_path / split), str(tmp_path / f"{split} shards"), *options]) == 0
    train = f"'{tmp_path}/train shards'"
    run = [option for option in RUN if option != "data=fake"]
    run += ["data=shards", f"data.pretrain_dir={train}", f"data.train_dir={train}", "data.image_size=16"]
    run += [
        f"data.test_dir='{tmp_path}/test shards'",
        "data.window=2",
        "data.heldout=16",
        "data.num_workers=2",
    ]
    run += ["task=rotation", f"trainer.devices={devices}", "trainer.precision=32-true"]
    folders = tmp_path / "rotation/shards/convnet"
    finish(start(tmp_path, *run, "name=undisturbed"))
    expected = digest(folders / "undisturbed")
    moments = random.Random(time.time_ns())
    for trial in range(KILLS or 3):
        folder = folders / f"killed{trial}"
        process = start(tmp_path, *run, f"name=killed{trial}")
        wait_for_checkpoint(process, folder)
        time.sleep(moments.uniform(0, 4))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        finish(start(tmp_path, f"resume={folder}"))
        assert digest(folder) == expected, f"trial {trial}"
        assert json.loads((folder / "results.json").read_text())["run"]["resumed"]


@pytest.mark.slow
def test_a_terminated_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    finish(start(tmp_path, *RUN, "name=undisturbed"))
    folder = folder_of(tmp_path, "stopped")
    process = start(tmp_path, *RUN, "name=stopped")
    wait_for_checkpoint(process, folder)
    process.terminate()
    said = finish(process, ok=False)
    assert "last.ckpt holds the run up to here\n" in said
    assert said.endswith(f"stopped by a signal; resume with: python train.py resume={folder}\n")
    assert process.returncode == 128 + signal.SIGTERM
    assert json.loads((folder / "results.json").read_text())["run"]["status"] == "interrupted"
    assert "resumed" in finish(start(tmp_path, f"resume={folder}", "logger=[csv,tensorboard]"))
    assert digest(folder) == digest(folder_of(tmp_path, "undisturbed"))


@pytest.mark.slow
def test_a_run_stopped_while_it_probes_tells_how_it_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "random/fake/convnet/probed"
    process = start(tmp_path, *RUN, "task=random", "data.num_train=20000", "name=probed")
    assert process.stdout is not None
    while not process.stdout.readline().startswith("hardware"):
        assert process.poll() is None
    process.terminate()
    said = finish(process, ok=False)
    assert said.endswith(f"stopped by a signal; resume with: python train.py resume={folder}\n")
    assert f"run folder: {folder}" in finish(start(tmp_path, f"resume={folder}"))


def tree(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def config() -> DictConfig:
    """The config of a run, not resolved."""
    overrides = ["data=fake", "trainer=debug", "trainer.max_epochs=3"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = OmegaConf.create(OmegaConf.to_container(compose("train", overrides)))
    cfg.choices = {"task": "rotation", "data": "fake", "backbone": "convnet"}
    cfg.overrides = overrides
    return cfg


@pytest.fixture
def folder(config: DictConfig, tmp_path: Path) -> Path:
    """A run folder as after two epochs, without running."""
    place = tmp_path / "run"
    cfg = copy.deepcopy(config)
    cfg.run_dir = str(place)
    loops = {"fit_loop": {"epoch_loop.state_dict": {"_batches_that_stepped": 20}}}
    AtomicCheckpointIO().save_checkpoint({"epoch": 2, "loops": loops}, place / "checkpoints/last.ckpt")
    OmegaConf.save(cfg, place / "config.yaml", resolve=True)
    return place


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=0.2"], "optimizer.lr: 0.1 -> 0.2"),
        (["optimizer=adam"], "optimizer._target_: torch.optim.SGD -> torch.optim.Adam"),
        (["data=cifar10"], "data._target_: ssl_lightning.data.fake.Fake -> ssl_lightning.data.cifar10"),
        (["seed=1"], "seed: 0 -> 1"),
        (["+task.new=1"], "task.new: (absent) -> 1"),
        (["task=nonsense"], "Could not find 'task/nonsense'"),
        (["trainer.devices=many"], "trainer.devices is 'many'"),
        (["trainer.max_epochs=1"], "trainer.max_epochs is 1, and the run is at epoch 2"),
        (["trainer.max_steps=12"], "trainer.max_steps is 12, and the run is at step 20"),
        (["-m"], "does not take -m"),
        (["trainer.accelerator=gpu"], "torch sees no GPU here"),
    ],
)
def test_a_refused_resume_changes_nothing(
    folder: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "GPU" in message and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    before = tree(folder)
    assert resume_main([f"resume={folder}", *overrides], ROOT / "conf") == 1
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert tree(folder) == before


def test_max_steps_counts_the_steps_of_the_first_network(folder: Path, config: DictConfig) -> None:
    last = folder / "checkpoints/last.ckpt"
    content = load_checkpoint(last) | {FIRST_STEPS: 10}  # 20 batches, two for each step
    AtomicCheckpointIO().save_checkpoint(content, last)
    cfg = copy.deepcopy(config)
    cfg.trainer.max_steps = 10
    check_checkpoint(folder, cfg)
    cfg.trainer.max_steps = 9
    with pytest.raises(ValueError, match="max_steps is 9, and the run is at step 10"):
        check_checkpoint(folder, cfg)


@pytest.mark.parametrize("plan", ["compare.json", "audit.json"])
def test_a_row_keeps_its_length_but_a_copy_may_train_longer(folder: Path, plan: str) -> None:
    (folder.parent / plan).write_text("{}")
    with pytest.raises(RunError, match=r"whose rows train equally long, so trainer.max_epochs cannot change"):
        resumed_config(folder, ["trainer.max_epochs=9"], ROOT / "conf")
    assert resumed_config(folder, ["logger=[tensorboard]"], ROOT / "conf").trainer.max_epochs == 3
    copied = shutil.copytree(folder, folder.parent / "elsewhere" / "run")
    assert resumed_config(copied, ["trainer.max_epochs=9"], ROOT / "conf").trainer.max_epochs == 9


def test_of_another_class_only_its_name_is_shown(folder: Path) -> None:
    with pytest.raises(RunError, match="would change what the run computes") as refused:
        resumed_config(folder, ["task=jigsaw", "seed=1"], ROOT / "conf")
    changes = [line.strip() for line in str(refused.value).splitlines() if line.startswith("  ")]
    assert [change.partition(":")[0] for change in changes] == ["seed", "task._target_"]


def test_length_hardware_and_logging_may_change_and_the_folder_may_move(folder: Path) -> None:
    moved = folder.rename(folder.with_name("moved"))
    changes = ["trainer.max_epochs=9", "trainer.devices=2", "logger=[tensorboard]", "data.root=/elsewhere"]
    with pytest.raises(RunError, match=r"data\.root"):  # generated data has no root
        resumed_config(moved, changes, ROOT / "conf")
    cfg = resumed_config(moved, changes[:-1], ROOT / "conf")
    assert (cfg.trainer.max_epochs, cfg.trainer.devices, list(cfg.logger)) == (9, 2, ["tensorboard"])
    assert cfg.run_dir == cfg.logger.tensorboard.save_dir == str(moved)
    assert cfg.callbacks.checkpoint.dirpath == f"{moved}/checkpoints"
    stored = OmegaConf.load(moved / "config.yaml")
    assert cfg.optimizer == stored.optimizer
    assert cfg.data == stored.data
    first = [each for each in stored.overrides if not each.startswith("trainer.max_epochs=")]
    assert cfg.overrides == [*first, *changes[:-1]]  # as the command in results.json


@pytest.mark.parametrize("names", [[], ["progress"], ["checkpoint", "collapse"]])
def test_callbacks_are_left_out_and_added_as_a_whole(folder: Path, names: list[str]) -> None:
    chosen = f"callbacks=[{','.join(names)}]"
    cfg = resumed_config(folder, [chosen], ROOT / "conf")
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        expected = compose("train", [*cfg.overrides[:-1], chosen])
    assert {name: set(cfg.callbacks[name]) for name in cfg.callbacks} == {
        name: set(expected.callbacks[name]) for name in names
    }


@pytest.mark.slow
def test_a_run_of_so_many_steps_is_extended_and_equals_a_longer_one(tmp_path: Path) -> None:
    long = [*RUN, "trainer.max_epochs=-1", "scheduler=constant", "trainer.val_check_interval=1.0"]
    long += ["trainer.precision=32-true"]
    finish(start(tmp_path, *long, "trainer.max_steps=40", "name=long"))
    finish(start(tmp_path, *long, "trainer.max_steps=12", "name=short"))  # ends within an epoch
    folder = folder_of(tmp_path, "short")
    finish(start(tmp_path, f"resume={folder}", "trainer.max_steps=40"))
    found, expected = digest(folder), digest(folder_of(tmp_path, "long"))
    del found["rows"], expected["rows"]  # the end at step 12 has a row of its own
    assert found == expected
    assert "is at step 40" in finish(start(tmp_path, f"resume={folder}", "trainer.max_steps=30"), ok=False)
    assert not (folder / "error.txt").exists()


def test_two_processes_do_not_resume_one_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(folder / ".lock"):
        before = tree(folder)
        assert resume_main([f"resume={folder}"], ROOT / "conf") == 1
        assert tree(folder) == before
    assert "another process is running in" in capsys.readouterr().err


@pytest.mark.slow
def test_a_torn_checkpoint_falls_back_to_the_previous_one(tmp_path: Path) -> None:
    finish(start(tmp_path, *RUN, "name=whole"))
    folder = folder_of(tmp_path, "whole")
    expected = digest(folder)
    last, previous = (folder / "checkpoints" / name for name in ("last.ckpt", "previous.ckpt"))
    last.write_bytes(last.read_bytes()[:-1000])
    output = finish(start(tmp_path, f"resume={folder}"))
    assert f"from {previous}" in output
    assert digest(folder) == expected
    for path in (last, previous):
        path.write_bytes(path.read_bytes()[:-1000])
    before = tree(folder)
    output = finish(start(tmp_path, f"resume={folder}"), ok=False)
    assert "torn" in output
    assert "Traceback" not in output
    assert tree(folder) == before


def test_folders_without_a_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("model: {lr: 1}\n")
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    for file in ("run/config.yaml", "run/checkpoints/last.ckpt"):
        (tmp_path / file).touch()
    for name, message in (
        ("nowhere", "is not there"),
        ("other", "not the config of a run of this project"),
        ("other/config.yaml", f"is a file; give its run folder, {tmp_path / 'other'}"),
        ("run/checkpoints/last.ckpt", f"is a file; give its run folder, {tmp_path / 'run'}"),
    ):
        assert resume_main([f"resume={tmp_path / name}"], ROOT / "conf") == 1
        assert message in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["config.yaml"]
    assert resume_main(["resume="], ROOT / "conf") == 1  # of a shell variable that is not set
    assert "resume= names no folder" in capsys.readouterr().err


@pytest.mark.slow
def test_what_an_evaluation_added_stays_while_the_weights_stay(tmp_path: Path) -> None:
    finish(start(tmp_path, *RUN, "trainer.max_epochs=1", "name=evaluated"))
    folder = folder_of(tmp_path, "evaluated")
    script = [sys.executable, str(ROOT / "evaluate.py"), f"run={folder}", "probe=[svm]"]
    subprocess.run(script, cwd=tmp_path, check=True, capture_output=True)

    def added() -> list[str]:
        return [r.probe for r in read_results(folder / "results.json").probes if r.evaluation is not None]

    first = added()
    assert set(first) == {"svm"}
    finish(start(tmp_path, f"resume={folder}"))
    assert added() == first
    assert f"{len(first)} figures of evaluate.py" in finish(
        start(tmp_path, f"resume={folder}", "trainer.max_epochs=2")
    )
    assert added() == []
