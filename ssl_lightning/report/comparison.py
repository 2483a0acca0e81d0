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
from ssl_lightning.report.notes import CROSS_VALIDATED
from ssl_lightning.report.summary import cross_validated

TITLES = {
    "super_resolution": "super-resolution",
    "context_prediction": "context prediction",
    "simclr": "SimCLR",
    "pirl": "PIRL",
    "mae": "MAE",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
    "byol": "BYOL",
    "dino": "DINO",
    "lejepa": "LeJEPA",
}
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


def conclusion(labels_alone: Results | None, rounds: Sequence[TaskRound], refused: Sequence[str]) -> str:
    """Say which task won, by how much, and how to use its backbone.

    Args:
        labels_alone: Results of the network that was trained on the labels alone, if there is one.
        rounds: Rounds in order; the figures of the last count.
        refused: Tasks that these images do not allow.
    """
    last = rounds[-1]
    figures = {task: probe_figure(runs, trained=True) for task, runs in last.runs.items()}
    scored = {task: figure for task, figure in figures.items() if figure is not None}
    sentences = []
    if scored:
        winner = contenders(last)[0]
        latest = _latest(rounds)
        if not any_helps(rounds):
            chance = _by_chance(_gains(latest))
            sentences = [f"No task is better than {_start(last)}, beyond the noise{chance}."]
        sentences += _guessing([*latest.values(), *([[labels_alone]] if labels_alone else [])])
        sentences += [*_labelled(last, scored, winner), *_growth(rounds, winner), *_left_behind(rounds)]
        if len(rounds) == 1 and len(contenders(last)) > 1:
            sentences.append("There was no time for longer runs; more minutes= may tell the tasks apart.")
        if labels_alone is not None and (alone := probe_figure([labels_alone], trained=False)):
            guessing = _chance(labels_alone, alone)
            guessed = guessing is not None and alone.value <= guessing + SIGMAS * alone.error
            but = ", which is not above guessing" if guessed else ""
            sentences.append(f"The labels alone reach {_percent(alone)}{but}.")
            if difference(alone, scored[winner]) > 0:
                sentences.append("That is more: for these labels, so short a pretraining is not worth it.")
    else:
        sentences = [_unlabelled(last)]
    sentences += _failed_pretexts(rounds) if scored else []
    if any(cross_validated(record) for runs in last.runs.values() for record in runs[0].probes):
        sentences.append(CROSS_VALIDATED)
    if refused:
        sentences.append(f"Not trained, for the reason above: {', '.join(map(title, refused))}.")
    return " ".join(sentences)


def any_helps(rounds: Sequence[TaskRound]) -> bool:
    """Return whether the gain of some task is beyond the noise; true where no gain is known."""
    gains = _gains(_latest(rounds))
    return not gains or any(gain > _sigmas(len(gains)) * error for gain, error in gains.values())


def _latest(rounds: Sequence[TaskRound]) -> dict[str, Sequence[Results]]:
    """Return the longest runs of each task."""
    return {task: runs for each in rounds for task, runs in each.runs.items()}


def _labelled(last: TaskRound, scored: Mapping[str, Figure], winner: str) -> list[str]:
    """Say what the winner reaches, whether training helped, and how far the others are."""
    best, runs = scored[winner], last.runs[winner]
    untrained = {task: probe_figure(last.runs[task], trained=False) for task in scored}
    before = {task: figure for task, figure in untrained.items() if figure is not None}
    seeds = f"{len(runs)} seed{'s' * (len(runs) > 1)}"
    probe = "linear probe, balanced accuracy" if judging_metric(runs[0]) == BALANCED else "linear probe"
    gain = f"{points(best, before[winner])} over {_start(last)}, " if winner in before else ""
    sentences = [f"{_name(winner)}: {probe} {_percent(best)} ({gain}{seeds})."]
    gained, error = _gains({winner: runs}).get(winner, (1.0, 0.0))
    if abs(gained) <= SIGMAS * error:
        sentences.append(f"That {'gain' if gained > 0 else 'loss'} is within the noise.")
    if tied := [title(task) for task in contenders(last) if task != winner]:
        images = best.records[0].heldout_images
        sentences.append(
            f"The {images:,} images that choose put it first, but cannot tell it from {_listed(tied)}."
        )
    alike = []
    for task, figure in scored.items():
        if task == winner:
            continue
        order = difference(best, figure)
        if order > 0:
            sentences.append(f"{_name(task)} is {points(best, figure, sign='')} behind.")
        elif order < 0:
            sentences.append(f"{_name(task)} is {points(figure, best, sign='')} above it on test images.")
        else:
            alike.append(f"{title(task)} {_percent(figure)}")
    if alike:
        sentences.append(f"Test images cannot tell it from {_listed(alike)}.")
    floor = max(before, key=lambda task: before[task].value, default=winner)
    if floor != winner and winner in before and difference(before[floor], before[winner]) > 0:
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


def _guessing(rows: Sequence[Sequence[Results]]) -> list[str]:
    """Say so if nothing beats always answering the largest class, as where labels mean nothing."""
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
    sentences = []
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
                f"Not behind after round {one.number}, but without time for more: {', '.join(out[True])}; "
                "give more minutes=."
            )
    return sentences


def _failed_pretexts(rounds: Sequence[TaskRound]) -> list[str]:
    """Repeat the verdict of each task that collapsed, or whose pretext task taught nothing."""
    last = {task: runs[0].run.verdict for each in rounds for task, runs in each.runs.items()}
    return [
        f"{_name(task)}: {verdict}."
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


def _unlabelled(last: TaskRound) -> str:
    verdicts = [f"{_name(task)}: {runs[0].run.verdict or 'no figure'}." for task, runs in last.runs.items()]
    return " ".join([*verdicts, LABEL])


def title(task: str) -> str:
    """Return the name of a task in a sentence."""
    return TITLES.get(task, task)


def _name(task: str) -> str:
    """Return the title of a task at the start of a sentence."""
    return title(task).capitalize()


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
