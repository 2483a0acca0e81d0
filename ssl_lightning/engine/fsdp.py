"""Sharded data parallel, `trainer=fsdp`: each process holds a part of weights, gradients and optimizer.

It is torch's FSDP2 (`fully_shard`, Zhao et al. 2023). What leaves a run is whole: checkpoints are those that
DDP writes, name by name and shape by shape, so that either goes on with what the other saved.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

PRECISIONS = ("32-true", "bf16-mixed")
SMALL = 2**16  # parameters: below it, one more collective costs more than the memory that it saves
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # whose parts are called one by one


class FullySharded(ModelParallelStrategy):
    """Shard the networks of a task over all processes of the run.

    Each network of the task gathers its own weights for a forward and a backward pass, block by block, and
    frees them afterwards. Autocast, and not FSDP's own mixed precision, makes bfloat16 of them, so that a
    step computes what a step of DDP does.

    Args:
        processes: Of the whole run.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
        self._outline: pl.LightningModule | None = None  # the task before it was sharded

    def shard(self, task: pl.LightningModule) -> None:
        """Shard a task in place; it calls this from `configure_model`.

        Raises:
            ValueError: A parameter would not be shared between the processes.
        """
        if self._outline is not None:
            return
        cast(Any, task)._device_mesh = None  # Lightning's, which no copy should hold
        self._outline = copy.deepcopy(task).cpu()
        task.to(memory_format=torch.contiguous_format)  # all that FSDP2 takes; the images stay channels-last
        mesh = self.device_mesh["data_parallel"]
        for network in task.children():
            if any(p.requires_grad for p in network.parameters()):
                for block in blocks(network):
                    fully_shard(block, mesh=mesh)
                fully_shard(network, mesh=mesh)
        whole = [n for n, p in task.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if whole:
            raise ValueError(
                f"{whole[0]} of {type(task).__name__} is a parameter of the task and of none of its "
                "networks, which trainer.strategy=fsdp shards; use trainer.strategy=ddp"
            )

    def whole(self) -> pl.LightningModule:
        """Return a copy of the task as it is now, not sharded, on the device; every process must ask."""
        assert self._outline is not None
        assert self.lightning_module is not None
        task = copy.deepcopy(self._outline)
        task.load_state_dict(self.lightning_module_state_dict())
        return task.to(self.root_device).train(self.lightning_module.training)

    # --- what is saved is whole; every process must ask ---

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return state | {"state": {number: gathered(values) for number, values in state["state"].items()}}

    # --- and is cut again when it is loaded ---

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: cut_like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            cut = {
                number: {key: cut_like(value, parameters[number]) for key, value in values.items()}
                for number, values in state["state"].items()
            }
            # of a run that was not sharded it may be true
            groups = [
                group | {"fused": None} if "fused" in group else group for group in state["param_groups"]
            ]
            optimizer.load_state_dict(state | {"state": cut, "param_groups": groups})


def check_sharded(*, sync_batchnorm: bool, compiled: bool) -> None:
    """Refuse what does not go with sharded weights.

    Raises:
        ValueError: It is asked for.
    """
    if not sync_batchnorm:
        raise ValueError(
            "trainer.sync_batchnorm is false; trainer.strategy=fsdp needs true, or each process would keep "
            "batch-norm statistics of its own"
        )
    if compiled:
        raise ValueError("compile is true, which trainer.strategy=fsdp does not do; leave it false")


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether the weights of a run are sharded, so that what reads them is done by all processes together."""
    return isinstance(trainer.strategy, FullySharded)


def whole_task(trainer: pl.Trainer, task: Any) -> Any:
    """The task, or where it is sharded a copy that is not; every process must ask."""
    return trainer.strategy.whole() if isinstance(trainer.strategy, FullySharded) else task


def first_says(wish: bool) -> bool:
    """What the first process wishes, which all others learn; on the CPU, so that no GPU is waited for."""
    if dist.get_world_size() == 1:
        return wish
    told = torch.tensor(wish)
    dist.broadcast(told, 0)
    return bool(told)


def local_parts(tensors: list[Tensor]) -> list[Tensor]:
    """The parts of sharded tensors that this process holds; others as they are."""
    return [each.to_local() if isinstance(each, DTensor) else each for each in tensors]


def total_norm(tensors: list[Tensor]) -> Tensor:
    """L2 norm of all values, of all processes where they are sharded; every process must ask."""
    norm = torch.nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts of a network that are worth gathering on their own, such as the blocks of a ResNet."""
    for part in network.children():
        if isinstance(part, CONTAINERS):
            yield from blocks(part)
        elif sum(p.numel() for p in part.parameters()) >= SMALL:
            yield part


def gathered(values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Make sharded tensors whole, one after the other; all tensors on the CPU, others too."""

    def whole(value: Any) -> Any:
        value = value.full_tensor() if isinstance(value, DTensor) else value
        return value.cpu() if isinstance(value, Tensor) else value

    return {key: whole(value) for key, value in values.items()}


def cut_like(value: Any, own: Any) -> Any:
    """Cut a whole tensor as `own` is cut, if that is sharded and of its shape."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device).contiguous(), own.device_mesh, own.placements)
