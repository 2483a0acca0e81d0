"""Conclusion of a comparison of pretext tasks, in words: which task won, by how much, and how to use it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

from ssl_lightning.artifacts.records import BALANCED
from ssl_lightning.artifacts.results import Results
from ssl_lightning.artifacts.run_facts import UNKNOWN_LABELS
from ssl_lightning.report.accuracy import (
    SIGMAS,
    Figure,
    difference,
    error_of_difference,
    judging_metric,
    probe_figure,
)
from ssl_lightning.report.titles import title, title_first
from ssl_lightning.report.verdict import TO_SEE

TAUGHT_NOTHING = ("collapsed", "pretext trivial", "pretext not learned")  # kinds of verdicts
LABEL = (
    "Without labels nobody knows which features help. Label about 10 images a class, in one folder a class, "
    "and give them as data.train_dir=."
)


@dataclass(frozen=True)
class TaskRound:
    """Runs of one round.

    Args:
        seen: Images that each task saw in training.
        runs: Results of each task, one for each seed.
        number: Number of the round; a round without time for longer runs is left out.
    """

    seen: Mapping[str, int]
    runs: Mapping[str, Sequence[Results]]
    number: int = 1


def contenders(last: TaskRound) -> list[str]:
    """Choose the tasks that go on, by their figures on held-out images, best first.

    A task that is below the best beyond the noise is out. Without labels, all go on.
    """
    figures = {task: probe_figure(runs, trained=True, heldout=True) for task, runs in last.runs.items()}
    known = {task: figure for task, figure in figures.items() if figure is not None}
    if not known:
        return list(last.runs)
    order = sorted(known, key=lambda task: -known[task].value)
    return [task for task in order if difference(known[task], known[order[0]]) == 0]


def conclusion(labels_alone: Results | None, rounds: Sequence[TaskRound], refused: Mapping[str, str]) -> str:
    """Say which task won, by how much, and how to use its backbone.

    Args:
        labels_alone: Results of the network that was trained on the labels alone, if there is one.
        rounds: Rounds in order; the figures of the last count.
        refused: Tasks that these images do not allow, with the reason.
    """
    last = rounds[-1]
    figures = {task: probe_figure(runs, trained=True) for task, runs in last.runs.items()}
    scored = {task: figure for task, figure in figures.items() if figure is not None}
    if scored:
        winner = contenders(last)[0]
        sentences = [
            *_nothing_found(rounds, labels_alone),
            *_winner(last, winner, helps=any_helps(rounds)),
            *_labels(labels_alone, scored[winner], guessing=bool(_guessing(rounds, labels_alone))),
            *_others(last, scored, winner),
            *_growth(rounds, winner),
            *_left_behind(rounds),
            *_failed_pretexts(rounds),
        ]
    else:
        sentences = _unlabelled(last)
    for task, reason in refused.items():
        sentences.append(f"Not trained: {title(task)} ({reason.removeprefix(f'{task} ')}).")
    return " ".join([*sentences, *(_advice(rounds) if scored else [LABEL])])


def any_helps(rounds: Sequence[TaskRound]) -> bool:
    """Return whether the gain of some task is beyond the noise; true where no gain is known."""
    gains = _gains(_latest(rounds))
    return not gains or any(gain > _sigmas(len(gains)) * error for gain, error in gains.values())


def _latest(rounds: Sequence[TaskRound]) -> dict[str, Sequence[Results]]:
    """Return the longest runs of each task."""
    return {task: runs for each in rounds for task, runs in each.runs.items()}


def _nothing_found(rounds: Sequence[TaskRound], labels_alone: Results | None) -> list[str]:
    """Say so if no figure is above guessing, or else if no task helps beyond the noise."""
    if guessing := _guessing(rounds, labels_alone):
        return guessing
    if any_helps(rounds):
        return []
    chance = _by_chance(_gains(_latest(rounds)))
    return [f"No task is better than {_start(rounds[-1])}, beyond the noise{chance}."]


def _winner(last: TaskRound, winner: str, *, helps: bool) -> list[str]:
    """Say what the winner reaches and gains; where no task helps, another sentence says so."""
    runs = last.runs[winner]
    before, best = (probe_figure(runs, trained=state) for state in (False, True))
    assert best is not None
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    probe = "linear probe, balanced accuracy" if judging_metric(runs[0]) == BALANCED else "linear probe"
    gain = f"{_above_or_below(best, before)} {_start(last)}, " if before is not None else ""
    sentences = [f"{title_first(winner)}: {probe} {_percent(best)} ({gain}{seeds})."]
    gained, error = _gains({winner: runs}).get(winner, (1.0, 0.0))
    if helps and abs(gained) <= SIGMAS * error:
        sentences.append(f"That {'gain' if gained > 0 else 'loss'} is within the noise.")
    return sentences


def _above_or_below(best: Figure, before: Figure) -> str:
    if best.value < before.value:
        return f"{points(before, best, sign='')} below"
    return f"{points(best, before)} over"


def _labels(labels_alone: Results | None, best: Figure, *, guessing: bool) -> list[str]:
    """Say what the labels alone reach, and whether that is more than the winner.

    Args:
        labels_alone: Results of the network that was trained on the labels alone, if there is one.
        best: Figure of the winner.
        guessing: Whether another sentence says that no figure is above guessing.
    """
    alone = probe_figure([labels_alone], trained=False) if labels_alone is not None else None
    if labels_alone is None or alone is None:
        return []
    chance = _chance(labels_alone, alone)
    guessed = chance is not None and not guessing and alone.value <= chance + SIGMAS * alone.error
    but = ", which is not above guessing" if guessed else ""
    if difference(alone, best) > 0:
        but += ", which is more: for these labels, so short a pretraining is not worth it"
    return [f"The labels alone reach {_percent(alone)}{but}."]


def _others(last: TaskRound, scored: Mapping[str, Figure], winner: str) -> list[str]:
    """Say how far the other tasks of the last round are from the winner, each task once."""
    best = scored[winner]
    tied = [task for task in contenders(last) if task != winner]
    order = {task: difference(best, figure) for task, figure in scored.items() if task != winner}
    shown = {task: f"{title(task)} {_percent(scored[task])}" for task in order}
    both = [shown[task] for task, sign in order.items() if sign == 0 and task in tied]
    tested = [shown[task] for task, sign in order.items() if sign == 0 and task not in tied]
    chosen = [title(task) for task, sign in order.items() if sign and task in tied]
    sentences = []
    record = best.records[0]
    kind = "cross-validated" if "folds" in record.protocol else "held-out"
    choosing = f"the {record.heldout_images:,} {kind} images"
    if both:
        sentences.append(f"Neither {choosing} nor the test images tell {title(winner)} from {_listed(both)}.")
    if tested:
        sentences.append(f"Test images cannot tell {title(winner)} from {_listed(tested)}.")
    if chosen:
        sentences.append(
            f"{choosing.capitalize()} put {title(winner)} first, but cannot tell it from {_listed(chosen)}."
        )
    for task, sign in order.items():
        if sign > 0:
            behind = points(best, scored[task], sign="")
            sentences.append(f"On test images {title(task)} is {behind} behind.")
        elif sign < 0:
            lead = points(scored[task], best, sign="")
            sentences.append(f"{title_first(task)} is {lead} above {title(winner)} on test images.")
    untrained = {task: probe_figure(last.runs[task], trained=False) for task in scored}
    before = {task: figure for task, figure in untrained.items() if figure is not None}
    floor = max(before, key=lambda task: before[task].value, default=winner)
    if (
        floor != winner
        and winner in before
        and (difference(before[floor], before[winner]) > 0 or before[floor].value >= best.value)
    ):
        sentences.append(
            f"Before training, the backbone reaches {_percent(before[floor])} with the input of "
            f"{title(floor)}."
        )
    return sentences


def _start(last: TaskRound) -> str:
    """Name the backbone before training."""
    given = all(run.run.labels == UNKNOWN_LABELS for runs in last.runs.values() for run in runs)
    return "the given weights" if given else "the untrained backbone"


def _gains(runs: Mapping[str, Sequence[Results]]) -> dict[str, tuple[float, float]]:
    """Return the gain of each task over its own untrained backbone, and its standard error."""
    gains = {}
    for task, each in runs.items():
        before, after = (probe_figure(each, trained=state) for state in (False, True))
        if before is not None and after is not None:
            gains[task] = after.value - before.value, error_of_difference(after, before)
    return gains


def _by_chance(gains: Mapping[str, tuple[float, float]]) -> str:
    """Name the gain that would count if its task were the only one, as a table colours it."""
    task = max(gains, key=lambda each: gains[each][0] - SIGMAS * gains[each][1])
    gain, error = gains[task]
    if gain <= SIGMAS * error:
        return ""
    return (
        f": the {100 * gain:+.1f} ± {100 * error:.1f} points of {title(task)} may be chance, as the best of "
        f"{len(gains)} gains"
    )


def _sigmas(tests: int) -> float:
    """Return the standard errors that count where the best of several figures would be chance (Bonferroni).

    >>> round(_sigmas(1), 2), round(_sigmas(6), 2)
    (2.0, 2.67)
    """
    return -NormalDist().inv_cdf(NormalDist().cdf(-SIGMAS) / tests)


def _guessing(rounds: Sequence[TaskRound], labels_alone: Results | None) -> list[str]:
    """Say so if nothing beats always answering the largest class, as where labels mean nothing."""
    rows = [*_latest(rounds).values(), *([[labels_alone]] if labels_alone else [])]
    known = [probe_figure(runs, trained=state) for runs in rows for state in (False, True)]
    figures = [figure for figure in known if figure is not None]
    chance = _chance(rows[0][0], figures[0]) if figures else None
    sigmas = _sigmas(len(figures))
    if chance is None or any(figure.value > chance + sigmas * figure.error for figure in figures):
        return []
    return [
        f"No figure is above guessing ({100 * chance:.1f} %): nothing was found in the images that tells the "
        "labels."
    ]


def _chance(run: Results, figure: Figure) -> float | None:
    """Return the accuracy of always answering the largest class; None if the answers are not stored."""
    answers = figure.records[0].answers if figure.records else None
    if answers is None:
        return None
    counts = Counter(answers.labels[at : at + 4] for at in range(0, len(answers.labels), 4))
    return 1 / len(counts) if judging_metric(run) == BALANCED else max(counts.values()) / counts.total()


def _left_behind(rounds: Sequence[TaskRound]) -> list[str]:
    """Name the tasks that a later round left out, with their last figures and the reason."""
    sentences = [] if len(rounds) > 1 else ["There was no time for longer runs."]
    for one, following in pairwise(rounds):
        figures = {task: probe_figure(runs, trained=True) for task, runs in one.runs.items()}
        out: dict[bool, list[str]] = {False: [], True: []}  # by whether only the time was short
        for task, figure in figures.items():
            if task not in following.runs and figure is not None:
                out[task in contenders(one)].append(f"{title(task)} {_percent(figure)}")
        if out[False]:
            sentences.append(f"Behind after round {one.number}: {', '.join(out[False])}.")
        if out[True]:
            sentences.append(
                f"Not behind after round {one.number}, but without time for more: {', '.join(out[True])}."
            )
    return sentences


def _advice(rounds: Sequence[TaskRound]) -> list[str]:
    """Say what would tell more, if anything is open."""
    if not any_helps(rounds):
        return ["A larger minutes= trains longer, and more labelled images lower the noise."]
    ended = [*rounds[1:], None]  # the round after each one
    for one, following in zip(rounds, ended, strict=True):
        open_tasks = contenders(one)
        if len(open_tasks) > 1 and (following is None or not set(open_tasks) <= set(following.runs)):
            return ["A larger minutes= or more labelled images may tell the tasks apart."]
    return []


def _failed_pretexts(rounds: Sequence[TaskRound]) -> list[str]:
    """Repeat the verdict of each task that collapsed, or whose pretext task taught nothing.

    Its advice is left out: a comparison sets those keys itself.
    """
    last = {task: runs[0].run.verdict for each in rounds for task, runs in each.runs.items()}
    return [
        f"{title_first(task)}: {verdict.kind}: {verdict.text.partition('. Try ')[0]}."
        for task, verdict in last.items()
        if verdict and verdict.kind in TAUGHT_NOTHING
    ]


def _growth(rounds: Sequence[TaskRound], winner: str) -> list[str]:
    """Say whether the winner still improved in the last round."""
    if len(rounds) < 2 or winner not in rounds[-2].runs:
        return []
    earlier, later = (probe_figure(each.runs[winner][:1], trained=True) for each in rounds[-2:])
    if earlier is None or later is None or rounds[-1].seen[winner] <= rounds[-2].seen[winner]:
        return []
    times = rounds[-1].seen[winner] / rounds[-2].seen[winner]
    helps = {1: "still helps", 0: "changes nothing beyond the noise", -1: "hurts"}[difference(later, earlier)]
    return [f"More training {helps}: {points(later, earlier)} for {times:.1f} times the images."]


def _unlabelled(last: TaskRound) -> list[str]:
    """Say of each task what its pretext figures tell, without the advice that all verdicts end with."""
    sentences = []
    for task, runs in last.runs.items():
        verdict = runs[0].run.verdict
        told = "no figure" if verdict is None else verdict.text.partition(f"; {TO_SEE}")[0]
        kind = f"{verdict.kind}: " if verdict and verdict.kind in TAUGHT_NOTHING else ""
        sentences.append(f"{title_first(task)}: {kind}{told}.")
    return sentences


def _listed(names: Sequence[str]) -> str:
    """Join names, the last by "or"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _percent(figure: Figure) -> str:
    return f"{100 * figure.value:.1f} ± {100 * figure.error:.1f} %"


def points(one: Figure, other: Figure, sign: str = "+") -> str:
    """Write the difference of two figures with its standard error."""
    error = error_of_difference(one, other)
    return f"{100 * (one.value - other.value):{sign}.1f} ± {100 * error:.1f} points"
