"""One pass of a frozen backbone over the labelled splits; every probe works on what it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

Loader = Iterable[Sequence[Tensor]]  # batches of images (B, C, H, W) uint8 and labels (B,) or (B, K)
Grid = tuple[int, int]


@dataclass(frozen=True)
class Features:
    """Pooled stage maps of one backbone on the labelled splits, encoded once.

    Args:
        labels: For each split `(N,)` int64, in the order of its loader; `(N, K)` of 1, 0 and -1 (ignored)
            where an image may be of several classes.
        stages: Names of the stages, shallow to deep: stage1, stage2, ...
        grids: For each stage and requested pool size g the cells (rows, columns) it was pooled to: g x g,
            or fewer where the map itself has fewer (adaptive pooling would only repeat its values).
        pooled: For each split, stage and grid `(N, channels * rows * columns)` float32.
        encode_s: Seconds that the pass took.
        images_per_s: Images of all splits over these seconds, of all processes together.
    """

    labels: dict[str, Tensor]
    stages: tuple[str, ...]
    grids: dict[tuple[str, int], Grid]
    pooled: dict[str, dict[tuple[str, Grid], Tensor]]
    encode_s: float
    images_per_s: float

    def get(self, split: str, stage: str, pool: int) -> Tensor:
        """Features `(N, D)` of one stage, pooled to at most `pool` x `pool` cells."""
        return self.pooled[split][stage, self.grids[stage, pool]]

    def dims(self, stage: str, pool: int) -> int:
        """Number of features D of one stage, so pooled."""
        return next(iter(self.pooled.values()))[stage, self.grids[stage, pool]].shape[1]


def encode(
    backbone: nn.Module,
    probe_input: Callable[[Tensor], Tensor],
    loaders: Mapping[str, Loader],
    pools: Iterable[int],
    *,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | str = "cpu",
) -> Features:
    """Encode every image of every split once, in eval mode; the modes of the backbone are restored.

    With several processes each encodes what its own loader yields, the contiguous slice that
    `torch.tensor_split` gives it of every global batch, and each ends up with all features in the
    original order.

    Args:
        backbone: Maps what `probe_input` returns to the list of stage maps, shallow to deep.
        probe_input: Turns floats in [0, 1], `(B, C, H, W)`, into what the backbone takes; or into several inputs
            for each, `(B, V, C, h, w)`, whose stage maps are averaged.
        loaders: For each split an iterable of `(images, labels)`.
        pools: Pool sizes that the probes need.
        precision: Makes the context that the forward pass runs in, such as autocast.
        device: Where the backbone is; the features stay there.

    Raises:
        ValueError: A split is empty, or features are not finite, as those of a backbone that diverged.
    """
    began = time.perf_counter()
    sizes = sorted(set(pools))
    grids: dict[tuple[str, int], Grid] = {}
    labels: dict[str, Tensor] = {}
    pooled: dict[str, dict[tuple[str, Grid], Tensor]] = {}
    with evaluating(backbone), not_compiled(backbone), torch.inference_mode():
        for split, loader in loaders.items():
            parts: dict[tuple[str, Grid], list[Tensor]] = {}
            label_parts: list[Tensor] = []
            for images, batch_labels in loader:
                label_parts.append(batch_labels.to(device, torch.int64, non_blocking=True))
                if not len(images):  # fewer images than processes: this one has none of the last batch
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
            # one at a time, so that no second copy of all features is ever held
            pooled[split] = {key: gather_batches(torch.cat(parts.pop(key)), counts) for key in list(parts)}
    for split, tensors in pooled.items():
        for (stage, _), values in tensors.items():
            if not torch.stack(values.aminmax()).isfinite().all():  # a tenth of the time of asking each
                raise ValueError(f"features of {stage} on {split} are not finite; did the training diverge?")
    seconds = time.perf_counter() - began  # the check above waited for the device
    stages = tuple(dict.fromkeys(stage for stage, _ in grids))
    total = sum(len(values) for values in labels.values())
    return Features(labels, stages, grids, pooled, seconds, total / seconds)


def class_labels(loader: Loader) -> Loader:
    """Yield the images of a loader with one label each, `(B,)` int64; -1 where they have none or several."""
    for images, labels, *_ in loader:
        one_each = isinstance(labels, Tensor) and labels.ndim == 1
        yield images, labels if one_each else torch.full((len(images),), -1)


def stage_maps(backbone: nn.Module, fed: Tensor) -> list[Tensor]:
    """Run a backbone on `(B, C, H, W)`, or on several inputs for each image, `(B, V, C, h, w)`.

    Returns:
        Stage maps `(B, C_i, H_i, W_i)`, shallow to deep; of several inputs the mean, in float32.
    """
    if fed.ndim == 4:
        return backbone(fed)
    return [maps.float().unflatten(0, fed.shape[:2]).mean(1) for maps in backbone(fed.flatten(0, 1))]


@contextmanager
def evaluating(module: nn.Module) -> Any:
    """Hold a module in eval mode; afterwards each part of it is in the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


@contextmanager
def not_compiled(module: nn.Module) -> Any:
    """Run a module as it is written: a pass is over before it is compiled for the size of its batches."""
    if all(part._compiled_call_impl is None for part in module.modules()):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def gather_batches(local: Tensor, counts: Sequence[int]) -> Tensor:
    """Put together what all processes hold of a split, in the order of the whole batches.

    Args:
        local: `(n, ...)` rows of this process, batch after batch.
        counts: Rows of each of these batches; empty last ones may be left out.

    Returns:
        `(N, ...)` on every process; `local` itself where there is only one.
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
    """Where the rows of the whole batches lie in the padded parts of all processes.

    Args:
        counts: For each process the rows that it has of each batch.
        stride: Rows that each process takes up, padding included.

    Returns:
        `(N,)` int64 index: batch after batch, within a batch process after process.

    >>> global_order([[2, 1], [1]], 3).tolist()  # batches of 3 and 1 on two processes
    [0, 1, 3, 2]
    """
    batches = max(len(c) for c in counts)
    table = torch.tensor([[*c, *[0] * (batches - len(c))] for c in counts])  # (processes, batches)
    starts = table.cumsum(1) - table + stride * torch.arange(len(table))[:, None]
    rows, begin = table.T.flatten(), starts.T.flatten()  # in the order wanted
    return torch.arange(int(rows.sum())) + (begin - (rows.cumsum(0) - rows)).repeat_interleave(rows)
