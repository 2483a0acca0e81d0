"""Processes that a launcher starts: all ranks, or one rank for SLURM or torchrun; imports no torch."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ssl_lightning.core.entry import command_line
from ssl_lightning.core.errors import RunError

LOCAL, SLURM, TORCHRUN = "local", "slurm", "torchrun"  # trainer.launcher
RANK_NAMES = {SLURM: "SLURM_PROCID", TORCHRUN: "RANK"}  # environment variables
GPU = ("gpu", "cuda")  # trainer.accelerator
GPU_FILES = ("/dev/nvidiactl", "/dev/kfd")
PORTS = range(20000, 32000)  # for the processes of a SLURM job; below the ports that systems assign
NAME, NUMBERS = r"[\w.-]+", r"\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"
HOSTS = f"(?:{NAME}|{NUMBERS})+"  # hosts in SLURM's short form, such as node[001-003,007]
LAST_WORDS_S = 5.0  # srun ends all tasks once one fails; rank 0 prints the error first
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # torchrun listens on MASTER_PORT, not rank 0


@dataclass(frozen=True)
class Place:
    """Processes that one launcher starts, as part of a run.

    Args:
        count: Number of processes that this launcher starts, with consecutive ranks.
        first: Lowest rank among them.
        world: Number of processes of the run.
        per_node: Number of processes on each machine.
        address: Host of rank 0.
        port: TCP port of rank 0; None for a free port of this machine.
        threads: Cores per process; None divides the cores of this machine among its processes.
        agent_store: Whether the launcher's own store listens on the port (torchrun).
    """

    count: int
    first: int = 0
    world: int = 0
    per_node: int = 0
    address: str = "127.0.0.1"
    port: int | None = None
    threads: int | None = None
    agent_store: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this launcher prepares the run folder; the other launchers only read it."""
        return self.first == 0

    @property
    def is_alone(self) -> bool:
        """Whether this launcher starts all processes of the run."""
        return self.count == self.world

    def variables(self, number: int) -> dict[str, str]:
        """Return the environment variables of the process `number`, counted from 0 in this launcher."""
        node, local = divmod(self.first + number, self.per_node)
        found = {
            "RANK": self.first + number,
            "LOCAL_RANK": local,
            "NODE_RANK": node,
            "WORLD_SIZE": self.world,
            "LOCAL_WORLD_SIZE": self.per_node,
            "MASTER_ADDR": self.address,
            "MASTER_PORT": self.port,
        } | ({AGENT_STORE: True} if self.agent_store else {})
        return {name: str(value) for name, value in found.items()}


def this_machine(processes: int) -> Place:
    """Return the place of a run with all processes on this machine."""
    return Place(processes, world=processes, per_node=processes)


def count_devices(accelerator: str, devices: int | str) -> int:
    """Count the processes on this machine.

    Args:
        accelerator: `trainer.accelerator`.
        devices: `trainer.devices`: 1 or more; "auto" or -1 for one per GPU, or one on the CPU.

    Raises:
        RunError: This machine lacks the requested GPUs.

    >>> count_devices("cpu", "auto"), count_devices("cpu", 2)
    (1, 2)
    """
    gpus = _count_gpus(accelerator)
    if accelerator in GPU and not gpus:
        raise RunError(
            f"error: trainer.accelerator is {accelerator!r}, but torch sees no GPU here; "
            "use trainer=cpu, or check the driver with `python -m torch.utils.collect_env`"
        )
    if devices in ("auto", -1):
        return max(1, gpus)
    if 0 < gpus < int(devices):
        raise RunError(
            f"error: trainer.devices is {devices}, but torch sees {gpus} GPUs here; lower it, or use "
            "trainer=cpu; srun needs --gpus-per-node, not --gpus-per-task"
        )
    return int(devices)


def _count_gpus(accelerator: str) -> int:
    """Count the usable GPUs; import torch, which takes seconds, only if a GPU may exist."""
    if accelerator not in GPU and not (accelerator == "auto" and any(map(os.path.exists, GPU_FILES))):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_place(launcher: str, nodes: int, devices: int, environment: Mapping[str, str]) -> Place:
    """Return the processes of a run that this launcher starts.

    On several machines `srun` or `torchrun` starts a launcher for each device, and each launcher starts one
    process. The environment tells its rank and the address of rank 0.

    Args:
        launcher: `trainer.launcher`: local, slurm or torchrun.
        nodes: `trainer.num_nodes`.
        devices: Processes on each machine.
        environment: Environment variables of this process.

    Raises:
        RunError: Another launcher started this process, or it started a wrong number of processes.
    """
    if launcher == LOCAL:
        if nodes > 1:
            raise RunError(
                f"error: trainer.num_nodes is {nodes}, but trainer.launcher=local starts processes on this "
                "machine only; use trainer=slurm under srun, or trainer=torchrun"
            )
        return this_machine(devices)
    return PLACES[launcher](nodes, devices, environment)


