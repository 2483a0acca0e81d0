"""Notes of a table: protocol, gains, missing figures, seeds, and ignored runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ssl_lightning.artifacts.records import SPECTRAL
from ssl_lightning.core.entry import command_line
from ssl_lightning.report.benchmark import BEST_STAGE, Column
from ssl_lightning.report.collect import ReportedRun
from ssl_lightning.report.learned_classes import LEARNED
from ssl_lightning.report.learned_classes import METRIC as LEARNED_METRIC
from ssl_lightning.report.summary import cross_validated, spread_over_draws, unequal_classes
from ssl_lightning.report.table import MAIN_BRANCH, Duplicates, Row

MEASURED, GAIN, MISSING, SEEDS = "How it was measured", "Gains", "Missing", "Seeds"
VERDICTS = "Verdicts"
MACHINES = "Machines"
UNFINISHED, DUPLICATES, SEVERAL = "Not finished", "Duplicates", "Several figures"
OTHERS, SKIPPED = "Left out", "Not read"
CROSS_VALIDATED = (
    "{} cross-validated: each fifth of the labelled images is tested by what the others fit and "
    "choose. Pretraining may have seen these images, without labels."
)


def measured(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """Describe the protocol of the figures."""
    if not rows:
        return []
    records = [pick.record for row in rows for cell in row.cells.values() for pick in cell.picks]
    sizes = sorted({record.n for record in records if record.metric not in SPECTRAL})
    of = f" on {' or '.join(f'{n:,}' for n in sizes)} images" if sizes else ""
    lines = [f"Test figures in %{of}; mean ± standard deviation over seeds."]
    if any(spread_over_draws(record) is not None for record in records):
        lines.append(
            "A share of the labels: mean over draws, equal for all rows; of one seed ± is over them."
        )
    learned = dict.fromkeys(tuple(r.protocol["learned"]) for r in records if r.metric == LEARNED_METRIC)
    least = f"held-out IoU of at least {100 * LEARNED:g} % in some row and share"
    lines += [f"Learned classes ({least}): {', '.join(names)}." for names in learned]
    if any(record.metric in SPECTRAL for record in records):
        lines.append("Ranks and slopes are plain numbers at the deepest stage.")
    if any(column.stage == BEST_STAGE for column in columns):
        lines.append("Held-out images, never test images, choose the stage for each seed.")
    folded = {
        row.label: any(cross_validated(pick.record) for cell in row.cells.values() for pick in cell.picks)
        for row in rows
        if row.cells
    }
    if any(folded.values()):
        named = ", ".join(label for label, is_folded in folded.items() if is_folded)
        some = f"The figures of {named} are on other test images than the rest, and are"
        lines.append(CROSS_VALIDATED.format("Figures are" if all(folded.values()) else some))
    lines += unequal_classes(records)
    if any(row.labels for row in rows):
        leads = "that leads by more than twice the standard error"
        lines.append(f"Bold: the row pretrained without labels {leads}.")
    return lines


def pretexts(rows: Sequence[Row]) -> list[str]:
    """Describe the pretext figures of runs without probes, and name the command that adds probes."""
    lines = ["Figures of the pretext tasks on held-out images, mean over seeds; they do not compare tasks."]
    if all(run.facts.data == "folder" for row in rows for run in row.runs):
        command = f"{command_line('evaluate')} run=<run folder> data.train_dir=<folder>"
        lines.append(f"To probe a run on labelled images: {command}")
    return lines


def gains(rows: Sequence[Row]) -> list[str]:
    """Name the baselines of the gains; the less frequent ones with their figures."""
    places: dict[str, dict[str, list[str]]] = {}
    partly: list[str] = []
    for row in rows:
        for name, cell in row.cells.items():
            for over in cell.over:
                places.setdefault(over, {}).setdefault(row.label, []).append(name)
            if 0 < len(cell.gains) < len(cell.picks):
                partly.append(f"{row.label}: {name} ({len(cell.gains)} of {len(cell.picks)} seeds)")
    if not places:
        return []
    lines = []
    for number, (over, of) in enumerate(sorted(places.items(), key=lambda item: -len(item[1]))):
        where = "; ".join(f"{label} ({', '.join(names)})" for label, names in of.items())
        where = f" for {where}" if number else ""
        lines.append(f"In points over {over}, per seed{where}.")
    known = [cell for row in rows for cell in row.cells.values() if cell.gain_error is not None]
    drawn = [cell for cell in known if spread_over_draws(cell.picks[0].record) is not None]
    if len(known) > len(drawn):
        lines.append(
            "± standard error over test images and seeds; runs without answers.json count as independent."
        )
    if drawn:
        of_share = "Of a share of the labels, ± is the standard error over draws and seeds"
        lines.append(f"{of_share}; a gain counts by Student's t.")
    if any("k_shot" in cell.picks[0].record.protocol for cell in known):
        lines.append("Of k labels a class, ± is also over the draws, and test images count as independent.")
    return lines + ([f"Only for some seeds: {'; '.join(partly)}."] if partly else [])


def missing(expected: Sequence[str], columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """List expected rows and columns without figures, and unexpected rows with figures."""
    present = {row.name for row in rows}
    lacking = [name for name in expected if name not in present]
    more = sorted(present - set(expected))
    empty = [name for name in columns if rows and not any(name in row.cells for row in rows)]
    lines = [f"No figure of a finished run: {', '.join(lacking)}."] if lacking else []
    lines += [f"Columns without a figure: {', '.join(empty)}."] if empty else []
    return lines + ([f"Not among the rows of the benchmark: {', '.join(more)}."] if more else [])


def seeds(rows: Sequence[Row]) -> list[str]:
    """List rows and figures with fewer seeds than others."""
    most = max((len(row.seeds) for row in rows), default=0)
    fewer = [f"{row.label} {len(row.seeds)}" for row in rows if len(row.seeds) < most]
    lines = [f"Fewer than {most}: {', '.join(fewer)}."] if fewer else []
    partly = [
        f"{row.label}: {name} ({len(cell.picks)} of {len(row.seeds)})"
        for row in rows
        for name, cell in row.cells.items()
        if len(cell.picks) < len(row.seeds)
    ]
    return lines + ([f"Figures with fewer seeds than their row: {'; '.join(partly)}."] if partly else [])


def machines(rows: Sequence[Row]) -> list[str]:
    """Count the runs of each machine if there are several, since images/s then do not compare."""
    trained = {run.name: run for row in rows for run in row.runs if run.facts.images_per_s}
    counts = Counter(run.facts.machine or "not recorded" for run in trained.values())
    listed = "; ".join(f"{name} ({count} run{'s' * (count != 1)})" for name, count in counts.most_common())
    return [f"Images/s are of several machines and do not compare: {listed}."] if len(counts) > 1 else []


def verdicts(rows: Sequence[Row]) -> list[str]:
    """List the runs that did not learn features that help, with the reason."""
    own = [row for row in rows if row.branch == MAIN_BRANCH]  # a verdict names the other branches itself
    judged = [(row.label, run, run.facts.verdict) for row in own for run in row.used]
    return [
        f"{label}, seed {run.seed}: {verdict}."
        for label, run, verdict in judged
        if verdict is not None and verdict.kind not in ("learned", "not compared")
    ]


def unfinished(named: Mapping[str, Sequence[ReportedRun]]) -> list[str]:
    """List interrupted and failed runs by row, and whether a finished run replaces them."""
    lines = []
    for name, runs in named.items():
        finished = {run.seed for run in runs if run.finished}
        for run in runs:
            if not run.finished:
                also = "; another run with this seed finished" if run.seed in finished else ""
                lines.append(f"{name}, seed {run.seed}: {run.facts.status}, in {run.name}{also}.")
    return lines


def duplicates(passed: Duplicates) -> list[str]:
    """List finished runs of the same row and seed; the newest counts."""
    return [
        f"{what}: the newest finished run counts, {newest}; ignored: {', '.join(older)}."
        for what, (newest, older) in passed.items()
    ]


def several(rows: Sequence[Row]) -> list[str]:
    """List runs with several figures that fit a column."""
    found = [
        (f"{row.label}, seed {pick.run.seed}", name)
        for row in rows
        for name, cell in row.cells.items()
        for pick in cell.picks
        if pick.others
    ]
    if not found:
        return []
    columns: dict[str, list[str]] = {}
    for where, name in found:
        columns.setdefault(where, []).append(name)
    listed = "; ".join(f"{where}: {', '.join(names)}" for where, names in columns.items())
    return [
        "For runs with figures of several settings, the run's own figure is shown, or else its last "
        f"evaluation's: {listed}."
    ]


def left_out(count: int, reason: str) -> list[str]:
    """Count the runs that are not in the table."""
    return [f"{count} run{'s' * (count != 1)} {reason}."] if count else []


def skipped(found: Mapping[str, str]) -> list[str]:
    """List the results.json files that could not be read."""
    return [f"{name}/results.json: {reason}." for name, reason in found.items()]
