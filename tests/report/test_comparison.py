"""Conclusion of a comparison: who goes on, and what is said."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.results import Results
from ssl_lightning.artifacts.run_facts import UNKNOWN_LABELS, Verdict
from ssl_lightning.report.accuracy import probe_figure
from ssl_lightning.report.comparison import TaskRound, any_helps, conclusion, contenders
from tests.artifacts.test_results import FACTS
from tests.report.test_verdict import answers


def run(test: float, heldout: float, untrained: float = 0.3, n: int = 10_000) -> Results:
    def record(value: float, trained: bool) -> Record:
        protocol = {"heldout": heldout if trained else untrained, "labels": {"heldout": 1000}}
        return Record(
            "stage1", "top1", value, n, protocol, probe="linear", branch="backbone", trained=trained
        )

    return Results(FACTS, {"val/loss": 1.0}, [record(untrained, False), record(test, True)])


def of(seen: int = 1000, **runs: Sequence[Results]) -> TaskRound:
    return TaskRound(dict.fromkeys(runs, seen), runs)


def test_heldout_figures_decide_who_goes_on() -> None:
    last = of(rotation=[run(0.4, 0.60)], jigsaw=[run(0.9, 0.50)], colorization=[run(0.4, 0.59)])
    assert contenders(last) == ["rotation", "colorization"]  # jigsaw is 10 points behind, error 2.2


def test_without_labels_all_go_on() -> None:
    bare = Results(FACTS, {"val/loss": 1.0}, [])
    assert contenders(of(rotation=[bare], jigsaw=[bare])) == ["rotation", "jigsaw"]


def test_the_winner_its_gain_and_the_distance_of_the_others() -> None:
    rotation, colorization = [run(0.60, 0.61), run(0.62, 0.6)], [run(0.605, 0.6)] * 2
    last = of(rotation=rotation, jigsaw=[run(0.5, 0.5)] * 2, colorization=colorization)
    text = conclusion(None, [last], {})
    gain = "+31.0 ± 1.1 points over the untrained backbone, 2 seeds"
    assert text.startswith(f"Rotation: linear probe 61.0 ± 1.0 % ({gain}).")
    assert "On test images jigsaw is 11.0 ± 1.1 points behind." in text
    assert (
        "Neither the 1,000 held-out images nor the test images tell rotation from colorization 60.5" in text
    )
    assert text.count("colorization") == 1
    assert text.endswith("A larger minutes= or more labelled images may tell the tasks apart.")


def test_balanced_accuracy_judges_unequal_classes() -> None:
    def with_balanced(value: float) -> Results:
        both = run(0.9, 0.9)
        more = [
            replace(
                r, metric="balanced", value=value if r.trained else 0.5,
                protocol=r.protocol | {"standard_error": 0.03, "heldout": value if r.trained else 0.5},
            )
            for r in both.probes
        ]  # fmt: skip
        return replace(both, probes=[*both.probes, *more])

    last = of(rotation=[with_balanced(0.5)], jigsaw=[with_balanced(0.8)])
    assert contenders(last) == ["jigsaw"]
    text = conclusion(None, [last], {})
    assert text.startswith("Jigsaw: linear probe, balanced accuracy 80.0 ± 3.0 % (+30.0 ± 4.2 points")


def test_heldout_images_of_a_rare_class_do_not_decide_by_chance() -> None:
    """Half of a balanced accuracy is that of 25 of 500 held-out images, so its error is 4.6 points."""

    def balanced(heldout: float) -> Results:
        found = run(0.7, heldout, n=1000)
        of_test = math.sqrt(0.21 / 950 + 0.21 / 50) / 2  # two classes of 950 and 50 test images
        more = {"labels": {"heldout": 500}, "standard_error": of_test}
        probes = [replace(r, metric="balanced", protocol=r.protocol | more) for r in found.probes]
        return replace(found, probes=probes)

    runs = {"rotation": [balanced(0.75)], "jigsaw": [balanced(0.68)], "colorization": [balanced(0.55)]}
    assert contenders(of(**runs)) == ["rotation", "jigsaw"]
    figure = probe_figure(runs["rotation"], trained=True, heldout=True)
    assert figure is not None
    assert figure.error == pytest.approx(math.sqrt(0.21 / 475 + 0.21 / 25) / 2)


def test_distances_pair_the_answers_to_each_image() -> None:
    def answered(right: int) -> Results:
        found = run(right / 1000, right / 1000, untrained=0.4, n=1000)
        before, after = found.probes
        return replace(
            found, probes=[replace(before, answers=answers(400)), replace(after, answers=answers(right))]
        )

    text = conclusion(None, [of(rotation=[answered(600)], jigsaw=[answered(590)])], {})
    assert "(+20.0 ± 1.3 points over the untrained backbone" in text  # sqrt(200 - 200^2 / 1000) / 1000
    assert "On test images jigsaw is 1.0 ± 0.3 points behind." in text


def test_nothing_helps() -> None:
    rounds = [of(rotation=[run(0.302, 0.3)])]
    assert not any_helps(rounds)
    assert any_helps([of(rotation=[run(0.4, 0.4)])])
    text = conclusion(None, rounds, {"colorization": "colorization needs colours"})
    assert text.startswith("No task is better than the untrained backbone, beyond the noise.")
    assert "Not trained: colorization (needs colours)." in text
    assert text.count("noise") == 2  # the first sentence, and the advice at the end
    assert text.endswith("A larger minutes= trains longer, and more labelled images lower the noise.")


def test_given_weights_are_not_called_untrained() -> None:
    found = run(0.302, 0.3)
    given = replace(found, run=replace(FACTS, labels=UNKNOWN_LABELS))
    text = conclusion(None, [of(rotation=[given])], {})
    assert text.startswith("No task is better than the given weights, beyond the noise.")
    assert "(+0.2 ± 0.6 points over the given weights, 1 seed)" in text
    assert "untrained" not in text


def test_the_best_of_many_gains_may_be_chance() -> None:
    def text(tasks: int) -> str:
        lucky = run(0.3175, 0.31)  # +1.75 points, 2.7 errors
        others = {f"task{number}": [run(0.30, 0.31)] for number in range(tasks - 1)}
        return conclusion(None, [of(rotation=[lucky], **others)], {})

    assert not text(1).startswith("No task is better")
    assert not text(6).startswith("No task is better")
    assert text(12).startswith(
        "No task is better than the untrained backbone, beyond the noise: the +1.8 ± 0.7 points of rotation "
        "may be chance, as the best of 12 gains."
    )


def test_labels_that_mean_nothing_are_named() -> None:
    def guessed(value: float) -> Results:
        found = run(value, value, untrained=0.5, n=1000)
        labels = (np.arange(1000) % 2).astype("<i4").tobytes()
        rows = [
            replace(r, answers=replace(answers(round(1000 * r.value)), labels=labels)) for r in found.probes
        ]
        return replace(found, probes=rows)

    said = "No figure is above guessing (50.0 %)"
    text = conclusion(guessed(0.5), [of(rotation=[guessed(0.52)])], {})
    assert text.startswith(said)
    assert text.count("guessing") == 1
    assert "No task is better" not in text
    assert said not in conclusion(None, [of(rotation=[guessed(0.56)])], {})
    alone = guessed(0.56)  # untrained: 50 %
    assert "The labels alone reach 50.0 ± 1.6 %, which is not above guessing." in conclusion(
        alone, [of(rotation=[guessed(0.56)])], {}
    )


def test_a_better_task_that_was_not_chosen_is_named() -> None:
    last = of(rotation=[run(0.302, 0.31)], jigsaw=[run(0.33, 0.305)])  # jigsaw: +3 points, error 0.7
    text = conclusion(None, [last], {})
    assert text.startswith("Rotation: linear probe 30.2")
    assert "That gain is within the noise." in text
    assert "The 1,000 held-out images put rotation first, but cannot tell it from jigsaw." in text
    assert "Jigsaw is 2.8 ± 0.7 points above rotation on test images." in text


def test_each_task_is_compared_with_its_own_untrained_backbone() -> None:
    last = of(rotation=[run(0.40, 0.45, untrained=0.42)], jigsaw=[run(0.35, 0.35, untrained=0.30)])
    text = conclusion(None, [last], {})
    assert text.startswith("Rotation: linear probe 40.0 ± 0.5 % (2.0 ± 0.7 points below the untrained")
    assert "Before training, the backbone reaches" not in text
    last = of(rotation=[run(0.40, 0.45, untrained=0.30)], jigsaw=[run(0.35, 0.35, untrained=0.42)])
    assert "Before training, the backbone reaches 42.0 ± 0.5 % with the input of jigsaw." in conclusion(
        None, [last], {}
    )


def test_tasks_left_behind_and_failed_pretexts_are_named() -> None:
    trivial = replace(
        run(0.29, 0.3), run=replace(FACTS, verdict=Verdict("pretext trivial", "val/acc 100.0%"))
    )
    text = conclusion(
        None, [of(rotation=[trivial], jigsaw=[run(0.5, 0.5)]), of(2000, jigsaw=[run(0.5, 0.5)])], {}
    )
    assert "Behind after round 1: rotation 29.0 ± 0.5 %." in text
    assert "Rotation: pretext trivial: val/acc 100.0%." in text
    dead = replace(
        run(0.29, 0.3), run=replace(FACTS, verdict=Verdict("collapsed", "flat. Try a lower optimizer.lr"))
    )
    assert "optimizer.lr" not in conclusion(None, [of(rotation=[dead], jigsaw=[run(0.5, 0.5)])], {})


def test_a_task_without_time_is_told_from_one_that_is_behind() -> None:
    first = of(rotation=[run(0.5, 0.58)], jigsaw=[run(0.5, 0.6)], inpainting=[run(0.4, 0.4)])
    text = conclusion(None, [first, of(2000, jigsaw=[run(0.5, 0.6)])], {})
    assert "Behind after round 1: inpainting 40.0 ± 0.5 %." in text
    assert "Not behind after round 1, but without time for more: rotation 50.0 ± 0.5 %." in text
    assert text.endswith("A larger minutes= or more labelled images may tell the tasks apart.")
    assert text.count("minutes=") == 1


def test_a_clear_winner_needs_no_advice() -> None:
    first = of(rotation=[run(0.5, 0.4)], jigsaw=[run(0.5, 0.6)])
    assert "minutes=" not in conclusion(None, [first, of(2000, jigsaw=[run(0.5, 0.6)])], {})


def test_a_task_left_behind_may_be_the_only_better_one() -> None:
    first = of(rotation=[run(0.5, 0.5)], jigsaw=[run(0.30, 0.6)])
    text = conclusion(None, [first, of(2000, jigsaw=[run(0.302, 0.6)])], {})
    assert text.startswith("Jigsaw: linear probe 30.2 ± 0.5 % (+0.2 ± 0.6 points")
    assert "That gain is within the noise." in text
    assert "Behind after round 1: rotation 50.0 ± 0.5 %." in text


def test_growth_over_the_rounds() -> None:
    def text(later: float) -> str:
        return conclusion(None, [of(rotation=[run(0.5, 0.5)]), of(3000, rotation=[run(later, later)])], {})

    assert "More training still helps: +5.0 ± 0.7 points for 3.0 times the images." in text(0.55)
    assert "More training changes nothing beyond the noise" in text(0.505)
    assert "More training hurts" in text(0.45)


def test_labels_alone() -> None:
    def text(value: float) -> str:
        alone = run(0.9, 0.9, untrained=value)
        return conclusion(alone, [of(rotation=[run(0.5, 0.5)], jigsaw=[run(0.4, 0.4)])], {})

    after_the_winner = "1 seed). The labels alone reach 40.0 ± 0.5 %. On test images jigsaw is"
    assert after_the_winner in text(0.4)
    assert "60.0 ± 0.5 %, which is more: for these labels, so short a pretraining is not worth it." in text(
        0.6
    )


def test_without_labels_the_pretext_tasks_are_judged() -> None:
    def bare(kind: Any, words: str) -> Results:
        return Results(replace(FACTS, verdict=Verdict(kind, words)), {"val/loss": 1.0}, [])

    advice = "to see whether the features help, probe about 10 labelled images a class"
    runs = {
        "rotation": bare("pretext trivial", f"solved; {advice}"),
        "jigsaw": bare("not compared", f"val/acc 0.5; {advice}"),
    }
    text = conclusion(None, [of(**{task: [each] for task, each in runs.items()})], {})
    assert text.startswith(
        "Rotation: pretext trivial: solved. Jigsaw: val/acc 0.5. Without labels nobody knows"
    )
    assert text.count("abel about 10 images a class") == 1
