"""Cross-validation of the reported figures, where the labelled images are too few for a test split."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.artifacts.answers import Answers, short_digest
from ssl_lightning.artifacts.records import BALANCED, Protocol, Record, best_stage
from ssl_lightning.core.progress import watched
from ssl_lightning.data.io.splits import FOLDS, draw_folds
from ssl_lightning.features.encode import Features
from ssl_lightning.probes._accuracy import details, figure_of, metrics_decided_by
from ssl_lightning.probes.base import BaseProbe

LABELLED = ("train", "heldout")  # of the labelled images, without a test split
SETTINGS = ("k", "k_shot", "fraction")  # entries of a protocol that tell the figures of one probe apart
AVERAGED = ("heldout", "standard_error", "majority")
Part = TypeVar("Part")


def fold_features(features: Features) -> list[Features]:
    """Return the features with each fold of train and heldout together as the test split.

    The folds are those of `Splits.folds`.
    """
    sizes = [len(features.labels[split]) for split in LABELLED]
    part = draw_folds(torch.cat([features.labels[split] for split in LABELLED]), FOLDS)
    folds = []
    for fold in range(int(part.max()) + 1):
        tested = dict(zip(LABELLED, (part == fold).split(sizes), strict=True))

        def cut(values: Mapping[str, Tensor], tested: Mapping[str, Tensor] = tested) -> dict[str, Tensor]:
            test = torch.cat([values[split][tested[split]] for split in LABELLED])
            return {split: values[split][~tested[split]] for split in LABELLED} | {"test": test}

        pooled: dict[str, dict[Any, Tensor]] = {}
        for kind, key in product(_kinds(features), features.pooled["train"]):
            for split, values in cut(
                {split: features.pooled[split + kind][key] for split in LABELLED}
            ).items():
                pooled.setdefault(split + kind, {})[key] = values
        folds.append(replace(features, labels=cut(features.labels), pooled=pooled))
    return folds


def whole_features(features: Features) -> Features:
    """Return the features with any test split, to fit a classifier to all labelled images."""
    tests = {f"test{kind}": features.pooled[f"train{kind}"] for kind in _kinds(features)}
    labels = features.labels | {"test": features.labels["train"]}
    return replace(features, labels=labels, pooled=features.pooled | tests)


def _kinds(features: Features) -> list[str]:
    """Return what follows the name of a split: "" for its images, and a name for each corruption of them."""
    return [name.removeprefix("train") for name in features.pooled if name.startswith("train")]


def run_folds(
    probe: BaseProbe,
    run: Callable[[Part], list[Record]],
    folds: Sequence[Part],
    whole: Part,
    labels: Tensor | None,
) -> list[Record]:
    """Run a probe, or run it on each of several folds and merge its records.

    With several folds, the classifier that the probe stores is fitted again, to all labelled images.

    Args:
        probe: The probe.
        run: Runs the probe on features or on a context.
        folds: What `run` takes: of the test split, or of each fold.
        whole: The same of all labelled images.
        labels: Labels of all folds, which decide the metrics; None with a test split.
    """
    if len(folds) == 1 or labels is None:
        return run(folds[0])
    with metrics_decided_by(labels):
        return _run_folds(probe, run, folds, whole)


def _run_folds(
    probe: BaseProbe, run: Callable[[Part], list[Record]], folds: Sequence[Part], whole: Part
) -> list[Record]:
    found = []
    for number, fold in enumerate(folds, 1):
        with watched(f"fold {number} of {len(folds)}"):
            found.append(run(fold))
    records = merge_folds(found)
    if probe.fitted is not None:
        run(whole)  # its figures mean nothing
        fitted = probe.fitted.record
        figure = best_stage(_alike(fitted, records))
        if figure is None:  # nothing is known of the classifier
            probe.fitted = None
        else:
            probe.fitted = replace(probe.fitted, record=replace(figure, stage=fitted.stage))
    return records


def _alike(wanted: Record, records: Sequence[Record]) -> list[Record]:
    """Return the records with the metric and the setting of another; without any, all with its metric."""
    alike = [record for record in records if record.metric == wanted.metric]
    return [record for record in alike if _setting(record) == _setting(wanted)] or alike


def merge_folds(folds: Sequence[Sequence[Record]]) -> list[Record]:
    """Merge the records of the folds to one for each stage and setting, over the images of all folds.

    Each fold chooses its best stage on its own held-out figures. The stage that most folds choose has the
    figure of these choices, so that no image that is tested takes part in the choice of its stage. The other
    stages have their own figures.
    """
    of_folds: list[dict[tuple[Any, ...], list[Record]]] = []
    for records in folds:
        of_folds.append({})
        for record in records:
            of_folds[-1].setdefault((record.metric, *_setting(record)), []).append(record)
    if len({len(groups) for groups in of_folds}) == 1:  # a setting may be the size of the fold
        matched = list(zip(*(groups.values() for groups in of_folds), strict=True))
    else:
        common = [key for key in of_folds[0] if all(key in groups for groups in of_folds)]
        matched = [tuple(groups[key] for groups in of_folds) for key in common]
    merged = []
    for group in matched:
        chosen = [best for records in group if (best := best_stage(records)) is not None]
        stages = [record.stage for record in chosen]
        often = max(stages, key=lambda stage: (stages.count(stage), int(stage.removeprefix("stage"))))
        for alike in zip(*group, strict=True):
            nested = alike[0].stage == often
            merged.append(_merged(alike[0].stage, chosen if nested else alike))
            if nested and len(group[0]) > 1:
                merged[-1].protocol["stages"] = stages
    return merged


def _merged(stage: str, parts: Sequence[Record]) -> Record:
    """Merge the records of all folds to the record of one stage."""
    n, metric = sum(part.n for part in parts), parts[0].metric
    protocol, value = _merged_protocol(parts), _mean(parts, [part.value for part in parts])
    known = [part.answers for part in parts if part.answers is not None]
    if len(known) < len(parts):
        return Record(stage, metric, value, n, protocol)
    bits = [
        np.unpackbits(np.frombuffer(each.right, np.uint8), count=part.n)
        for each, part in zip(known, parts, strict=True)
    ]
    right, classes = np.concatenate(bits), b"".join(each.labels for each in known)
    answers = Answers(np.packbits(right).tobytes(), classes, short_digest(classes))
    if metric == BALANCED:
        labels = torch.from_numpy(np.frombuffer(classes, "<i4").astype(np.int64))
        other = (labels + 1) % (int(labels.max()) + 1)
        scores = F.one_hot(torch.where(torch.from_numpy(right).bool(), labels, other)).float()
        value, protocol = figure_of(metric, scores, labels), protocol | details(metric, scores, labels)
    return Record(stage, metric, value, n, protocol, answers=answers)


def _merged_protocol(parts: Sequence[Record]) -> Protocol:
    """Merge protocols: equal entries as they are, averages of figures, and else the entry of each fold."""
    merged: Protocol = {"cross_validated": len(parts)}
    for key in dict.fromkeys(chain(*(part.protocol for part in parts))):
        each: list[Any] = [part.protocol.get(key) for part in parts]
        if all(value == each[0] for value in each) or key == "labels":  # numbers that differ by one
            merged[key] = each[0]
        elif key in SETTINGS:
            merged[key] = min(each)
        elif key == "values":  # of each draw
            merged[key] = [_mean(parts, draw) for draw in zip(*each, strict=True)]
        else:
            merged[key] = _mean(parts, each) if key in AVERAGED else each
    if "values" in merged:
        merged["sd"] = statistics.stdev(merged["values"])
    return merged


def _mean(parts: Sequence[Record], values: Sequence[float]) -> float:
    """Average the values of the folds over their images."""
    total = sum(value * part.n for value, part in zip(values, parts, strict=True))
    return total / sum(part.n for part in parts)


def _setting(record: Record) -> tuple[Any, ...]:
    return tuple(record.protocol.get(key) for key in SETTINGS)
