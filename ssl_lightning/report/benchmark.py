"""Benchmark definitions: columns that select figures, rows, and published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from ssl_lightning.artifacts.records import BALANCED, Measured, Record
from ssl_lightning.report.summary import UNITS

BEST_STAGE = "best"
BESIDE = (BALANCED, "miou_learned", "alpha_req", "lidar")  # metrics beside the main one of their probe
SELECTABLE = {each.name for each in fields(Measured)}  # other keys are looked up in the protocol


@dataclass(frozen=True)
class Column:
    """Selector for the records of one column.

    Args:
        name: Heading.
        stage: "best" (the best held-out figure), or a stage such as "stage2".
        data: Name of the probed data set; None: the run's own.
        where: Required values of the record or of its protocol: probe, metric, k, ...
    """

    name: str
    stage: str = BEST_STAGE
    data: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, record: Record, probed: str, pretrained: str) -> bool:
        """Tell whether a record fits; without a metric in `where`, it must be a main one of a summary."""
        main = record.metric in UNITS and record.metric not in BESIDE
        if probed != (self.data or pretrained) or not (main or "metric" in self.where):
            return False
        return all(_value(record, key) == value for key, value in self.where.items())


@dataclass(frozen=True)
class Published:
    """A published figure, in % (a rank as a plain number)."""

    row: str
    column: str
    value: float
    source: str


@dataclass(frozen=True)
class Benchmark:
    """Definition of a table.

    Args:
        name: Name in the facts of its runs.
        title: Title of the table.
        rows: Names of the rows, in order.
        columns: Columns, in order.
        pretext: Pretext figure to show, by row.
        published: Published figures for comparison.
        includes: Names of benchmarks with rows in this table; both have the same settings for them.
    """

    name: str
    title: str
    rows: list[str]
    columns: list[Column]
    pretext: Mapping[str, str]
    published: list[Published]
    includes: Sequence[str] = ()


def load_benchmark(path: Path) -> Benchmark:
    """Read the `benchmark` node of a file in conf/benchmark without resolving interpolations.

    Raises:
        ValueError: The file does not exist, or a key is missing or wrong.
    """
    if not path.is_file():
        known = sorted(other.stem for other in path.parent.glob("*.yaml"))
        raise ValueError(f"benchmark is {path.stem!r}; allowed are {', '.join(known) or 'none'}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        node = dict(content["benchmark"])  # type: ignore[call-overload, index, arg-type]
        columns = [_column(dict(each)) for each in node["columns"]]
        published = [
            Published(str(p["row"]), str(p["column"]), float(p["value"]), str(p["source"]))
            for p in node.get("published") or []
        ]
        rows = [str(row) for row in node["rows"]]
        return Benchmark(
            str(node["name"]), str(node.get("title") or node["name"]), rows, columns,
            dict(node.get("pretext") or {}), published, [str(name) for name in node.get("includes") or []],
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}") from None
    except (TypeError, ValueError, YAMLError) as error:
        raise ValueError(f"{path} is not a benchmark: {error}") from None


def _column(node: dict[str, Any]) -> Column:
    return Column(str(node.pop("name")), str(node.pop("stage", BEST_STAGE)), node.pop("data", None), node)


def _value(record: Record, key: str) -> Any:
    return getattr(record, key) if key in SELECTABLE else record.protocol.get(key)
