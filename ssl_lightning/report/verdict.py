"""Verdict of a run: did pretraining help, judged from the figures of the run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssl_lightning.artifacts.records import BALANCED, SPECTRAL, Record, best_stage
from ssl_lightning.artifacts.results import Results
from ssl_lightning.artifacts.run_facts import Verdict
from ssl_lightning.report.accuracy import FLAT, critical_value, gain_error
from ssl_lightning.report.summary import UNITS, column

TOO_WIDE = 0.05  # two standard errors above this tell too little
SOLVED = 0.995  # accuracy of a pretext task that hardly teaches any more
EASY = 0.9  # accuracy of a pretext task that may have a shortcut, if the features gained nothing
NEAR_CHANCE = 1.2  # accuracy relative to guessing, below which the pretext task was not learned
JUDGING = tuple(metric for metric in UNITS if metric not in SPECTRAL)
SLOWER, SPARING = "a lower optimizer.lr", "task.freeze_until=0.1 task.backbone_lr_factor=0.1"
APART = "the keys of the task that keep the embeddings of different images apart"
TO_SEE = "to see whether the features help"
FIRST = ("linear", "knn", "finetune")  # probes that judge, before all others


def judge(
    results: Results,
    *,
    chances: Mapping[str, float] | None = None,
    collapsed: Sequence[str] = (),
    loaded: bool = False,
) -> Verdict:
    """Judge whether pretraining improved the backbone.

    The figure is the test figure of the best stage, chosen on held-out images, before and after pretraining:
    of the linear probe, or else of the next probe that the run has. The error of the gain pairs the answers
    to each test image (`report.accuracy.paired_error`).

    Args:
        results: Results of a finished run that trained.
        chances: Accuracy of guessing by the name of the score, such as `acc`; None for a task without one.
        collapsed: Branches and heads whose features collapsed at the end of the training.
        loaded: Whether the run started from given weights, not from random ones.
    """
    pretext = _pretext(results, chances or {})
    before, after = _pair(results.probes, "backbone")
    if collapsed:
        what = f"the features of {' and '.join(collapsed)} hardly differ between images"
        gain = f"; {_gain(before, after, loaded)}" if before and after else ""
        check = f", or check {APART}" if all(name.endswith("head") for name in collapsed) else ""
        return Verdict("collapsed", f"{what}{gain}. Try {SLOWER}{check}")
    if before is None or after is None:
        return _without_gain(results, pretext)
    difference, error = _difference(before, after)
    text = _gain(before, after, loaded)
    if pretext is not None and difference <= error:
        return Verdict(pretext.kind, f"{pretext.text}; {text}")
    if difference > error:
        return Verdict("learned", f"{text}{_others(results, loaded)}")
    if difference < -error:
        return Verdict("worse than before", f"{text}. Try {SPARING if loaded else SLOWER}, or another task")
    if error > TOO_WIDE:
        return Verdict("too few images to tell", f"{text}, measured on {after.n:,} test images")
    return Verdict("no better than before", f"{text}. {_advice(results, chances or {})}, or try another task")


def _advice(results: Results, chances: Mapping[str, float]) -> str:
    """Say what may help where training changed nothing."""
    accuracy = _pretext_accuracies(results, chances)
    if not accuracy or min(accuracy.values()) < EASY:
        return "Train longer"
    shown = ", ".join(f"val/{name} {value:.1%}" for name, value in accuracy.items())
    return f"The pretext task is easy ({shown}): look for shortcuts (docs/shortcuts.md)"


def _pretext(results: Results, chances: Mapping[str, float]) -> Verdict | None:
    """Judge the pretext task by its accuracies on held-out images; None if it teaches, or has no accuracy."""
    accuracy = _pretext_accuracies(results, chances)
    if not accuracy:
        return None

    def shown(chosen: Sequence[str]) -> str:
        return "; ".join(f"val/{n} {accuracy[n]:.1%}, guessing gives {chances[n]:.1%}" for n in chosen)

    if missed := [name for name in accuracy if accuracy[name] < NEAR_CHANCE * chances[name]]:
        return Verdict("pretext not learned", f"the task is hardly better than guessing: {shown(missed)}")
    if min(accuracy.values()) >= SOLVED:
        return Verdict("pretext trivial", f"the task is solved and teaches no more: {shown(list(accuracy))}")
    return None


def _pretext_accuracies(results: Results, chances: Mapping[str, float]) -> dict[str, float]:
    """Return the accuracies of the pretext task on held-out images by score; none if it is labels."""
    if results.run.labels not in (None, "none"):
        return {}
    return {name: results.pretext[f"val/{name}"] for name in chances if f"val/{name}" in results.pretext}


def _without_gain(results: Results, pretext: Verdict | None) -> Verdict:
    """Judge a run without figures before and after pretraining by its pretext task."""
    labelled = any(record.trained for record in results.probes)
    missing = "set probe_untrained=true" if labelled else "probe about 10 labelled images a class"
    advice = f"{TO_SEE}, {missing}"
    if pretext is not None:
        return Verdict(pretext.kind, f"{pretext.text}; {advice}")
    shown = ", ".join(f"{name} {value:.4g}" for name, value in results.pretext.items())
    return Verdict("not compared", f"{shown or 'no validation'}; {advice}")


def _pair(records: Sequence[Record], branch: str) -> tuple[Record | None, Record | None]:
    """Return the figures of the judging probe before and after pretraining, at their best stages.

    Where the classes are unequal in number, its balanced accuracy judges. Of shares of the labels the largest
    does.
    """
    own = [r for r in records if r.branch == branch and r.metric in JUDGING and r.evaluation is None]
    found = []
    for name in dict.fromkeys(column(r) for r in own if "k_shot" not in r.protocol):
        of = [r for r in own if column(r) == name]
        before, after = (best_stage([r for r in of if r.trained == state]) for state in (False, True))
        if before is not None and after is not None:
            found.append((before, after))

    def order(pair: tuple[Record, Record]) -> tuple[int, float, bool]:
        probe, share = pair[1].probe, pair[1].protocol.get("fraction") or 1.0
        place = FIRST.index(probe) if probe in FIRST else len(FIRST)
        return place, -share, pair[1].metric != BALANCED

    return min(found, key=order, default=(None, None))


def _difference(before: Record, after: Record) -> tuple[float, float]:
    """Return the gain, and the size below which it may be chance."""
    error = gain_error([before], [after])
    return after.value - before.value, FLAT if error is None else critical_value([before], [after]) * error


def _gain(before: Record, after: Record, loaded: bool) -> str:
    difference, error = after.value - before.value, gain_error([before], [after])
    plus = "" if error is None else f" ± {100 * error:.1f}"
    than = "weights it started from" if loaded else "untrained backbone"
    place = "above" if difference >= 0 else "below"
    metric = UNITS[after.metric] or "top-1"
    at, of = ("", "") if before.stage == after.stage else (f" at {after.stage}", f" at {before.stage}")
    return (
        f"{column(after).removesuffix(metric).strip()} {metric} {after.value:.1%}{at} is "
        f"{100 * abs(difference):.1f}{plus} points {place} the {than}{of}"
    )


def _others(results: Results, loaded: bool) -> str:
    """Add the gain of every other branch, such as a discriminator."""
    texts = []
    for branch in dict.fromkeys(r.branch for r in results.probes if r.branch != "backbone"):
        before, after = _pair(results.probes, branch)
        if before is not None and after is not None:
            texts.append(f"; {branch}: {_gain(before, after, loaded)}")
    return "".join(texts)
