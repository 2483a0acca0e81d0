"""Encode the labelled splits once with a frozen backbone; all feature probes share the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.progress import tracked

Loader = Iterable[Sequence[Tensor]]  # batches of images (B, C, H, W) uint8 and labels (B,) or (B, K)
Grid = tuple[int, int]


@dataclass(frozen=True)
class Features:
    """Pooled stage maps of one backbone on the labelled splits, encoded once.

    Args:
        labels: For each split `(N,)` int64, in the order of its loader. For multi-label data `(N, K)` with
            1, 0 and -1 (ignored).
        stages: Names of the stages, shallow to deep: stage1, stage2, ...
        grids: For each stage and requested pool size g, the pooled grid (rows, columns). It is g x g, or
            smaller if the map has fewer cells: adaptive pooling would only repeat values.
        pooled: For each split, stage and grid `(N, channels * rows * columns)` float32.
        encode_s: Duration of the pass in seconds.
        images_per_s: Throughput over all splits and all processes.
    """

    labels: dict[str, Tensor]
    stages: tuple[str, ...]
    grids: dict[tuple[str, int], Grid]
    pooled: dict[str, dict[tuple[str, Grid], Tensor]]
    encode_s: float
    images_per_s: float

    def get(self, split: str, stage: str, pool: int) -> Tensor:
        """Return the features `(N, D)` of one stage, pooled to at most `pool` x `pool` cells.

        Raises:
            ValueError: There is no such split or stage, or no probe names the size in its `pools`.
        """
        if split not in self.pooled:
            raise ValueError(f"there are no features of {split!r}; encoded are {', '.join(self.pooled)}")
        return self.pooled[split][stage, self._grid(stage, pool)]

    def dims(self, stage: str, pool: int) -> int:
        """Return the number of features D of one stage at this pool size."""
        return next(iter(self.pooled.values()))[stage, self._grid(stage, pool)].shape[1]

    def _grid(self, stage: str, pool: int) -> Grid:
        if stage not in self.stages:
            raise ValueError(f"there are no features of {stage!r}; the backbone has {', '.join(self.stages)}")
        if (stage, pool) not in self.grids:
            sizes = sorted({size for _, size in self.grids})
            raise ValueError(
                f"there are no features of pool size {pool}; `pools` of the probe must name every size "
                f"that it reads, and names {', '.join(map(str, sizes))}"
            )
        return self.grids[stage, pool]


def encode(
    backbone: nn.Module,
    probe_input: Callable[[Tensor], Tensor],
    loaders: Mapping[str, Loader],
    pools: Iterable[int],
    *,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | str = "cpu",
) -> Features:
    """Encode every image of every split once, in eval mode, then restore the modes of the backbone.

    With several processes, each encodes its slice of every global batch. The slices are contiguous, as
    `torch.tensor_split` cuts them. Each process ends up with all features in the original order.

    Args:
        backbone: Maps the output of `probe_input` to the list of stage maps, shallow to deep.
        probe_input: Maps floats in [0, 1], `(B, C, H, W)`, to the backbone's input. It may return several
            inputs for each image, `(B, V, C, h, w)`; their stage maps are averaged.
        loaders: For each split an iterable of `(images, labels)`.
        pools: Pool sizes that the probes need.
        precision: Creates the context of the forward pass, such as autocast.
        device: Device of the backbone; the features stay there.

    Raises:
        ValueError: A split is empty, images differ in shape, or features are not finite because the backbone
            diverged.
    """
    began = time.perf_counter()
    sizes = sorted(set(pools))
    grids: dict[tuple[str, int], Grid] = {}
    labels: dict[str, Tensor] = {}
    expected: torch.Size | None = None  # shape of the images
    pooled: dict[str, dict[tuple[str, Grid], Tensor]] = {}
    with evaluating(backbone), not_compiled(backbone), torch.inference_mode():
        for split, loader in loaders.items():
            parts: dict[tuple[str, Grid], list[Tensor]] = {}
            label_parts: list[Tensor] = []
            for images, batch_labels in tracked(loader, f"encode {split}", "batches"):
                expected = expected or images.shape[1:]
                if images.shape[1:] != expected:
                    raise ValueError(
                        f"the downstream split {split!r} has images of shape {tuple(images.shape[1:])}, and "
                        f"other images are {tuple(expected)}; all must have one shape (C, H, W)"
                    )
                label_parts.append(batch_labels.to(device, torch.int64, non_blocking=True))
                if not len(images):  # the last batch may have fewer images than there are processes
                    continue
                with precision():
                    x = images.to(device, non_blocking=True).float().div_(255)
                    maps = stage_maps(backbone, probe_input(x))
                for depth, stage_map in enumerate(maps, 1):
                    height, width = stage_map.shape[-2:]
                    grids |= {(f"stage{depth}", g): (min(g, height), min(g, width)) for g in sizes}
                    full = stage_map.float()
                    for grid in {grids[f"stage{depth}", g] for g in sizes}:
                        cells = F.adaptive_avg_pool2d(full, grid).flatten(1)  # (B, C * rows * columns)
                        parts.setdefault((f"stage{depth}", grid), []).append(cells)
            if not parts:
                raise ValueError(f"the downstream split {split!r} has no images for this process")
            counts = [len(part) for part in label_parts]
            labels[split] = gather_batches(torch.cat(label_parts), counts)
            # one at a time, to avoid a second copy of all features in memory
            pooled[split] = {key: gather_batches(torch.cat(parts.pop(key)), counts) for key in list(parts)}
    for split, tensors in pooled.items():
        for (stage, _), values in tensors.items():
            if (
                not torch.stack(values.aminmax()).isfinite().all()
            ):  # ten times faster than testing each element
                raise ValueError(f"features of {stage} on {split} are not finite; did the training diverge?")
    seconds = time.perf_counter() - began  # the check above waited for the device
    stages = tuple(dict.fromkeys(stage for stage, _ in grids))
    total = sum(len(values) for values in labels.values())
    return Features(labels, stages, grids, pooled, seconds, total / seconds)


class ClassLabels:
    """The images of a loader with one label each, `(B,)` int64; -1 without a single label."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels, *_ in self.loader:
            one_each = isinstance(labels, Tensor) and labels.ndim == 1
            yield images, labels if one_each else torch.full((len(images),), -1)


