"""Features, encoded once and cached, and the probes that read them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

SPLITS = ("train", "heldout", "test")
Record = dict[str, Any]
Loader = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SplitFeatures:
    """One split as a trunk sees it.

    Args:
        labels: `(N,)` int64.
        maps: By side g of the pooling grid and by stage: `(N, C, h, w)` floats with h, w <= g; a map that
            is smaller than the grid is kept as it is.
    """

    labels: Tensor
    maps: dict[int, dict[str, Tensor]]

    def flat(self, pool: int, stage: str) -> Tensor:
        """Features `(N, C * h * w)` of a stage."""
        return self.maps[pool][stage].flatten(1)


@dataclass(frozen=True)
class Features:
    """The labelled splits as one trunk sees them, stages from shallow to deep."""

    train: SplitFeatures
    heldout: SplitFeatures
    test: SplitFeatures

    @property
    def stages(self) -> list[str]:
        """Names of the stages: stage1, stage2, ..."""
        return list(next(iter(self.test.maps.values())))

    def labelled(self, pool: int, stage: str) -> tuple[Tensor, Tensor]:
        """Features and labels of train and held-out images together."""
        features = torch.cat([self.train.flat(pool, stage), self.heldout.flat(pool, stage)])
        return features, torch.cat([self.train.labels, self.heldout.labels])


class Probe(ABC):
    """One downstream evaluation of frozen features. Nothing in it may be chosen on the test split."""

    name: str
    pool: int  # side of the grid that stage maps are average-pooled to

    def check(self, counts: Mapping[str, int], num_classes: int) -> None:  # noqa: B027  # nothing to check is fine
        """Refuse, before any work starts, what cannot run on so many labelled images of each split.

        Raises:
            ValueError: What does not fit.
        """

    @abstractmethod
    def run(self, features: Features, num_classes: int) -> list[Record]:
        """Return a record per stage and metric, without branch and trained, which the caller knows."""

    def record(self, stage: str, metric: str, value: float, n: int, **protocol: Any) -> Record:
        """One figure of the test split with its protocol, as in results.json."""
        return {
            "probe": self.name,
            "stage": stage,
            "split": "test",
            "metric": metric,
            "value": value,
            "n": n,
            "protocol": protocol,
        }


def run_probes(
    branches: Mapping[str, nn.Module],
    probe_input: Callable[[Tensor], Tensor],
    probes: Mapping[str, Probe],
    loaders: Mapping[str, Loader],
    *,
    num_classes: int,
    precision: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
) -> tuple[list[Record], dict[str, float]]:
    """Encode each branch once and run every probe on it.

    With several processes each encodes its part of the images, and the first solves the probes.

    Args:
        branches: Trunks by name.
        probe_input: Turns `(B, C, H, W)` floats in [0, 1] into what the trunks take.
        probes: By name.
        loaders: For each split, batches of uint8 images and labels.
        num_classes: K.
        precision: Makes the autocast context of the forward pass.
        device: Where the trunks are.

    Returns:
        Records (on the first process; none elsewhere), and the seconds by part: `encode_s`, `linear_s`, ...
    """
    records: list[Record] = []
    seconds = {"encode_s": 0.0} | {f"{name}_s": 0.0 for name in probes}
    pools = sorted({probe.pool for probe in probes.values()})
    for branch, trunk in branches.items():
        began = time.perf_counter()
        splits = {
            split: encode(trunk, probe_input, loaders[split], pools, precision=precision, device=device)
            for split in SPLITS
        }
        seconds["encode_s"] += time.perf_counter() - began
        if dist.is_initialized() and dist.get_rank() != 0:
            continue
        for name, probe in probes.items():
            began = time.perf_counter()
            found = probe.run(Features(**splits), num_classes)
            seconds[f"{name}_s"] += time.perf_counter() - began
            records += [record | {"branch": branch} for record in found]
    if dist.is_initialized():
        dist.barrier()
    return records, seconds


def encode(
    trunk: nn.Module,
    probe_input: Callable[[Tensor], Tensor],
    loader: Loader,
    pools: Iterable[int],
    *,
    precision: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
) -> SplitFeatures:
    """Encode a split in one pass: every stage, average-pooled to every grid that is asked for.

    The trunk is put into eval mode, and back into what it was. Nothing waits for the device until the end.
    """
    was_training = trunk.training
    trunk.eval()
    labels: list[Tensor] = []
    parts: dict[tuple[int, str], list[Tensor]] = {}
    with torch.inference_mode():
        for images, targets in loader:
            pixels = images.to(device, non_blocking=True).float().div_(255)
            with precision():
                maps = trunk(probe_input(pixels))
            for number, stage_map in enumerate(maps, 1):
                for pool in pools:
                    pooled = pool_map(stage_map.float(), pool)
                    parts.setdefault((pool, f"stage{number}"), []).append(pooled)
            labels.append(targets)
    trunk.train(was_training)
    sizes = [len(part) for part in labels]
    merged: dict[int, dict[str, Tensor]] = {}
    for (pool, stage), part in parts.items():
        merged.setdefault(pool, {})[stage] = gather_in_order(torch.cat(part), sizes)
        part.clear()  # the copy is made: the parts need not outlive it
    return SplitFeatures(gather_in_order(torch.cat(labels).to(device), sizes), merged)


def pool_map(stage_map: Tensor, side: int) -> Tensor:
    """Average-pool `(B, C, H, W)` to `(B, C, min(H, side), min(W, side))`; smaller maps stay as they are."""
    height, width = stage_map.shape[-2:]
    return F.adaptive_avg_pool2d(stage_map, (min(height, side), min(width, side)))


def gather_in_order(mine: Tensor, sizes: list[int]) -> Tensor:
    """Join the parts of all processes in the order that one process would have seen.

    Args:
        mine: `(N_rank, ...)`, this process's rows: its share of batch 0, of batch 1, and so on.
        sizes: Number of its rows in each batch; processes may differ by one, and in the last batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, sizes)
    longest = max(sum(other) for other in everyone)
    padded = mine.new_zeros(longest, *mine.shape[1:])
    padded[: len(mine)] = mine
    gathered = [torch.empty_like(padded) for _ in everyone]
    dist.all_gather(gathered, padded)
    shares = [part[: sum(other)].split(other) for part, other in zip(gathered, everyone, strict=True)]
    batches = max(len(share) for share in shares)
    return torch.cat([share[b] for b in range(batches) for share in shares if b < len(share)])
