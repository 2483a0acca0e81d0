"""Tables from runs: of a benchmark, or with one row per series of runs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ssl_lightning.artifacts.run_facts import BenchmarkRow
from ssl_lightning.config.keys import KEYS
from ssl_lightning.report import notes
from ssl_lightning.report.benchmark import Benchmark, Column
from ssl_lightning.report.collect import Collection, ReportedRun
from ssl_lightning.report.learned_classes import with_learned_classes
from ssl_lightning.report.opening import opening
from ssl_lightning.report.summary import column, headline
from ssl_lightning.report.table import Duplicates, Row, Table, compare, group_by, make_rows, pretext_rows

FULL = "full"  # budget of runs that name none
NAMED = tuple(key.name for key in KEYS if key.series == "named")  # facts at the start of a series' label
LONGEST = 80  # characters of a label with its overrides
HIDDEN = tuple(key.name for key in KEYS if key.series == "hidden")  # overrides omitted from labels


def benchmark_tables(found: Collection, benchmark: Benchmark, budget: str | None) -> list[Table]:
    """Make the tables of a benchmark, one per budget.

    Args:
        found: All runs.
        benchmark: Expected rows and columns.
        budget: Budget to show; None: all budgets of the runs.
    """
    names = {benchmark.name, *benchmark.includes}
    own = [run for run in found.runs if run.facts.benchmark and run.facts.benchmark.name in names]
    budgets = group_by(own, lambda run: _place(run).budget or FULL)
    tables = []
    for name in [budget] if budget else (sorted(budgets) or [FULL]):
        runs = with_learned_classes(budgets.get(name, []))
        named = group_by(runs, lambda run: _place(run).row)
        order = [*benchmark.rows, *sorted(set(named) - set(benchmark.rows))]
        groups = {row: named.get(row, []) for row in order}
        table = _table(f"{benchmark.name}-{name}", benchmark.columns, groups, benchmark.pretext, found)
        table.title = f"{benchmark.title} (budget {name})"
        table.comparisons = compare(benchmark, table.rows)
        # runs of another benchmark have a table of their own
        left = notes.left_out(sum(not run.facts.benchmark for run in found.runs), "of no benchmark")
        if budget:
            left += notes.left_out(len(own) - len(runs), "of another budget")
        table.notes[notes.MISSING] = notes.missing(benchmark.rows, table.columns, table.rows)
        table.notes[notes.OTHERS] = left
        tables.append(table)
    return tables


def series_tables(found: Collection) -> list[Table]:
    """Make one table per probed data set, with one row per series of runs, and one of runs without figures.

    Raises:
        ValueError: There is no finished run; the message lists the runs found.
    """
    found = replace(found, runs=with_learned_classes(found.runs))
    series = group_by(found.runs, series_key)
    labels = series_labels(series)
    groups = {labels[key]: runs for key, runs in series.items()}
    finished = [run for run in found.runs if run.finished]
    tables, shown = [], set()
    for data in dict.fromkeys(run.probed(record) for run in finished for record in run.probes):
        table = _table(f"runs-{data}", headline_columns(finished, data), groups, {}, found)
        table.title = f"Runs, probed on {data}"
        if table.rows:
            tables.append(table)
            shown.add(data)
    unprobed = {label: [r for r in runs if r.finished and not r.probes] for label, runs in groups.items()}
    table = _assembled("runs-unprobed", [], groups, *pretext_rows(unprobed), found)
    table.title = "Runs without figures of probes"
    table.notes[notes.MEASURED] = notes.pretexts(table.rows)
    if table.rows:
        tables.append(table)
    hidden = [run for run in finished if run.probes and not shown & set(map(run.probed, run.probes))]
    if tables:
        tables[0].notes[notes.OTHERS] = notes.left_out(len(hidden), "without a figure that a table shows")
    for table in tables[1:]:  # the first table tells it for all
        table.notes[notes.UNFINISHED] = table.notes[notes.SKIPPED] = []
    if not tables:
        listed = [f"{run.name} ({run.facts.status})" for run in found.runs]
        listed += [f"{name} ({reason})" for name, reason in found.skipped.items()]
        raise ValueError(f"no finished run; found: {', '.join(listed)}")
    return tables


def headline_columns(runs: Sequence[ReportedRun], data: str) -> list[Column]:
    """Return the columns of a run's own summary, for all figures on one data set."""
    records = [record for run in runs for record in run.probes if run.probed(record) == data]
    columns: dict[str, Column] = {}
    for record in headline(records):
        # None too, so that the figure of all labels is no column of a share
        where: dict[str, Any] = {key: record.protocol.get(key) for key in ("k", "k_shot", "fraction")}
        where |= {"probe": record.probe, "metric": record.metric}
        columns.setdefault(column(record), Column(column(record), data=data, where=where))
    return list(columns.values())


