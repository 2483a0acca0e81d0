"""Mean IoU over the classes that at least one run of a table learns, beside the mean over all classes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ssl_lightning.artifacts.records import Record
from ssl_lightning.report.collect import ReportedRun

METRIC = "miou_learned"
LEARNED = 0.05  # least held-out IoU of a learned class

Kind = tuple[str, str, tuple[str, ...]]  # probe, probed data, class names


def with_learned_classes(runs: Sequence[ReportedRun]) -> list[ReportedRun]:
    """Add to the segmentation figures of each share of labels their mean over the learned classes.

    A class is learned if its IoU on held-out pictures, averaged over the draws, reaches 5 % with at least
    one backbone and share of the finished runs, trained or not. So all rows have the same set, and test
    pictures have no part in its choice. The protocol of a figure lists the set as `learned`.

    Args:
        runs: The runs of one table.
    """
    learned: dict[Kind, dict[str, bool]] = {}
    for run in runs:
        for record in run.probes if run.finished else ():
            if "class_draws" in record.protocol and record.metric == "miou":
                found = learned.setdefault(_kind(run, record), {})
                for name, iou in _means(record.protocol["class_draws"]["heldout"]).items():
                    found[name] = found.get(name, False) or iou >= LEARNED
    sets = {kind: [name for name, there in found.items() if there] for kind, found in learned.items()}
    return [
        replace(
            run,
            probes=[
                *run.probes,
                *(
                    over_classes(record, names)
                    for record in run.probes
                    if "class_draws" in record.protocol and (names := sets.get(_kind(run, record)))
                ),
            ],
        )
        for run in runs
    ]


def over_classes(record: Record, names: Sequence[str]) -> Record:
    """Return the mean IoU of a record over some classes, of each draw and of all draws.

    Args:
        record: A figure of a share of labels.
        names: The classes; one without pixels in a split counts there as little as in the mean over all.
    """
    draws = record.protocol["class_draws"]

    def values(split: str) -> list[float]:
        means = [[iou for name in names if (iou := each[name]) is not None] for each in draws[split]]
        return [statistics.fmean(known) if known else 0.0 for known in means]

    tested = values("test")
    protocol = record.protocol | {
        "values": tested,
        "sd": statistics.stdev(tested) if len(tested) > 1 else None,
        "heldout": statistics.fmean(values("heldout")),
        "learned": list(names),
    }
    return replace(record, metric=METRIC, value=statistics.fmean(tested), protocol=protocol)


def _kind(run: ReportedRun, record: Record) -> Kind:
    names = tuple(record.protocol["class_draws"]["test"][0])
    return record.probe, run.probed(record), names


def _means(draws: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Average the IoU of each class over the draws; a class without pixels has 0."""
    return {name: statistics.fmean(each[name] or 0.0 for each in draws) for name in draws[0]}
