"""Tests of runs on several devices and machines: sharded weights, SLURM, torchrun, submitit sweeps."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ssl_lightning
from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.artifacts.results import Results, read_results
from ssl_lightning.core.errors import RunError
from ssl_lightning.engine import trainer as trainer_module
from ssl_lightning.engine.fsdp import blocks
from ssl_lightning.launch import cluster
from ssl_lightning.launch.cluster import check_name, expand_hosts, find_place, this_machine
from tests._tasks import others, tasks_in

ROOT = Path(__file__).parent.parent
SMALL = [
    "data=fake", "data.num_train=128", "data.heldout=32", "data.batch_size=16", "probe=[knn]",
    "probe.knn.ks=[5]", "backbone.widths=[8,16,16]", "optimizer.lr=0.01", "trainer.max_epochs=2",
    "trainer.precision=32-true", "trainer.log_every_n_steps=2", "trainer.accelerator=cpu",
    "trainer.devices=2",
]  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2", "SLURM_LOCALID": "0",
}  # fmt: skip


def start(
    tmp_path: Path, *overrides: str, env: dict[str, str] | None = None, by: tuple[str, ...] = ()
) -> Any:
    own = [] if any(o.startswith("resume=") for o in overrides) else [f"output_dir={tmp_path}"]
    command = [sys.executable, *by, str(ROOT / "train.py"), *overrides, *own]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.Popen(
        command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def end(process: Any, ok: bool = True) -> str:
    said, _ = process.communicate(timeout=300)
    assert (process.returncode == 0) == ok, said
    return said


def train(tmp_path: Path, *overrides: str, ok: bool = True, **how: Any) -> str:
    return end(start(tmp_path, *overrides, **how), ok)


def results_of(folder: Path) -> Results:
    return read_results(folder / "results.json")


def assert_same_state(one: Path, two: Path, **tolerance: float) -> None:
    """Check equal names, shapes and values in weights, optimizer, schedule and export."""
    states = [load_checkpoint(folder / "checkpoints/last.ckpt") for folder in (one, two)]
    assert list(states[0]["state_dict"]) == list(states[1]["state_dict"])
    for name, value in states[0]["state_dict"].items():
        torch.testing.assert_close(states[1]["state_dict"][name], value, msg=name, **tolerance)
    optimizers = [each for state in states for each in state["optimizer_states"]]
    for group in (group for each in optimizers for group in each["param_groups"]):
        group.pop("fused")  # sharded weights use another kernel
    torch.testing.assert_close(states[1]["optimizer_states"], states[0]["optimizer_states"], **tolerance)
    assert states[1]["lr_schedulers"] == states[0]["lr_schedulers"]
    exports = [load_file(folder / "backbone.safetensors") for folder in (one, two)]
    torch.testing.assert_close(exports[1], exports[0], **tolerance)


# --- sharded weights ---


SHARDED = [
    ("rotation", []),
    ("rotation", ["backbone=resnet18_small", "optimizer.momentum=0.9", "data.image_size=16"]),
    ("jigsaw", ["data.image_size=48", "trainer.accumulate_grad_batches=2"]),
    (
        "context_prediction",
        ["data.image_size=48", "optimizer=adamw", "optimizer.lr=1e-4", "+optimizer.fused=false"],
    ),
    (
        "colorization",
        ["trainer.gradient_clip_val=0.1", "callbacks=[checkpoint,panel,online_knn]", "optimizer=sgd"],
    ),
    ("inpainting", ["task.adversarial_weight=0", "optimizer=sgd", "trainer.precision=bf16-mixed"]),
    ("super_resolution", ["task.adversarial_weight=0", "optimizer=sgd", "probe=[knn,finetune]"]),
    ("supervised", []),
    ("simclr", []),
    ("byol", ["task.momentum=0.5"]),
    ("dino", ["task.momentum=0.5", "optimizer=sgd", "optimizer.lr=0.01"]),
    ("mae", ["backbone=vit_tiny_small_images", "backbone.width=24", "optimizer=sgd"]),
    ("rotation", ["backbone=vit_tiny_small_images", "backbone.width=24"]),
    (
        "combined",
        [
            "task.parts=[rotation,simclr,pirl,barlow_twins,vicreg,lejepa]",
            "+task.options.barlow_twins={hidden:32,embedding:16}",
            "task.weights=[1,0.1,0.1,0.01,0.1,0.1]",
            "optimizer=sgd",
        ],
    ),
    (
        "combined",
        [
            "backbone=vit_tiny_small_images",
            "backbone.width=24",
            "backbone.depth=2",
            "task.parts=[jigsaw,context_prediction]",
            "+task.options.jigsaw.on=tokens",
            "+task.options.context_prediction.on=tokens",
            "optimizer=sgd",
        ],
    ),
]
SHARDED += [
    (name, [])
    for name in others(set().union(*(tasks_in([f"task={task}", *options]) for task, options in SHARDED)))
]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "options"), SHARDED)
def test_sharded_weights_learn_like_full_ones(tmp_path: Path, task: str, options: list[str]) -> None:
    named = [option.removeprefix("backbone=") for option in options if option.startswith("backbone=")]
    small = [o for o in SMALL if not o.startswith("backbone.")] if named else SMALL
    given = {o.partition("=")[0] for o in options}
    small = [o for o in small if o.partition("=")[0] not in given]
    if "probe=[knn,finetune]" in options:
        small = [*small, "probe.finetune.fractions=[0.5]", "probe.finetune.epochs=1"]
    # fsdp takes contiguous weights only; in the same memory format both use the same kernels
    small = [*small, "channels_last=false"]
    for strategy in ("ddp", "fsdp"):
        train(tmp_path, *small, f"task={task}", *options, f"trainer={strategy}", f"name={strategy}")
    backbone = named[0] if named else "convnet"
    ddp, fsdp = (tmp_path / task / "fake" / backbone / name for name in ("ddp", "fsdp"))
    # Adam's division amplifies rounding
    atol = 1e-4 if "optimizer=adamw" in options else 1e-5
    assert_same_state(ddp, fsdp, rtol=1e-3, atol=atol)
    one, two = results_of(ddp), results_of(fsdp)
    assert two.pretext == pytest.approx(one.pretext, rel=1e-2)
    assert len(two.probes) == len(one.probes)
    assert (fsdp / "panel.png").exists()
    ssl_lightning.load_backbone(fsdp)


@pytest.mark.slow
def test_a_sharded_run_resumes_evaluates_and_exports(tmp_path: Path) -> None:
    often = [*SMALL, "task=rotation", "callbacks.checkpoint.every_n_steps=2", "optimizer.momentum=0.9"]
    train(tmp_path, *often, "trainer=fsdp", "name=whole")
    folders = [tmp_path / "rotation/fake/convnet" / name for name in ("whole", "stopped", "moved")]
    for folder in folders[1:]:
        process = start(tmp_path, *often, "trainer=fsdp", f"name={folder.name}")
        while not (folder / "checkpoints/last.ckpt").exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert "stopped by a signal" in end(process, ok=False)
    train(tmp_path, f"resume={folders[1]}")
    assert_same_state(folders[0], folders[1], rtol=0, atol=0)
    # ddp resumes a sharded run
    train(tmp_path, f"resume={folders[2]}", "trainer.strategy=ddp")
    assert_same_state(folders[0], folders[2], rtol=1e-3, atol=1e-5)
    command = [sys.executable, str(ROOT / "evaluate.py"), f"run={folders[0]}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "exactly equal" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task=inpainting", "task.adversarial_weight=0.5"], "cannot train two networks against each other"),
        (["trainer.precision=16-mixed"], "trainer.strategy=fsdp allows 32-true and bf16-mixed"),
        (["trainer.sync_batchnorm=false"], "trainer.sync_batchnorm is false"),
    ],
)
def test_unsupported_options_of_fsdp_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    given = {o.partition("=")[0] for o in options}
    small = [o for o in SMALL if o.partition("=")[0] not in given]
    said = train(tmp_path, *small, *options, "trainer=fsdp", ok=False)
    assert message in said
    assert said.count("error:") == 1
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("results.json"))


def test_blocks_are_the_parts_that_a_network_calls() -> None:
    large, small = nn.Linear(300, 300), nn.Linear(3, 3)
    network = nn.Sequential(nn.Sequential(large, nn.ReLU()), small)
    assert list(blocks(network)) == [large]


@pytest.mark.parametrize("options", [{"precision": "16-mixed"}, {"find_unused_parameters": True}])
def test_a_trainer_that_cannot_shard_is_not_made(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"trainer\.(strategy|precision) is .*use|allows"):
        trainer_module.make_trainer(accelerator="cpu", devices=1, strategy="fsdp", **options)


# --- several machines ---


@pytest.mark.slow
def test_slurm_tasks_on_two_nodes_equal_one_machine(tmp_path: Path) -> None:
    train(tmp_path, *SMALL, "trainer=ddp", "name=here")
    nodes = [*SMALL[:-1], "trainer=slurm", "trainer.devices=1", "name=4711"]
    env = SLURM | meeting()
    tasks = [
        start(tmp_path, *nodes, env=env | {"SLURM_PROCID": n, "SLURM_NODEID": n})
        for n in ("1", "0")  # the second starts first
    ]
    follower, first = (end(task) for task in tasks)
    assert "2 x cpu" in first
    assert follower == ""
    here, there = (tmp_path / "rotation/fake/convnet" / name for name in ("here", "4711"))
    assert_same_state(here, there, rtol=0, atol=0)
    assert results_of(there).probes == results_of(here).probes
    # the same job again, as if requeued: it resumes with nothing left to do
    env |= {"SLURM_RESTART_COUNT": "1"} | meeting()
    tasks = [start(tmp_path, *nodes, env=env | {"SLURM_PROCID": n, "SLURM_NODEID": n}) for n in "01"]
    first, _ = (end(task) for task in tasks)
    assert f"resumed   from {there}" in first


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_slurms_warning_to_all_tasks_saves_and_requeues(tmp_path: Path, strategy: str) -> None:
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    often = [*SMALL[:-1], "callbacks.checkpoint.every_n_steps=2", f"trainer.strategy={strategy}"]
    train(tmp_path, *often, "trainer=ddp", "trainer.devices=2", "name=here")
    here, there = (tmp_path / "rotation/fake/convnet" / name for name in ("here", "4711"))
    nodes = [*often, "trainer=slurm", "trainer.devices=1", "name=4711"]
    env = SLURM | {"PATH": f"{scontrol.parent}:{os.environ['PATH']}"} | meeting()
    tasks = [start(tmp_path, *nodes, env=env | {"SLURM_PROCID": n, "SLURM_NODEID": n}) for n in "01"]
    while not (there / "checkpoints/last.ckpt").exists():
        assert tasks[0].poll() is None, tasks[0].communicate()[0]
        time.sleep(0.01)
    for task in tasks:
        task.send_signal(signal.SIGUSR1)
    first, follower = (end(task, ok=False) for task in tasks)
    assert "put back into the queue" in first
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    assert "error:" not in first + follower
    assert not (there / "error.txt").exists()
    env |= {"SLURM_RESTART_COUNT": "1"} | meeting()
    tasks = [start(tmp_path, *nodes, env=env | {"SLURM_PROCID": n, "SLURM_NODEID": n}) for n in "01"]
    first, _ = (end(task) for task in tasks)
    assert "resumed" in first
    assert_same_state(here, there, rtol=0, atol=0)


@pytest.mark.slow
def test_an_error_of_one_task_is_printed_once(tmp_path: Path) -> None:
    nodes = [*SMALL[:-1], "trainer=slurm", "trainer.devices=1", "name=4711", "data.num_train=1"]
    nodes = [o for o in nodes if o != "data.num_train=128"]
    env = SLURM | meeting()
    tasks = [start(tmp_path, *nodes, env=env | {"SLURM_PROCID": n, "SLURM_NODEID": n}) for n in "01"]
    said = "".join(end(task, ok=False) for task in tasks)
    assert said.count("error:") == 1, said
    assert "Traceback" not in said


@pytest.mark.slow
def test_torchrun_starts_the_processes(tmp_path: Path) -> None:
    train(tmp_path, *SMALL, "trainer=ddp", "name=here")
    small = [o for o in SMALL if not o.startswith("trainer.devices")]
    by = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-endpoint=localhost:0")
    by += ("--rdzv-backend=c10d", "--nnodes=1")
    train(tmp_path, *small, "trainer=torchrun", "trainer.strategy=fsdp", "name=there", by=by)
    here, there = (tmp_path / "rotation/fake/convnet" / name for name in ("here", "there"))
    assert_same_state(here, there, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_torchruns_on_two_hosts_equal_one_machine(tmp_path: Path) -> None:
    train(tmp_path, *SMALL, "trainer=ddp", "name=here")
    small = [*SMALL[:-1], "trainer=torchrun", "name=there"]
    port = meeting()["MASTER_PORT"]
    by = ("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d")
    by += (f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=1")
    hosts = [start(tmp_path, *small, by=by) for _ in range(2)]
    said = [end(host) for host in hosts]
    assert sum("2 x cpu" in each for each in said) == 1  # the first process alone speaks
    here, there = (tmp_path / "rotation/fake/convnet" / name for name in ("here", "there"))
    assert_same_state(here, there, rtol=0, atol=0)
    assert results_of(there).probes == results_of(here).probes


def meeting() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}


def task_of(rank: int, devices: int, **changes: str) -> dict[str, str]:
    node, local = divmod(rank, devices)
    numbers = {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(node), "SLURM_LOCALID": str(local)}
    return SLURM | {"SLURM_NTASKS": str(2 * devices)} | numbers | changes


def test_slurm_variables_give_the_place_of_a_process() -> None:
    places = [find_place("slurm", 2, 4, task_of(rank, 4, SLURM_CPUS_PER_TASK="12")) for rank in range(8)]
    found = [place.variables(0) for place in places]
    assert [int(each["RANK"]) for each in found] == list(range(8))
    assert [int(each["LOCAL_RANK"]) for each in found] == [0, 1, 2, 3] * 2
    assert [int(each["NODE_RANK"]) for each in found] == [0] * 4 + [1] * 4
    assert {each["WORLD_SIZE"] for each in found} == {"8"}
    assert {each["LOCAL_WORLD_SIZE"] for each in found} == {"4"}
    assert {each["MASTER_ADDR"] for each in found} == {"node1"}
    (port,) = {int(each["MASTER_PORT"]) for each in found}
    assert 20000 <= port < 32000
    assert {place.threads for place in places} == {12}
    assert [place.is_first for place in places] == [True] + [False] * 7
    other = find_place("slurm", 2, 4, task_of(0, 4, SLURM_STEP_ID="1"))
    assert other.port != port  # two runs of one job at a time


def test_this_machine_starts_all_processes() -> None:
    place = find_place("local", 1, 3, {"SLURM_PROCID": "5", "RANK": "7"})
    assert place == this_machine(3)
    assert place.is_alone
    assert [place.variables(n)["RANK"] for n in range(3)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("launcher", "nodes", "changes", "message"),
    [
        ("local", 2, {}, "trainer.num_nodes is 2, but trainer.launcher=local"),
        (
            "slurm",
            1,
            {},
            "srun started 8 tasks, but trainer.num_nodes=1 and trainer.devices=4 make 4; .*=1 .*=4",
        ),
        (
            "slurm",
            2,
            {"SLURM_STEP_ID": ""},
            "SLURM_STEP_ID is not set, .*start it with `srun python train.py",
        ),
        ("slurm", 2, {"SLURM_PROCID": "3"}, "number 0 on node 0, .*--distribution=block"),
        ("slurm", 2, {"SLURM_JOB_NODELIST": "node[a"}, "SLURM_JOB_NODELIST is .*not a list of hosts"),
        ("torchrun", 2, {}, "RANK is not set, .*start it with `torchrun"),
    ],
)
def test_processes_that_do_not_fit_the_config_are_refused(
    launcher: str, nodes: Any, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        find_place(launcher, nodes, 4, task_of(0, 4, **changes))


def test_only_the_first_launcher_prints_a_common_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "LAST_WORDS_S", 0.0)
    with pytest.raises(SystemExit):
        find_place("slurm", 1, 4, task_of(5, 4))
    with pytest.raises(SystemExit):
        check_name(find_place("slurm", 2, 4, task_of(5, 4)), [])


def test_several_launchers_need_one_name() -> None:
    place = find_place("slurm", 2, 4, task_of(0, 4))
    check_name(place, ["task=rotation", "name=4711"])
    check_name(this_machine(2), [])
    with pytest.raises(RunError, match=r"name=\$SLURM_JOB_ID"):
        check_name(place, ["task=rotation"])


@pytest.mark.parametrize(
    ("short", "hosts"),
    [
        ("node1", ["node1"]),
        ("node[001-003,007],gpu5", ["node001", "node002", "node003", "node007", "gpu5"]),
        ("a-1.lan,b[9-11]-ib", ["a-1.lan", "b9-ib", "b10-ib", "b11-ib"]),
        ("r[1-2]n[08,10]", ["r1n08", "r1n10", "r2n08", "r2n10"]),
    ],
)
def test_lists_of_hosts_are_expanded(short: str, hosts: list[str]) -> None:
    assert expand_hosts(short) == hosts


@pytest.mark.parametrize("wrong", ["", ",", "node[", "node[1-x]", "node[1", "a b"])
def test_what_is_no_list_of_hosts_is_refused(wrong: str) -> None:
    with pytest.raises(RunError, match="not a list of hosts"):
        expand_hosts(wrong)


# --- sweeps ---


@pytest.mark.slow
def test_submitit_runs_a_sweep(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = ["hydra/launcher=submitit_local", "task=random,rotation", "name=job"]
    train(tmp_path, "-m", *SMALL, *sweep, "trainer=ddp", "hydra.launcher.timeout_min=10")
    found = {
        str(path.parent.relative_to(tmp_path)): results_of(path.parent)
        for path in tmp_path.rglob("results.json")
    }
    assert found.keys() == {"random/fake/convnet/job_0", "rotation/fake/convnet/job_1"}
    assert {results.run.status for results in found.values()} == {"finished"}
    assert {results.run.devices for results in found.values()} == {2}
