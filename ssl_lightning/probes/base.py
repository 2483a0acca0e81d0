"""What every probe is, and the runner that encodes once and hands the features to all of them."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ssl_lightning.encoding import Features, Loader, encode

Record = dict[str, Any]  # one row of results.json (DESIGN.md, section 3)


class Probe(ABC):
    """One downstream evaluation of frozen features.

    A probe sees three labelled splits. It chooses on `heldout`, and reads `test` for the figures it
    reports only.
    """

    @property
    @abstractmethod
    def pools(self) -> tuple[int, ...]:
        """Sizes of the grids that it wants the stage maps pooled to."""

    def check(self, counts: Mapping[str, int]) -> None:  # noqa: B027 - a probe may fit any data
        """Refuse, before any work, data that the probe cannot do.

        Args:
            counts: Labelled images of each split: train, heldout, test.

        Raises:
            ValueError: The probe and the data do not fit; says how.
        """

    @abstractmethod
    def run(self, features: Features, *, num_classes: int) -> list[Record]:
        """Evaluate one trunk.

        Returns:
            Records as `make_record` builds them.
        """


def make_record(stage: str, metric: str, value: float, n: int, protocol: dict[str, Any]) -> Record:
    """One figure on the test split; the runner adds the names of the probe and of the branch.

    Args:
        stage: Such as "stage3".
        metric: Such as "top1".
        value: In [0, 1].
        n: Test images that it rests on.
        protocol: All that one must know to compare it; `heldout` is the same figure on held-out images.
    """
    return {"stage": stage, "split": "test", "metric": metric, "value": value, "n": n, "protocol": protocol}


def run_probes(
    branches: Mapping[str, nn.Module],
    probe_input: Callable[[Tensor], Tensor],
    probes: Mapping[str, Probe],
    loaders: Mapping[str, Loader],
    *,
    num_classes: int,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, Any] | None = None,
) -> tuple[list[Record], dict[str, float]]:
    """Encode each trunk once, and run every probe on it.

    With several processes all do this on the same features and return the same: while one probed,
    the others could only wait.

    Args:
        branches: The trunks by name, on `device`.
        probe_input: Turns floats in [0, 1], `(B, C, H, W)`, into what the trunks take.
        probes: The probes by name.
        loaders: For each of train, heldout and test an iterable of `(images uint8, labels)`, each of
            which yields this process's slice of every batch.
        num_classes: K; labels lie in 0..K-1.
        precision: Makes the context that the forward pass runs in.
        device: Where features are kept and probes computed.
        protocol: How the trunks were prepared and fed, for the protocol of every record.

    Returns:
        The records, all but `trained`; and seconds by name: `encode_s`, and for each probe `<name>_s`.

    Raises:
        ValueError: A label is out of range, or the features or the data do not fit a probe.
    """
    records: list[Record] = []
    seconds = {"encode_s": 0.0, **{f"{name}_s": 0.0 for name in probes}}
    pools = {pool for probe in probes.values() for pool in probe.pools}
    for branch, trunk in branches.items():
        features = encode(trunk, probe_input, loaders, pools, precision=precision, device=device)
        seconds["encode_s"] += features.encode_s
        _check_labels(features, num_classes)
        counts = {split: len(labels) for split, labels in features.labels.items()}
        for name, probe in probes.items():
            probe.check(counts)
            began = time.perf_counter()
            with torch.inference_mode():  # closed forms only; a probe that trains leaves it again
                found = probe.run(features, num_classes=num_classes)
            seconds[f"{name}_s"] += time.perf_counter() - began
            for record in found:
                full = {"probe": name, "branch": branch, **record}
                records.append(full | {"protocol": {**record["protocol"], **(protocol or {})}})
    return records, seconds


def _check_labels(features: Features, num_classes: int) -> None:
    for split, labels in features.labels.items():
        low, high = (int(bound) for bound in labels.aminmax())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"labels of the downstream split {split!r} lie in {low}..{high}; "
                f"with {num_classes} classes they must lie in 0..{num_classes - 1}"
            )