def slurm_place(nodes: int, devices: int, environment: Mapping[str, str]) -> Place:
    """Return the place of the process that `srun` started; see `find_place`."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_NTASKS")
    start = f"srun {command_line('train')} ..."
    job, step, rank, node, local, tasks = _numbers(names, environment, SLURM, start)
    options = f"--nodes={nodes} --ntasks-per-node={devices}"
    _check_number(rank, tasks, nodes, devices, f"srun started {tasks} tasks", options)
    if rank != node * devices + local:
        raise RunError(
            f"error: SLURM task {rank} is number {local} on node {node}, which has {devices} devices; "
            "srun must number the tasks node by node, the same number on each: --distribution=block"
        )
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    cores = environment.get("SLURM_CPUS_PER_TASK", "")
    return Place(
        1,
        first=rank,
        world=tasks,
        per_node=devices,
        address=environment.get("MASTER_ADDR") or expand_hosts(hosts)[0],
        port=int(environment.get("MASTER_PORT") or PORTS[(job + 101 * step) % len(PORTS)]),
        threads=int(cores) if cores.isdigit() else None,
    )


def torchrun_place(nodes: int, devices: int, environment: Mapping[str, str]) -> Place:
    """Return the place of the process that `torchrun` started; see `find_place`."""
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_PORT")
    script = command_line("train").removeprefix("python ").replace("ssl-lightning", "-m ssl_lightning")
    rank, local, node, world, port = _numbers(names, environment, TORCHRUN, f"torchrun ... {script} ...")
    options = f"--nnodes={nodes} --nproc-per-node={devices}"
    _check_number(rank, world, nodes, devices, f"torchrun started {world} processes", options)
    assert rank == node * devices + local, "torchrun numbers processes node by node"
    store = environment.get(AGENT_STORE) == "True"
    address = environment.get("MASTER_ADDR", "127.0.0.1")
    return Place(1, first=rank, world=world, per_node=devices, address=address, port=port, agent_store=store)


PLACES = {SLURM: slurm_place, TORCHRUN: torchrun_place}


def restarts(environment: Mapping[str, str]) -> int:
    """Count the restarts of this job by SLURM or torchrun."""
    return sum(int(environment.get(n) or 0) for n in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def check_name(place: Place, overrides: Sequence[str]) -> None:
    """Raise if several launchers would use different run folders.

    Raises:
        RunError: The command line gives no name, so each launcher would use its own time of day.
    """
    if place.is_alone or any(each.lstrip("+").startswith(("name=", "folder=")) for each in overrides):
        return
    raise first_launcher_error(
        place.first,
        "error: the launchers of several devices need one name for their run folder; "
        "give a new name, such as name=$SLURM_JOB_ID",
    )


def launcher_rank(launcher: object, environment: Mapping[str, str]) -> int:
    """Return the rank of this launcher in a run, even for an invalid `trainer.launcher`."""
    rank = environment.get(RANK_NAMES.get(str(launcher), ""), "")
    return int(rank) if rank.isdigit() else 0


def first_launcher_error(rank: int, message: str) -> BaseException:
    """Return the error for the first launcher, and a silent exit for the others, which fail alike."""
    if rank == 0:
        return RunError(message)
    time.sleep(LAST_WORDS_S)
    return SystemExit(1)


def expand_hosts(hosts: str) -> list[str]:
    """Expand SLURM's short form of a list of hosts, as `scontrol show hostnames` does.

    Raises:
        RunError: The text is not a list of hosts.

    >>> expand_hosts("node[001-003,007],gpu5")
    ['node001', 'node002', 'node003', 'node007', 'gpu5']
    """
    if not re.fullmatch(f"{HOSTS}(?:,{HOSTS})*", hosts):
        raise RunError(f"error: SLURM_JOB_NODELIST is {hosts!r}, which is not a list of hosts")
    found: list[str] = []
    for entry in re.findall(HOSTS, hosts):
        parts = [list(_choices(part)) for part in re.findall(f"{NAME}|{NUMBERS}", entry)]
        found += ["".join(each) for each in itertools.product(*parts)]
    return found


def _choices(part: str) -> Iterator[str]:
    """Yield the values of a part of a host name: the part itself, or the numbers in its brackets."""
    if not part.startswith("["):
        yield part
        return
    for each in part[1:-1].split(","):
        first, _, last = each.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield str(number).zfill(len(first))


def _numbers(names: Sequence[str], environment: Mapping[str, str], launcher: str, command: str) -> list[int]:
    missing = [name for name in names if not environment.get(name, "").isdigit()]
    if missing:
        raise RunError(
            f"error: trainer.launcher is {launcher!r}, but {missing[0]} is not set, so it did not start this "
            f"process; start it with `{command}`, or give trainer.launcher=local trainer.num_nodes=1"
        )
    return [int(environment[name]) for name in names]


def _check_number(rank: int, started: int, nodes: int, devices: int, what: str, options: str) -> None:
    if started != nodes * devices:
        raise first_launcher_error(
            rank,
            f"error: {what}, but trainer.num_nodes={nodes} and trainer.devices={devices} make "
            f"{nodes * devices}; start one for each device: {options}",
        )
