"""Table of probe results, for a terminal, a notebook or pandas."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ssl_lightning.artifacts.records import SPECTRAL, Record, best_stage
from ssl_lightning.core.untrusted import printable
from ssl_lightning.report.summary import cell, column, headline, unequal_classes

CAPTION = "Test results in %, ± standard error; * best stage, chosen on held-out images"
GAINS = "Test results in %, before → after, gain ± standard error; * best stage, chosen on held-out images"
SETTINGS = ("k", "k_shot", "fraction")  # entries of a protocol that distinguish results of one probe
WIDTH = 10_000  # no line of the text is wrapped or cut


@dataclass(frozen=True, repr=False)
class ProbeTable:
    """Results of probes. `print` shows them by stage and probe, as at the end of a run.

    Args:
        records: One per figure, in the order of the probes.
        notes: Lines below the table, such as the images and the normalisation.
        before: Records of the network before training, on the same test images; see `against`.
    """

    records: list[Record]
    notes: list[str] = field(default_factory=list)
    before: Sequence[Record] = ()

    def against(self, before: Self) -> Self:
        """Return this table with the figures of the network before training beside its own, and the gains.

        Raises:
            ValueError: The tables are of different test images, or share no figure.
        """
        one, two = ({_place(r): r.n for r in headline(table.records)} for table in (before, self))
        if not one.keys() & two.keys():
            raise ValueError("the tables share no stage and probe, so there is no gain to show")
        tests = {r.answers.test for r in (*before.records, *self.records) if r.answers is not None}
        if len(tests) > 1 or any(one[place] != two[place] for place in one.keys() & two.keys()):
            raise ValueError("the tables are of different test images; give probe() the same ones both times")
        return replace(self, before=before.records)

    def best(
        self, probe: str | None = None, metric: str | None = None, *, branch: str | None = None
    ) -> Record:
        """Return the result with the best held-out figure; its `value` is the figure on the test images.

        Without held-out figures, it is the result of the deepest stage.

        Args:
            probe: Name of a probe; None to choose among all.
            metric: Name of the metric; None for the metric of the first matching record.
            branch: Name of a branch; None to choose among all.

        Returns:
            The record, with `stage`, `value`, `standard_error`, `heldout` and `protocol`.

        Raises:
            ValueError: There is no such result; the message lists the names.
        """
        wanted = {"probe": probe, "metric": metric, "branch": branch}
        found = self.records
        for key, value in wanted.items():
            names = list(dict.fromkeys(getattr(record, key) for record in found))
            if value is not None and value not in names:
                raise ValueError(f"{key} is {value!r}; this table has {', '.join(names) or 'no results'}")
            found = [record for record in found if value in (None, getattr(record, key))]
        record = best_stage([record for record in found if record.metric == found[0].metric])
        if record is None:
            raise ValueError("this table has no results to choose from")
        return record

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict per record: names, settings, figures, and the complete protocol."""
        chosen = [id(record) for record in _chosen(self.records)]
        return [
            {
                "branch": record.branch,
                "stage": record.stage,
                "probe": record.probe,
                "metric": record.metric,
                **{key: record.protocol.get(key) for key in SETTINGS},
                "value": record.value,
                "standard_error": record.standard_error,
                "heldout": record.heldout,
                "n": record.n,
                "best": id(record) in chosen,
                "protocol": record.protocol,
            }
            for record in self.records
        ]

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` of `rows`.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "to_pandas() needs pandas: pip install pandas; .rows() needs no package"
            ) from None
        return pandas.DataFrame(self.rows())

    def __repr__(self) -> str:
        header, *rows = self._cells()
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for place, name in enumerate(header):
            table.add_column(name, justify="right" if place else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        text = io.StringIO()
        console = Console(file=text, width=WIDTH, color_system=None, force_jupyter=False)
        console.print(table, markup=False)
        lines = [self._caption(), *(line.rstrip() for line in text.getvalue().splitlines())]
        lines += [*unequal_classes(self.records), *self.notes]
        return "\n".join(map(printable, lines))

    def _repr_html_(self) -> str:
        header, *rows = self._cells()
        head = "".join(f"<th>{escape(name)}</th>" for name in header)
        body = "".join(
            "<tr>" + "".join(f"<td style='white-space: nowrap'>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        notes = "".join(f"<br>{escape(note)}" for note in [*unequal_classes(self.records), *self.notes])
        return (
            f"<table><caption>{self._caption()}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<small>{notes.removeprefix('<br>')}</small>"
        )

    def _caption(self) -> str:
        return GAINS if self.before else CAPTION

    def _cells(self) -> list[list[str]]:
        """Return the header and one row of texts for each branch and stage."""
        shown = headline(self.records)
        columns = list(dict.fromkeys(map(column, shown)))
        chosen = [id(record) for record in _chosen(shown)]
        texts = {_place(r): _figure(r) + ("*" if id(r) in chosen else " ") for r in shown}
        if self.before:
            both = [replace(r, trained=False) for r in headline(list(self.before))]
            both += [replace(r, trained=True) for r in shown]
            texts = {
                (name, branch, stage): cell(
                    [r for r in both if (column(r), r.branch) == (name, branch)], stage
                )
                for name, branch, stage in texts
            }
        rows = [
            [
                stage if branch == "backbone" else f"{branch} {stage}",
                *(texts.get((name, branch, stage), "") for name in columns),
            ]
            for branch, stage in dict.fromkeys((r.branch, r.stage) for r in shown)
        ]
        return [["backbone", *columns], *rows]


def _place(record: Record) -> tuple[str, str, str]:
    """Return column, branch and stage of a record."""
    return column(record), record.branch, record.stage


def _chosen(records: Sequence[Record]) -> list[Record]:
    """Return for each branch and setting of a probe the record that held-out images chose."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        setting = tuple(record.protocol.get(key) for key in SETTINGS)
        groups.setdefault((record.branch, record.probe, record.metric, setting), []).append(record)
    best = [best_stage(group) for group in groups.values()]
    return [record for record in best if record is not None and record.heldout is not None]


def _figure(record: Record) -> str:
    """Format a figure in %, with its standard error; a rank or a slope as a plain number.

    >>> _figure(Record("stage1", "top1", 0.5, 100, {}))
    '50.0 ± 5.0'
    """
    if record.metric in SPECTRAL:
        return f"{record.value:.1f}"
    error = record.standard_error
    return f"{100 * record.value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
