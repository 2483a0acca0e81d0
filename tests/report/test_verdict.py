"""Verdict of a run: every answer, and the error of a gain."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ssl_lightning.artifacts.answers import Answers
from ssl_lightning.artifacts.records import Record
from ssl_lightning.artifacts.results import Results
from ssl_lightning.artifacts.run_facts import RunFacts, Verdict
from ssl_lightning.report.verdict import judge

FACTS = RunFacts(
    task="rotation", data="cifar10", backbone="convnet", seed=0, epochs=1, wall_s=1.0, images_per_s=1.0,
    git="", versions={}, config_sha256=hashlib.sha256().hexdigest(), labels="none", status="finished",
)  # fmt: skip
CHANCE = {"acc": 0.25}


def record(value: float, trained: bool, stage: str = "stage1", n: int = 10_000, **more: Any) -> Record:
    top = {key: more.pop(key) for key in ("probe", "branch", "metric") if key in more}
    names = {"probe": "linear", "branch": "backbone"} | {k: v for k, v in top.items() if k != "metric"}
    protocol = {"heldout": value, **more}
    return Record(stage, top.get("metric", "top1"), value, n, protocol, trained=trained, **names)


def results(*records: Record, accuracy: float = 0.7, labels: str = "none") -> Results:
    return Results(replace(FACTS, labels=labels), {"val/acc": accuracy}, list(records))


def pair(before: float, after: float, **more: Any) -> tuple[Record, Record]:
    return record(before, False, **more), record(after, True, **more)


@pytest.mark.parametrize(
    ("before", "after", "n", "accuracy", "kind"),
    [
        (0.45, 0.60, 10_000, 0.7, "learned"),
        (0.45, 0.60, 10_000, 0.999, "learned"),  # solved, and it helped
        (0.45, 0.452, 10_000, 0.7, "no better than before"),
        (0.45, 0.40, 10_000, 0.7, "worse than before"),
        (0.45, 0.40, 10_000, 1.0, "pretext trivial"),
        (0.45, 0.452, 10_000, 0.26, "pretext not learned"),
        (0.40, 0.50, 50, 0.7, "too few images to tell"),
    ],
)
def test_the_answers(before: float, after: float, n: int, accuracy: float, kind: str) -> None:
    judged = judge(results(*pair(before, after, n=n), accuracy=accuracy), chances=CHANCE)
    assert judged.kind == kind


def test_the_text_gives_the_gain_and_its_error() -> None:
    judged = judge(results(*pair(0.45, 0.60)), chances=CHANCE)
    error = 100 * math.sqrt((0.45 * 0.55 + 0.60 * 0.40) / 10_000)
    assert judged.text == f"linear top-1 60.0% is 15.0 ± {error:.1f} points above the untrained backbone"
    loaded = judge(results(*pair(0.45, 0.60)), loaded=True)
    assert loaded.text.endswith("points above the weights it started from")
    ruined = judge(results(*pair(0.60, 0.45)), loaded=True)
    assert ruined.kind == "worse than before"
    assert "points below the weights it started from. Try task.freeze_until=0.1 task.backbone_" in ruined.text


def test_the_error_pairs_the_answers_to_each_image() -> None:
    before, after = (
        replace(row, answers=answers(right)) for row, right in zip(pair(0.5, 0.52), (500, 520), strict=True)
    )
    judged = judge(results(replace(before, n=1000), replace(after, n=1000)))
    # 20 images won and none lost; as of separate images it would be 2.2 points
    assert judged.text.startswith("linear top-1 52.0% is 2.0 ± 0.4 points above")
    assert judged.kind == "learned"


def answers(right: int) -> Answers:
    """Return answers to 1,000 images, right on the first ones."""
    return Answers(np.packbits(np.arange(1000) < right).tobytes(), bytes(4000), "one test")


def test_collapsed_features_come_first() -> None:
    judged = judge(results(*pair(0.45, 0.60)), chances=CHANCE, collapsed=["backbone"])
    assert judged.kind == "collapsed"
    assert "15.0" in judged.text
    assert judged.text.endswith("Try a lower optimizer.lr")
    judged = judge(results(*pair(0.45, 0.60)), chances=CHANCE, collapsed=["head"])
    assert judged.kind == "collapsed"
    assert judged.text.endswith("keep the embeddings of different images apart")


def test_heldout_figures_choose_the_stages() -> None:
    rows = [
        replace(record(0.9, True, "stage1"), protocol={"heldout": 0.1}),
        replace(record(0.5, True, "stage2"), protocol={"heldout": 0.5}),
        record(0.4, False, "stage1"),
    ]
    assert "top-1 50.0% at stage2 is 10.0" in judge(results(*rows)).text


def test_the_linear_probe_judges_before_others_and_balanced_accuracy_before_top1() -> None:
    knn, linear = pair(0.5, 0.4, probe="knn", k=20), pair(0.4, 0.5)
    assert judge(results(*knn, *linear)).text.startswith("linear top-1")
    assert judge(results(*knn)).text.startswith("knn k=20 top-1")
    balanced = pair(0.3, 0.2, metric="balanced", standard_error=0.01)
    judged = judge(results(*linear, *balanced))
    assert judged.kind == "worse than before"
    assert judged.text.startswith("linear balanced 20.0%")


def test_the_largest_share_of_the_labels_judges() -> None:
    few, all_labels = (
        pair(0.3, 0.2, probe="finetune", fraction=0.01),
        pair(0.6, 0.9, probe="finetune", fraction=1.0),
    )
    judged = judge(results(*few, *all_labels))
    assert (judged.kind, "finetune 100 % top-1 90.0%" in judged.text) == ("learned", True)


@pytest.mark.parametrize(
    ("accuracy", "advice"),
    [
        (0.7, "Train longer, or try another task"),
        (
            0.94,
            "The pretext task is easy (val/acc 94.0%): look for shortcuts (docs/shortcuts.md), or try",
        ),
    ],
)
def test_an_easy_pretext_without_a_gain_may_have_a_shortcut(accuracy: float, advice: str) -> None:
    judged = judge(results(*pair(0.45, 0.45), accuracy=accuracy), chances=CHANCE)
    assert judged.kind == "no better than before"
    assert f". {advice}" in judged.text


def test_figures_without_an_error_count_from_one_point_on() -> None:
    def kind(gain: float) -> str:
        return judge(results(*pair(0.2, 0.2 + gain, probe="segmentation", metric="miou"))).kind

    assert [kind(gain) for gain in (0.02, 0.005, -0.02)] == [
        "learned", "no better than before", "worse than before",
    ]  # fmt: skip


def test_other_branches_are_named() -> None:
    rows = [*pair(0.45, 0.60), *pair(0.4, 0.42, branch="discriminator")]
    assert "; discriminator: linear top-1 42.0% is 2.0" in judge(results(*rows)).text


def test_without_labels_the_pretext_task_is_judged() -> None:
    assert judge(results(accuracy=0.26), chances=CHANCE).kind == "pretext not learned"
    assert judge(results(accuracy=1.0), chances=CHANCE).kind == "pretext trivial"
    judged = judge(results(accuracy=0.7), chances=CHANCE)
    assert judged == Verdict(
        "not compared",
        "val/acc 0.7; to see whether the features help, probe about 10 labelled images a class",
    )
    judged = judge(results(record(0.6, True)), chances=CHANCE)
    assert judged.text.endswith("set probe_untrained=true")


def test_supervised_training_has_no_trivial_pretext() -> None:
    rows = pair(0.45, 0.44)
    judged = judge(
        results(*rows, accuracy=1.0, labels="those of the pretraining images"), chances={"acc": 0.1}
    )
    assert judged.kind == "no better than before"


def test_the_parts_of_a_combined_task_are_named() -> None:
    chances = {"rotation/acc": 0.25, "jigsaw/acc": 1 / 64}

    def judged(rotation: float, jigsaw: float) -> Verdict:
        pretext = {"val/loss": 1.0, "val/rotation/acc": rotation, "val/jigsaw/acc": jigsaw}
        return judge(Results(FACTS, pretext, list(pair(0.45, 0.45))), chances=chances)

    missed = judged(0.7, 0.016)
    assert missed.kind == "pretext not learned"
    assert "guessing: val/jigsaw/acc 1.6%, guessing gives 1.6%; linear" in missed.text
    assert judged(1.0, 0.5).kind == "no better than before"  # jigsaw still teaches
    assert judged(1.0, 1.0).kind == "pretext trivial"
