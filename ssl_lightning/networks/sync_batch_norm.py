"""Batch norm over all processes, on the CPU too, so that their number does not change what is computed."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def synchronise_batch_norm(module: nn.Module, *, on_gpu: bool) -> nn.Module:
    """Make every batch norm of a module use the statistics of all processes; the weights keep their names.

    On GPUs these are torch's layers, put in by timm, which knows its norms with an activation inside
    (torch's own converter drops the activation). torch has none for the CPU, and ours are used there.

    Raises:
        ValueError: On the CPU, a batch norm of a class that is not known here.
    """
    if on_gpu:
        return convert_sync_batchnorm(module)
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, _SharedStatistics):
            if type(part) not in KNOWN:
                raise ValueError(
                    f"{name} is a {type(part).__name__}, which cannot share its statistics between processes "
                    "on the CPU; use trainer.devices=1, or trainer.sync_batchnorm=false"
                )
            kind: Any = type(part)
            part.__class__ = _synchronised(kind)  # in place: optimizers and lists may hold it
    return module


class _SharedStatistics:
    """In training, normalise by the mean and variance over all processes; shards must be of equal size."""

    def forward(self, x: Tensor) -> Tensor:
        norm = cast(Any, self)
        if not norm.training or not dist.is_initialized():
            return super().forward(x)  # type: ignore[misc]
        across = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        full = x.float()  # statistics in fp32 under autocast, as torch does
        mean = _mean_over_processes(full.mean(across))  # (C,)
        centred = full - mean.view(shape)
        variance = _mean_over_processes(centred.square().mean(across))  # (C,)
        _update_running(norm, mean.detach(), variance.detach(), x.numel() // x.shape[1])
        scale = torch.rsqrt(variance + norm.eps) * (1 if norm.weight is None else norm.weight)
        y = centred * scale.view(shape)
        y = (y if norm.bias is None else y + norm.bias.view(shape)).to(x.dtype)
        return norm.act(norm.drop(y)) if isinstance(norm, BatchNormAct2d) else y


@cache
def _synchronised(kind: Any) -> Any:
    return type(f"Synchronised{kind.__name__}", (_SharedStatistics, kind), {})


def _update_running(norm: Any, mean: Tensor, variance: Tensor, local: int) -> None:
    """As torch does, with the unbiased variance of all samples."""
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked += 1
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    total = local * dist.get_world_size()
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * total / max(1, total - 1), momentum)


class _MeanOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _MeanOverProcesses.forward(ctx, grads[0])  # each process's loss depends on all shares


def _mean_over_processes(x: Tensor) -> Tensor:
    return cast(Tensor, _MeanOverProcesses.apply(x))
