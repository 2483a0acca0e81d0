"""Batch norm over all processes, on the CPU too, so that their number does not change what is computed."""

from __future__ import annotations

from functools import cache
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from ssl_lightning.networks.exchange import all_gather

# Up to so many channels a CPU adds bfloat16 times a diagonal matrix in half the time of number by number
FEW = 64
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
        y, mean, variance = _Normalise.apply(x, norm.weight, norm.bias, norm.eps)
        _update_running(norm, mean, variance, x.numel() // x.shape[1])
        return norm.act(norm.drop(y)) if isinstance(norm, BatchNormAct2d) else y


class _Normalise(torch.autograd.Function):
    """Batch norm by torch's own kernels for the CPU, given the statistics of all processes.

    Written out in tensor operations it took half of the training step of a small network: nothing is
    fused there, and bfloat16 is converted to float32 and back.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y like x, and mean and (biased) variance over all processes, (C,) float32."""
        # running statistics that nobody reads: without them those of a bfloat16 x would be bfloat16
        scratch = x.new_zeros(2, x.shape[1], dtype=torch.float32)
        own = torch.stack(torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0))  # (2, C)
        shares = all_gather(own)  # (processes, 2, C)
        mean, variance = shares.mean(0)
        variance += shares[:, 0].var(0, correction=0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """With x' the normalised x: dx = scale (dy - mean(dy) - x' mean(dy x')), means over all processes."""
        (dy, *_), (x, weight, mean, variance) = grads, ctx.saved_tensors
        # as in evaluation, and of that only the sums of dy x' and of dy over this process
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
        )
        sums = all_gather(torch.stack([by_weight, by_bias])).sum(0)  # (2, C)
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else inverse * weight
        slope, shift = -scale * sums * (x.shape[1] / (x.numel() * dist.get_world_size()))
        # dx = scale dy + slope x + shift, in two passes
        slope = (slope * inverse).to(x.dtype)
        shift = shift - slope * mean  # of the rounded slope, so that the mean of x stays out of dx
        zero, one = torch.zeros_like(mean), torch.full_like(mean, 1 - ctx.eps)
        dx = _add_scaled(F.batch_norm(dy, zero, one, scale, shift, False, 0.0, ctx.eps), x, slope)
        return dx, None if weight is None else by_weight, None if weight is None else by_bias, None


def _add_scaled(to: Tensor, x: Tensor, factors: Tensor) -> Tensor:
    """Add x `(N, C, ...)` times factors `(C,)`, in place."""
    channels = len(factors)
    if x.ndim != 4 or not all(t.is_contiguous(memory_format=torch.channels_last) for t in (to, x)):
        return to.addcmul_(x, factors.view(-1, *[1] * (x.ndim - 2)))
    sums, rows = (t.permute(0, 2, 3, 1).view(-1, channels) for t in (to, x))  # a row for each pixel
    if x.dtype == torch.bfloat16 and channels <= FEW:
        sums.addmm_(rows, torch.diag(factors))
    else:  # for all pixels of a line at once, which have more numbers in a row
        sums, rows = (t.view(-1, channels * x.shape[3]) for t in (sums, rows))
        sums.addcmul_(rows, factors.repeat(x.shape[3]))
    return to


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
