"""Which processes of a run a launcher starts: all of them, or the one that SLURM or torchrun asks for.

On several machines `srun` or `torchrun` starts a launcher for each device, and each of these starts one
process. They say in the environment which one it is, and where all of them meet. Without torch, as
`launch` is.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ssl_lightning.core.errors import RunError

LOCAL, SLURM, TORCHRUN = "local", "slurm", "torchrun"  # trainer.launcher
PORTS = range(20000, 32000)  # where the processes of a SLURM job meet; below those that systems give out
NAME, NUMBERS = r"[\w.-]+", r"\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"
HOSTS = f"(?:{NAME}|{NUMBERS})+"  # hosts in SLURM's short form, such as node[001-003,007]
LAST_WORDS_S = 5.0  # srun ends all tasks as soon as one fails, and the first is to say why before
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # torchrun itself listens on MASTER_PORT, not rank 0


@dataclass(frozen=True)
class Place:
    """The processes that one launcher starts, and the run that they are part of.

    Args:
        count: Processes started here, with consecutive ranks.
        first: Rank of the first of them.
        world: Processes of the whole run.
        per_node: Processes on each machine.
        address: Host on which rank 0 runs.
        port: TCP port there; None: one that is free on this machine.
        threads: Cores that each process has; None: those of this machine, divided among its processes.
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
        """Whether this launcher prepares the run folder, which the others only read."""
        return self.first == 0

    @property
    def is_alone(self) -> bool:
        """Whether it starts all processes of the run."""
        return self.count == self.world

    def variables(self, number: int) -> dict[str, str]:
        """What the process with this number, counted here, finds in its environment."""
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
    """Every process of a run on one machine."""
    return Place(processes, world=processes, per_node=processes)


def find_place(launcher: str, nodes: int, devices: int, environment: Mapping[str, str]) -> Place:
    """Find out which processes of a run are to be started here.

    Args:
        launcher: `trainer.launcher`: local, slurm or torchrun.
        nodes: `trainer.num_nodes`.
        devices: Processes on each machine.
        environment: Variables of this process.

    Raises:
        RunError: The launcher is none of these, is not the one that started us, or started other processes.
    """
    if launcher == LOCAL:
        if isinstance(nodes, int) and nodes > 1:  # what is wrong otherwise is said where all values are
            raise RunError(
                f"error: trainer.num_nodes is {nodes}, but trainer.launcher=local starts processes on this "
                "machine only; use trainer=slurm under srun, or trainer=torchrun"
            )
        return this_machine(devices)
    if launcher not in PLACES:
        raise RunError(f"error: trainer.launcher is {launcher!r}; allowed are {', '.join([LOCAL, *PLACES])}")
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise RunError(f"error: trainer.num_nodes is {nodes!r}; allowed is a whole number, 1 or more")
    return PLACES[launcher](nodes, devices, environment)


def slurm_place(nodes: int, devices: int, environment: Mapping[str, str]) -> Place:
    """The process that `srun` started; see `find_place`."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_NTASKS")
    job, step, rank, node, local, tasks = _numbers(names, environment, SLURM, "srun python train.py ...")
    options = f"--nodes={nodes} --ntasks-per-node={devices}"
    _check_number(rank, tasks, nodes, devices, f"srun started {tasks} tasks", options)
    if rank != node * devices + local:
        raise RunError(
            f"error: SLURM task {rank} is number {local} on node {node}, which has {devices} devices; "
            "srun must number the tasks node by node, with as many on each: --distribution=block"
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
    """The process that `torchrun` started; see `find_place`."""
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_PORT")
    rank, local, node, world, port = _numbers(names, environment, TORCHRUN, "torchrun ... train.py ...")
    options = f"--nnodes={nodes} --nproc-per-node={devices}"
    _check_number(rank, world, nodes, devices, f"torchrun started {world} processes", options)
    assert rank == node * devices + local, "torchrun numbers processes node by node"
    store = environment.get(AGENT_STORE) == "True"
    address = environment.get("MASTER_ADDR", "127.0.0.1")
    return Place(1, first=rank, world=world, per_node=devices, address=address, port=port, agent_store=store)


PLACES = {SLURM: slurm_place, TORCHRUN: torchrun_place}


def restarts(environment: Mapping[str, str]) -> int:
    """How often SLURM or torchrun has started this job again."""
    return sum(int(environment.get(n) or 0) for n in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"))


def check_name(place: Place, overrides: Sequence[str]) -> None:
    """Refuse several launchers without a run folder that is the same for all of them.

    Raises:
        RunError: The command line gives no name, so that each would take the time of day.
    """
    if place.is_alone or any(each.lstrip("+").startswith(("name=", "folder=")) for each in overrides):
        return
    raise _said_once(
        place.first,
        "error: each of the launchers on several devices finds the run folder for itself; "
        "give it a name, which must be new: name=$SLURM_JOB_ID",
    )


def expand_hosts(hosts: str) -> list[str]:
    """Write out SLURM's short form of a list of hosts, as `scontrol show hostnames` does.

    Raises:
        RunError: It is no such list.

    >>> expand_hosts("node[001-003,007],gpu5")
    ['node001', 'node002', 'node003', 'node007', 'gpu5']
    """
    if not re.fullmatch(f"{HOSTS}(?:,{HOSTS})*", hosts):
        raise RunError(f"error: SLURM_JOB_NODELIST is {hosts!r}, which is no list of hosts")
    found: list[str] = []
    for entry in re.findall(HOSTS, hosts):
        parts = [list(_choices(part)) for part in re.findall(f"{NAME}|{NUMBERS}", entry)]
        found += ["".join(each) for each in itertools.product(*parts)]
    return found


def _choices(part: str) -> Iterator[str]:
    """What a part of a host's name may be: itself, or in brackets numbers and ranges of them."""
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
            f"process; start it by `{command}`, or give trainer.launcher=local trainer.num_nodes=1"
        )
    return [int(environment[name]) for name in names]


def _check_number(rank: int, started: int, nodes: int, devices: int, what: str, options: str) -> None:
    if started != nodes * devices:
        raise _said_once(
            rank,
            f"error: {what}, but trainer.num_nodes={nodes} and trainer.devices={devices} make "
            f"{nodes * devices}; start one for each device: {options}",
        )


def _said_once(rank: int, message: str) -> BaseException:
    """The error of the first launcher, and the quiet end of all others, which find the same."""
    if rank == 0:
        return RunError(message)
    time.sleep(LAST_WORDS_S)
    return SystemExit(1)
