"""What a table is made of: columns that select figures, the rows and the published figures of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError

from ssl_lightning.artifacts.results import Record
from ssl_lightning.report.summary import UNITS

BEST_STAGE = "best"


@dataclass(frozen=True)
class Column:
    """Selects the records of one column.

    Args:
        name: Its head.
        stage: "best" (the one that did best on held-out images), or such as "stage2".
        data: Name of the data that was probed; None = those of the run.
        where: Values of the record, or else of its protocol, that must be equal: probe, metric, k, ...
    """

    name: str
    stage: str = BEST_STAGE
    data: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, record: Record, probed: str, pretrained: str) -> bool:
        """Whether a record belongs here; of metrics, unless one is named, those that a summary shows."""
        if probed != (self.data or pretrained) or (
            "metric" not in self.where and record["metric"] not in UNITS
        ):
            return False
        return all(_value(record, key) == value for key, value in self.where.items())


@dataclass(frozen=True)
class Published:
    """A figure of a paper, in % (a rank is plain)."""

    row: str
    column: str
    value: float
    source: str


@dataclass(frozen=True)
class Benchmark:
    """A table to be: its name, and what is expected in it.

    Args:
        name: As runs carry it.
        title: For a person.
        rows: In the order of the table.
        columns: Likewise.
        pretext: For a row the figure of the pretext that is shown.
        published: To stand beside what is measured.
    """

    name: str
    title: str
    rows: list[str]
    columns: list[Column]
    pretext: Mapping[str, str]
    published: list[Published]


def load_benchmark(path: Path) -> Benchmark:
    """Read the `benchmark` node of a file of conf/benchmark; its interpolations stay unresolved.

    Raises:
        ValueError: There is no such file (those that there are, are named), or it lacks something.
    """
    if not path.is_file():
        there = sorted(other.stem for other in path.parent.glob("*.yaml"))
        raise ValueError(f"there is no benchmark {path.stem!r}; there are: {', '.join(there) or 'none'}")
    try:
        whole = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        node = dict(whole["benchmark"])  # type: ignore[call-overload, index, arg-type]
        columns = [_column(dict(each)) for each in node["columns"]]
        published = [
            Published(str(p["row"]), str(p["column"]), float(p["value"]), str(p["source"]))
            for p in node.get("published") or []
        ]
        rows = [str(row) for row in node["rows"]]
        return Benchmark(
            str(node["name"]), str(node.get("title") or node["name"]), rows, columns,
            dict(node.get("pretext") or {}), published,
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(f"{path} has no {error.args[0]}") from None
    except (TypeError, ValueError, YAMLError) as error:
        raise ValueError(f"{path} is not a benchmark: {error}") from None


def _column(node: dict[str, Any]) -> Column:
    return Column(str(node.pop("name")), str(node.pop("stage", BEST_STAGE)), node.pop("data", None), node)


def _value(record: Record, key: str) -> Any:
    return record[key] if key in record else record["protocol"].get(key)