def stage_maps(backbone: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Run a backbone on `(B, C, H, W)`, or on several inputs for each image, `(B, V, C, h, w)`.

    Returns:
        Stage maps `(B, C_i, H_i, W_i)`, shallow to deep. Several inputs give their mean in float32.
    """
    if inputs.ndim == 4:
        return backbone(inputs)
    return [maps.float().unflatten(0, inputs.shape[:2]).mean(1) for maps in backbone(inputs.flatten(0, 1))]


def map_shapes(backbone: nn.Module, image: Tensor) -> dict[str, tuple[int, int, int]]:
    """Return the shape `(C, H, W)` of each stage, found by encoding one input; changes no state."""
    try:
        with evaluating(backbone), torch.no_grad():
            maps = stage_maps(backbone, image)
    except (AssertionError, RuntimeError) as error:  # transformers of timm take one size only
        size = "x".join(map(str, image.shape[-2:]))
        raise ValueError(f"the backbone takes no images of {size} px: {error}") from error
    return {f"stage{depth}": tuple(each.shape[1:]) for depth, each in enumerate(maps, 1)}  # type: ignore[misc]


@contextmanager
def evaluating(module: nn.Module) -> Any:
    """Hold a module in eval mode, then restore the previous mode of each submodule."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def not_compiled(module: nn.Module) -> Any:
    """Run a module in eager mode: a pass takes less time than compiling for its batch size."""
    if all(part._compiled_call_impl is None for part in module.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def gather_batches(local: Tensor, counts: Sequence[int]) -> Tensor:
    """Gather the rows of all processes in the order of the global batches.

    Args:
        local: `(n, ...)` rows of this process, batch after batch.
        counts: Rows of each of these batches; empty batches at the end may be omitted.

    Returns:
        `(N, ...)` on every process; `local` itself with one process.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    world = dist.get_world_size()
    all_counts: list[list[int]] = [[] for _ in range(world)]
    dist.all_gather_object(all_counts, list(counts))
    longest = max(sum(counts) for counts in all_counts)
    padded = torch.cat([local, local.new_zeros(longest - len(local), *local.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return torch.cat(parts)[global_order(all_counts, longest).to(local.device)]


def global_order(counts: Sequence[Sequence[int]], stride: int) -> Tensor:
    """Return the positions of the rows of the global batches in the padded parts of all processes.

    Args:
        counts: For each process, its number of rows in each batch.
        stride: Rows of each process including padding.

    Returns:
        `(N,)` int64 index: batch after batch, within a batch process after process.

    >>> global_order([[2, 1], [1]], 3).tolist()  # batches of 3 and 1 on two processes
    [0, 1, 3, 2]
    """
    batches = max(len(c) for c in counts)
    table = torch.tensor([[*c, *[0] * (batches - len(c))] for c in counts])  # (processes, batches)
    starts = table.cumsum(1) - table + stride * torch.arange(len(table))[:, None]
    rows, begin = table.T.flatten(), starts.T.flatten()  # in the output order
    return torch.arange(int(rows.sum())) + (begin - (rows.cumsum(0) - rows)).repeat_interleave(rows)
