"""Batch norm over all processes, on GPUs and CPUs; results do not depend on the number of processes."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def synchronise_batch_norm(module: nn.Module, *, on_gpu: bool) -> nn.Module:
    """Make every batch norm of a module use the statistics of all processes; the weights keep their names.

    On GPUs, timm's converter inserts torch's SyncBatchNorm and keeps the activation inside timm's norms;
    torch's own converter drops it. Torch has no such layer for the CPU, so the CPU uses the layer below.

    Args:
        module: Module to change, in place on the CPU.
        on_gpu: Whether the weights will be on a GPU.

    Raises:
        ValueError: On the CPU, a batch norm has an unknown class.
    """
    from timm.layers import BatchNormAct2d, convert_sync_batchnorm  # takes a second, unused by one process

    if on_gpu:
        return convert_sync_batchnorm(module)
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, _SharedStatistics):
            if type(part) not in known:
                raise ValueError(
                    f"{name} is a {type(part).__name__}, which cannot share its statistics between processes "
                    "on the CPU; use trainer.devices=1, or trainer.sync_batchnorm=false"
                )
            kind: Any = type(part)
            part.__class__ = _synchronised(kind)  # in place, since optimizers and lists may hold the module
    return module


def check_second_derivative(module: nn.Module, reason: str) -> None:
    """Check that a module can be differentiated twice.

    Args:
        module: Perhaps with synchronised batch norms.
        reason: The setting that needs a second derivative, for the error.

    Raises:
        ValueError: It has a synchronised batch norm.
    """
    if any(isinstance(part, nn.SyncBatchNorm | _SharedStatistics) for part in module.modules()):
        raise ValueError(
            f"{reason}, and batch norm over several processes has no second derivative; use "
            "trainer.sync_batchnorm=false, trainer.devices=1, or a network without batch norm, such as "
            "task.discriminator_norm=spectral"
        )


class _SharedStatistics:
    """Normalise by the mean and variance over all processes in training; batches must have equal size."""

    def forward(self, x: Tensor) -> Tensor:
        norm = cast(Any, self)
        if not norm.training or not dist.is_initialized():
            return super().forward(x)  # type: ignore[misc]
        y, mean, variance = _Normalise.apply(x, norm.weight, norm.bias, norm.eps)
        _update_running(norm, mean, variance, x.numel() // x.shape[1])
        return norm.act(norm.drop(y)) if hasattr(norm, "act") else y  # timm's BatchNormAct2d


class _Normalise(torch.autograd.Function):
    """Batch norm by torch's CPU kernels with the statistics of all processes.

    A version in tensor operations took half of the training step of a small network, since it fuses nothing
    and converts bfloat16 to float32 and back.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, shaped like x, and mean and (biased) variance over all processes, (C,) float32."""
        # unused running statistics; without them, the statistics of a bfloat16 x would be bfloat16
        scratch = x.new_zeros(2, x.shape[1], dtype=torch.float32)
        own = torch.stack(torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0))  # (2, C)
        shares = own.new_empty(dist.get_world_size(), *own.shape)  # (processes, 2, C)
        dist.all_gather(list(shares), own)
        mean, variance = shares.mean(0)
        variance += shares[:, 0].var(0, correction=0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """With x' the normalised x: dx = scale (dy - mean(dy) - x' mean(dy x')), means over all processes."""
        (dy, *_), (x, weight, mean, variance) = grads, ctx.saved_tensors
        # torch's backward pass in evaluation mode gives the sums of dy x' and dy over this process
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        sums = torch.stack([by_weight, by_bias])  # (2, C)
        dist.all_reduce(sums)
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else inverse * weight
        slope, shift = -scale * sums * (x.shape[1] / (x.numel() * dist.get_world_size()))
        # dx = scale dy + slope x + shift, in two passes
        slope = (slope * inverse).to(x.dtype)
        shift = shift - slope * mean  # with the rounded slope, so that the mean of x cancels in dx
        zero, one = torch.zeros_like(mean), torch.full_like(mean, 1 - ctx.eps)
        dx = F.batch_norm(dy, zero, one, scale, shift, False, 0.0, ctx.eps)
        dx.addcmul_(x, slope.view(-1, *[1] * (x.ndim - 2)))
        return dx, None if weight is None else by_weight, None if weight is None else by_bias, None


@cache
def _synchronised(kind: Any) -> Any:
    return type(f"Synchronised{kind.__name__}", (_SharedStatistics, kind), {})


def _update_running(norm: Any, mean: Tensor, variance: Tensor, local: int) -> None:
    """Update running statistics like torch, with the unbiased variance over all processes."""
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked += 1
    momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    total = local * dist.get_world_size()
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(variance * total / max(1, total - 1), momentum)