def series_key(run: ReportedRun) -> str:
    """Return the key shared by the runs of a series.

    Old runs without `series_sha256` are grouped by command; without a command, each is its own series.
    """
    facts = run.facts
    if facts.series_sha256:
        return facts.series_sha256
    same = repr(sorted(shown_overrides(run))) if facts.command else facts.config_sha256
    return " ".join([*(getattr(facts, key) for key in sorted(NAMED)), same])


def series_labels(series: Mapping[str, Sequence[ReportedRun]]) -> dict[str, str]:
    """Give each series a unique label: its task, then its data and backbone and the overrides that differ.

    If labels are still equal, or longer than a line of a table takes, the folder of the first run names them.
    """
    facts = {key: [str(getattr(runs[0].facts, name)) for name in NAMED] for key, runs in series.items()}
    differs = [len(set(values)) > 1 for values in zip(*facts.values(), strict=True)]
    differs[:1] = [True]  # the task names the row
    plain = {
        key: " · ".join(text for text, shown in zip(of, differs, strict=True) if shown)
        for key, of in facts.items()
    }
    labels: dict[str, str] = {}
    for label, keys in _inverted(plain).items():
        given = {key: shown_overrides(series[key][0]) for key in keys}
        common = set.intersection(*map(set, given.values()))
        own = {key: " ".join([label, *(o for o in given[key] if o not in common)]) for key in keys}
        if max(map(len, own.values())) > LONGEST:
            own = dict.fromkeys(own, label)
        for text, alike in _inverted(own).items():
            labels |= {key: text if len(alike) == 1 else f"{text} ({series[key][0].name})" for key in alike}
    return labels


def shown_overrides(run: ReportedRun) -> list[str]:
    """Return the overrides of a run's command, except for hidden keys and keys named in the label.

    Of a key given twice, the last value counts.
    """
    try:
        words = shlex.split(run.facts.command or "")
    except ValueError:  # an open quote in a foreign file
        words = []
    given = {word.lstrip("+~").partition("=")[0]: word for word in words if "=" in word}
    return [word for key, word in given.items() if key not in NAMED + HIDDEN and not key.startswith("hydra.")]


def _place(run: ReportedRun) -> BenchmarkRow:
    return cast(BenchmarkRow, run.facts.benchmark)  # only called for runs that have one


def _table(
    name: str,
    columns: Sequence[Column],
    groups: Mapping[str, Sequence[ReportedRun]],
    pretext: Mapping[str, str],
    found: Collection,
) -> Table:
    finished = {row: [run for run in runs if run.finished] for row, runs in groups.items()}
    return _assembled(name, columns, groups, *make_rows(finished, columns, pretext), found)


def _assembled(
    name: str,
    columns: Sequence[Column],
    groups: Mapping[str, Sequence[ReportedRun]],
    rows: list[Row],
    passed: Duplicates,
    found: Collection,
) -> Table:
    parts = {
        notes.MEASURED: notes.measured(rows, columns),
        notes.GAIN: notes.gains(rows),
        notes.MISSING: [],
        notes.SEEDS: notes.seeds(rows),
        notes.MACHINES: notes.machines(rows),
        notes.VERDICTS: notes.verdicts(rows),
        notes.UNFINISHED: notes.unfinished(groups),
        notes.DUPLICATES: notes.duplicates(passed),
        notes.SEVERAL: notes.several(rows),
        notes.OTHERS: [],
        notes.SKIPPED: notes.skipped(found.skipped),
    }
    names = [each.name for each in columns]
    said = opening(rows, names)
    return Table(re.sub(r"[^\w.-]+", "_", name), "", names, rows, notes=parts, opening=said)


def _inverted(texts: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, text in texts.items():
        found.setdefault(text, []).append(key)
    return found
