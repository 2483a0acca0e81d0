"""Checks of the probes, and the runner that encodes once for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.answers import short_digest
from ssl_lightning.artifacts.classifiers import FittedClassifier
from ssl_lightning.artifacts.records import Record, check_figures
from ssl_lightning.core.errors import a_kind_of
from ssl_lightning.core.messages import tell
from ssl_lightning.core.progress import watched
from ssl_lightning.features.encode import Features, Loader, encode, map_shapes
from ssl_lightning.probes._cross_validation import LABELLED, Part, fold_features, run_folds, whole_features
from ssl_lightning.probes._reliability import CorruptedLoader, corrupted_split
from ssl_lightning.probes._shared_maps import SharedMaps
from ssl_lightning.probes.base import BackboneProbe, BaseProbe, Images, Probe, ProbeContext


def check_probes(
    probes: Mapping[str, BaseProbe],
    branches: Mapping[str, nn.Module],
    inputs: Tensor,
    counts: Mapping[str, int],
) -> None:
    """Raise, before any work, if a probe does not support the data or a backbone; say what it reduces.

    Args:
        probes: The probes by name.
        branches: The backbones by name.
        inputs: Input of the backbones for one image, `(1, C, H, W)` or `(1, V, C, h, w)`.
        counts: Labelled images, as for `BaseProbe.check`.

    Raises:
        ValueError: The message names the probe and what it needs.
    """
    shapes = [map_shapes(backbone, inputs) for backbone in branches.values()]
    for name, probe in probes.items():
        if inputs.ndim == 5 and not probe.takes_views:
            raise ValueError(f"probe {name} needs whole images, not tiles: encoding.input=image")
        probe.check(counts)
        for maps in shapes:
            probe.check_backbone(maps, counts)
        for sentence in probe.fitted_limits(counts):
            tell(sentence)


def run_probes(
    branches: Mapping[str, nn.Module],
    probe_input: Callable[[Tensor], Tensor],
    probes: Mapping[str, BaseProbe],
    loaders: Mapping[str, Loader],
    *,
    class_names: tuple[str, ...],
    folder: Path,
    data: Images | None = None,
    make_trainer: Callable[..., pl.Trainer] = pl.Trainer,
    seed: int = 0,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    device: torch.device | str = "cpu",
    protocol: Mapping[str, Any] | None = None,
    keep: Callable[[str, str, FittedClassifier], None] | None = None,
    announce: Callable[[str], None] = lambda step: None,
) -> tuple[list[Record], dict[str, float]]:
    """Encode each backbone once for all feature probes, and run every probe on it.

    With several processes, all compute the same results from the same features: if one process probed, the
    others could only wait. The probes of masks and boxes and fine-tuning split their work over the processes.

    If the data have folds (`PairedDataModule.test_folds`), every probe of labels runs on each fold, and
    `merge_folds` makes one record of all folds.

    Args:
        branches: The backbones by name, on `device`.
        probe_input: Maps floats in [0, 1], `(B, C, H, W)`, to the input of the backbones.
        probes: The probes by name.
        loaders: For train, heldout and test an iterable of `(images uint8, labels)`. Each yields this
            process's slice of every batch.
        class_names: In label order; labels of the kind "classes" lie in 0..K-1.
        folder: The run folder, for pictures.
        data: Access to the images beyond `loaders`, for the probes that need it.
        make_trainer: Makes a Trainer for the hardware of the run, for the probes that train with Lightning.
        seed: Seed of the random streams of probes.
        precision: Creates the context of the forward pass.
        device: Device of the features and of the probes' computation.
        protocol: Preparation of the backbones, added to the protocol of every record.
        keep: Called with the name of the probe, the branch and the classifier that the probe fitted.
        announce: Called before each step with its name, such as "knn on backbone", to show progress.

    Returns:
        The records without `trained`; and seconds by name: `encode_s`, and for each probe `<name>_s`.

    Raises:
        ValueError: A label is out of range, or a probe does not support the features or the data.
    """
    records: list[Record] = []
    seconds = {f"{name}_s": 0.0 for name in probes}
    feature_probes = {name: probe for name, probe in probes.items() if isinstance(probe, Probe)}
    backbone_probes = {name: probe for name, probe in probes.items() if isinstance(probe, BackboneProbe)}
    pools = {pool for probe in feature_probes.values() for pool in probe.pools}
    wanted = [each for probe in backbone_probes.values() for each in probe.wanted]
    names = "\n".join(getattr(loaders.get("test"), "image_names", ())).encode(errors="surrogateescape")
    folds = [] if data is None else data.test_folds
    tested = data.downstream("test").labels if data and folds else None
    encoded = {split: loader for split, loader in loaders.items() if split != "test" or not folds}
    corruptions = dict.fromkeys(name for probe in feature_probes.values() for name in probe.corruptions)
    for split in LABELLED if folds else ("test",):
        for name in corruptions:
            encoded[corrupted_split(split, name)] = CorruptedLoader(loaders[split], name)

    def timed(name: str, branch: str, evaluate: Callable[[], list[Record]]) -> None:
        announce(f"{name} on {branch}")
        began = time.perf_counter()
        with watched(f"probe {name} on {branch}"):
            found = evaluate()
        seconds[f"{name}_s"] += time.perf_counter() - began
        for record in found:
            full_protocol = {**record.protocol, **(protocol or {})}
            answers = record.answers and replace(
                record.answers, test=short_digest(names, record.answers.labels)
            )
            records.append(
                replace(record, probe=name, branch=branch, protocol=full_protocol, answers=answers)
            )
        fitted, probes[name].fitted = probes[name].fitted, None
        if keep and fitted:
            keep(name, branch, fitted)

    def make_context(
        branch: str, backbone: nn.Module, data: Images, loaders: Mapping[str, Loader]
    ) -> ProbeContext:
        images = sum(data.label_counts[split] for split in loaders) if wanted else 0
        maps = SharedMaps(backbone, probe_input, loaders, images, wanted, precision=precision, device=device)
        return ProbeContext(
            branch, backbone, probe_input, loaders, class_names, precision, device, folder, seed, data,
            make_trainer, maps,
        )  # fmt: skip

    for branch, backbone in branches.items():
        if feature_probes:
            announce(f"encode with {branch}")
            with watched(f"probes on {branch}"):
                features = encode(backbone, probe_input, encoded, pools, precision=precision, device=device)
            seconds["encode_s"] = seconds.get("encode_s", 0.0) + features.encode_s
            _check_labels(features, len(class_names))
            parts = fold_features(features) if folds else [features]
            whole = whole_features(features) if folds else features
            for name, probe in feature_probes.items():
                for part in parts:
                    probe.check({split: len(labels) for split, labels in part.labels.items()})
                run = checking(probe, partial(probe.run, num_classes=len(class_names)))
                with torch.inference_mode():  # closed forms only; a probe that trains leaves this mode
                    timed(name, branch, partial(run_folds, probe, run, parts, whole, tested))
            del features, parts, whole

        context = partial(make_context, branch, backbone)
        all_images = context(cast(Images, data), loaders)
        of_folds = [context(fold, {split: fold.downstream(split) for split in loaders}) for fold in folds]
        for name, backbone_probe in backbone_probes.items():
            contexts = of_folds if folds and backbone_probe.targets != ("none",) else [all_images]
            evaluate = checking(backbone_probe, backbone_probe.run)
            timed(name, branch, partial(run_folds, backbone_probe, evaluate, contexts, all_images, tested))
    return records, seconds


def checking(probe: BaseProbe, run: Callable[[Part], list[Record]]) -> Callable[[Part], list[Record]]:
    """Return `run` of a probe with a check of what it returns.

    The function that is returned raises ValueError if that is no list of records, or if a record of test
    images does not tell the numbers of labelled images.
    """
    place = f"{type(probe).__name__}.run"

    def checked_run(part: Part) -> list[Record]:
        found: Any = run(part)
        wrong = (
            [each for each in found if not isinstance(each, Record)] if isinstance(found, list) else [found]
        )
        if wrong:
            inside = " in a list" * isinstance(found, list)
            raise ValueError(
                f"{place} returned {a_kind_of(wrong[0])}{inside}; it must return a list of Record"
            )
        for record in found:
            figures = replace(record, protocol={"heldout": record.heldout})
            try:
                check_figures(figures, f"{place} returned a record of {record.metric}; record")
            except ValueError as error:
                raise ValueError(str(error).removeprefix("foreign: ")) from error
            labels = record.protocol.get("labels")
            known = isinstance(labels, Mapping) and {"train", "heldout"} <= set(labels)
            if record.split == "test" and not known:
                raise ValueError(
                    f"{place} returned a record of {record.metric} whose protocol lacks the numbers of "
                    "labelled images, such as {'labels': {'train': 900, 'heldout': 100}}"
                )
        return cast(list[Record], found)

    return checked_run


def _check_labels(features: Features, num_classes: int) -> None:
    for split, labels in features.labels.items():
        low, high = (int(bound) for bound in labels.aminmax())
        if labels.ndim == 2:  # (N, K)
            if low < -1 or high > 1 or labels.shape[1] != num_classes:
                raise ValueError(
                    f"labels of the downstream split {split!r} lie in {low}..{high} for {labels.shape[1]} "
                    f"classes; multi-label targets must be 1, 0 or -1 for {num_classes}"
                )
        elif low < 0 or high >= num_classes:
            raise ValueError(
                f"labels of the downstream split {split!r} lie in {low}..{high}; "
                f"with {num_classes} classes they must lie in 0..{num_classes - 1}"
            )
