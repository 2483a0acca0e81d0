"""Sharded data parallel (`trainer=fsdp`) by torch's FSDP2, with checkpoints of full tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

PRECISIONS = ("32-true", "bf16-mixed")
SMALL = 2**16  # parameters; gathering a smaller block on its own costs more than the memory it saves
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # modules whose parts may be called one by one


class FullySharded(ModelParallelStrategy):
    """Shard weights, gradients and optimizer state over all processes of the run (Zhao et al. 2023).

    Each network gathers its own weights for a forward and a backward pass, block by block, and frees them
    afterwards. Autocast converts to bfloat16 instead of FSDP's own mixed precision, so that steps equal
    those under DDP. Checkpoints equal DDP's in names and shapes: a run may resume with either strategy.

    Args:
        processes: Number of processes of the run.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(
            data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
        self._outline: pl.LightningModule | None = None  # the task before it was sharded

    def shard(self, task: pl.LightningModule) -> None:
        """Shard a task in place; the task calls this from `configure_model`.

        Raises:
            ValueError: A parameter belongs to none of the networks, so it would not be sharded.
        """
        if self._outline is not None:
            return
        cast(Any, task)._device_mesh = None  # set by Lightning; a copy must not hold it
        self._outline = copy.deepcopy(task).cpu()
        task.to(memory_format=torch.contiguous_format)  # the only format of FSDP2; images stay channels-last
        mesh = self.device_mesh["data_parallel"]
        for network in cast(Any, task).networks():
            learns = [parameter.requires_grad for parameter in network.parameters()]
            if not learns:
                continue
            # without a backward pass, the network would keep gathered weights while its shards change
            again = None if any(learns) else True
            for part in (*blocks(network), network):
                fully_shard(part, mesh=mesh, reshard_after_forward=again)
        left = [n for n, p in task.named_parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if left:
            raise ValueError(
                f"{left[0]} of {type(task).__name__} is a parameter of the task and of none of its "
                "networks, but trainer.strategy=fsdp shards networks only; use trainer.strategy=ddp"
            )

    def unsharded(self) -> pl.LightningModule:
        """Return an unsharded copy of the task on the device. Every process must call this."""
        assert self._outline is not None
        assert self.lightning_module is not None
        task = copy.deepcopy(self._outline).to(self.root_device)
        full = StateDictOptions(full_state_dict=True)
        task.load_state_dict(get_model_state_dict(self.lightning_module, options=full))
        return task.train(self.lightning_module.training)

    # Lightning saves full tensors. Its loading fails if an optimizer has no state for a parameter (SGD
    # without momentum, a parameter without a gradient so far), and it keeps `fused` from a DDP checkpoint.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: sharded_like(own.get(name), value) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: sharded_like(parameters[number], value) for key, value in values.items()}
                for number, values in saved["state"].items()
            }
            for group in saved["param_groups"]:
                if "fused" in group:
                    group["fused"] = None  # torch lacks some fused kernels for sharded weights
            optimizer.load_state_dict({**saved, "state": state})


def check_sharded(*, sync_batchnorm: bool) -> None:
    """Raise if sharded weights would keep batch-norm statistics of their own in each process.

    Raises:
        ValueError: The message names the option.
    """
    if not sync_batchnorm:
        raise ValueError(
            "trainer.sync_batchnorm is false; trainer.strategy=fsdp needs true, or each process would keep "
            "its own batch-norm statistics"
        )


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether the weights are sharded; then all processes must read them together."""
    return isinstance(trainer.strategy, FullySharded)


def unsharded_task(trainer: pl.Trainer, task: Any) -> Any:
    """Return the task, or an unsharded copy if it is sharded. Every process must call this."""
    return trainer.strategy.unsharded() if isinstance(trainer.strategy, FullySharded) else task


def broadcast_flag(flag: bool) -> bool:
    """Broadcast rank 0's flag over CPU, without a GPU sync."""
    if dist.get_world_size() == 1:
        return flag
    shared = torch.tensor(flag)
    dist.broadcast(shared, 0)
    return bool(shared)


def local_parts(tensors: list[Tensor]) -> list[Tensor]:
    """Return the parts of sharded tensors that this process holds, and other tensors unchanged."""
    return [each.to_local() if isinstance(each, DTensor) else each for each in tensors]


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Return the L2 norm of all values. If the tensors are sharded, every process must call this."""
    norm = torch.nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a network that are large enough to gather on their own, such as ResNet blocks."""
    for part in network.children():
        if isinstance(part, CONTAINERS):
            yield from blocks(part)
        elif sum(p.numel() for p in part.parameters()) >= SMALL:
            yield part


def sharded_like(own: Any, value: Any) -> Any:
    """Shard a full tensor like `own` if their shapes are equal; return other values unchanged."""
    if not isinstance(own, DTensor) or not isinstance(value, Tensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device).contiguous(), own.device_mesh, own.placements)
