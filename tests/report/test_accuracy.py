"""Errors of gains: against naive bootstraps and closed forms, and the coverage of their intervals."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.seeding import generator
from ssl_lightning.probes._accuracy import records_of
from ssl_lightning.report.accuracy import SIGMAS, critical_value, gain_error, image_error, paired_error

DRAWS = 4000
ROUNDING = 4 / math.sqrt(2 * DRAWS)  # four standard errors of a deviation estimated from so many draws
INTERVAL = 1.96  # standard errors on each side of a gain, for 95 %


def top1(right: NDArray[np.bool_], **protocol: float) -> Record:
    """Return the record of a classifier of two classes, right on these images of class 0."""
    scores = torch.eye(2)[torch.from_numpy(~right).long()]
    return records_of("stage1", protocol, (scores, torch.zeros(len(right), dtype=torch.int64)), None)[0]


def answers(n: int, seed: int, share: float = 0.6) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random(n) < share


def naive_bootstrap(gains: NDArray[np.float64], classes: NDArray[np.int32]) -> float:
    """Draw the images of each class anew, average within and then over the classes; return the deviation."""
    random, means = np.random.default_rng(0), []
    for _ in range(DRAWS):
        of_classes = [random.choice(gains[classes == c], (classes == c).sum()) for c in np.unique(classes)]
        means.append(np.mean([each.mean() for each in of_classes]))
    return float(np.std(means))


@pytest.mark.parametrize("sizes", [(300,), (200, 30, 70)])
def test_the_error_over_images_is_that_of_a_bootstrap(sizes: tuple[int, ...]) -> None:
    classes = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    seeds = [answers(len(classes), seed).astype(float) - answers(len(classes), seed + 9) for seed in (1, 2)]
    for gains in (seeds[0], np.mean(seeds, 0)):
        assert image_error(gains, classes) == pytest.approx(naive_bootstrap(gains, classes), rel=ROUNDING)


def test_the_error_of_one_pair_is_that_of_mcnemar() -> None:
    before, after = answers(500, 1), answers(500, 2, 0.7)
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    expected = math.sqrt(won + lost - (won - lost) ** 2 / 500) / 500
    assert gain_error([top1(before)], [top1(after)]) == pytest.approx(expected)
    assert gain_error([top1(after)], [top1(before)]) == pytest.approx(expected)


def test_equal_answers_have_no_error_and_opposite_ones_more_than_independent_ones() -> None:
    one = answers(500, 1, 0.5)
    assert gain_error([top1(one)], [top1(one)]) == 0
    independent = math.hypot(*[top1(one).standard_error or 0] * 2)
    assert (gain_error([top1(one)], [top1(~one)]) or 0) > 1.4 * independent


def test_gains_of_several_seeds_add_their_spread() -> None:
    before, after = answers(500, 1), [answers(500, seed, 0.7) for seed in (2, 3, 4)]
    one, three = [top1(before)] * 3, [top1(each) for each in after]
    gains = [each.mean() - before.mean() for each in after]
    image = np.std(np.mean(after, 0) - before) / math.sqrt(500)
    assert paired_error(one, three) == pytest.approx(math.hypot(image, np.std(gains, ddof=1) / math.sqrt(3)))
    assert paired_error(one, [three[0]] * 3) == paired_error(one[:1], three[:1])  # no spread
    assert paired_error(one[:1], three) == pytest.approx(paired_error(one, three))  # one side has one seed


def test_answers_to_other_images_or_none_count_as_independent() -> None:
    before, after = top1(answers(500, 1)), top1(answers(500, 2, 0.7))
    independent = math.hypot(before.standard_error or 0, after.standard_error or 0)
    assert after.answers is not None
    for other in (
        replace(after, answers=None),
        replace(after, answers=replace(after.answers, test="of other images")),
    ):
        assert paired_error([before], [other]) is None
        assert gain_error([before], [other]) == pytest.approx(independent)
    iou = replace(before, metric="miou")
    assert gain_error([iou], [iou]) is None


def shots(values: NDArray[np.float64], n: int, k: int = 1) -> Record:
    """Return the low-shot record of one seed with these accuracies of the draws, on n test images."""
    protocol = {"k_shot": k, "values": values.tolist(), "sd": values.std(ddof=1)}
    return Record("stage1", "top1", float(values.mean()), n, protocol, probe="lowshot")


def test_the_error_of_a_low_shot_gain_counts_draws_seeds_and_images() -> None:
    before = [np.array([0.2, 0.3, 0.4]), np.array([0.2, 0.2, 0.2])]
    after = [np.array([0.3, 0.4, 0.8]), np.array([0.4, 0.3, 0.3])]
    gains = np.array(after) - np.array(before)
    of_draws = gains.mean(0).std(ddof=1) / math.sqrt(3)
    of_seeds = gains.mean(1).std(ddof=1) / math.sqrt(2)
    of_images = [np.mean([math.sqrt(v.mean() * (1 - v.mean()) / 500) for v in of]) for of in (before, after)]
    records = [[shots(values, 500) for values in of] for of in (before, after)]
    assert gain_error(*records) == pytest.approx(math.hypot(of_draws, of_seeds, *of_images))
    of_one = math.hypot(math.sqrt(0.3 * 0.7 / 500), 0.1 / math.sqrt(3))  # of 20, 30 and 40 %
    assert records[0][0].standard_error == pytest.approx(of_one)


def shares(values: NDArray[np.float64]) -> Record:
    """Return the segmentation record of one seed with the mIoU of each draw."""
    protocol = {"fraction": 0.1, "values": values.tolist(), "sd": values.std(ddof=1)}
    return Record("stage1", "miou", float(values.mean()), 50, protocol, probe="segmentation")


def test_few_draws_ask_for_more_standard_errors() -> None:
    before, after = shares(np.array([0.2, 0.3, 0.4])), shares(np.array([0.3, 0.4, 0.8]))
    p = NormalDist().cdf(SIGMAS)
    of_three = (2 * p - 1) / math.sqrt(2 * p * (1 - p))  # quantile of Student's t with two degrees of freedom
    assert critical_value([before], [after]) == pytest.approx(of_three)
    assert critical_value([before], [before]) == SIGMAS  # no error at all
    many = shots(np.linspace(0.2, 0.4, 1000), 50), shots(np.linspace(0.3, 0.5, 1000), 50)
    assert critical_value([many[0]], [many[1]]) == pytest.approx(SIGMAS, abs=0.01)
    one = top1(answers(50, 0))
    assert critical_value([one], [one]) == SIGMAS


def test_three_draws_that_tell_nothing_seldom_count() -> None:
    """Test on gains of three draws with a true mean of 0; two standard errors count in 18 % of cases."""
    random, counted = np.random.default_rng(0), 0
    for _ in range(1000):
        before, after = shares(np.zeros(3)), shares(random.standard_normal(3))
        error = gain_error([before], [after])
        assert error is not None
        counted += abs(after.value) > critical_value([before], [after]) * error
    assert 25 <= counted <= 70  # 4.6 % of 1,000 are 46


def test_the_interval_of_a_low_shot_gain_holds_the_true_gain() -> None:
    """Test on classifiers whose accuracy depends on the draw of the labels, with a deviation of 5 points."""
    random, held, draws = np.random.default_rng(0), 0, 5
    for _ in range(200):
        quality = 0.3 + 0.05 * random.standard_normal((2, draws)) + np.array([[0.0], [0.1]])
        before, after = (shots(random.binomial(2000, each) / 2000, 2000) for each in quality)
        error = gain_error([before], [after])
        assert error is not None
        held += abs(after.value - before.value - 0.1) <= INTERVAL * error
    assert held >= 170  # the deviation of five draws is known badly; images alone give 118


@pytest.mark.parametrize(("metric", "share"), [("top1", 0.5), ("balanced", 0.15)])
def test_the_interval_of_a_gain_holds_the_true_gain(metric: str, share: float) -> None:
    """Test on a population of 100,000 images that two classifiers of nested features answer."""
    stream = generator("coverage")
    labels = (torch.rand(100_000, generator=stream) < share).long()
    x = torch.randn(100_000, 3, generator=stream) + 0.8 * labels[:, None]
    scores = [torch.stack([torch.full((len(x),), 0.4 * k), x[:, :k].sum(1)], 1) for k in (1, 3)]
    right = [(each.argmax(1) == labels).double() for each in scores]
    groups = [labels == c for c in (0, 1)] if metric == "balanced" else [labels >= 0]
    true = sum(float((right[1] - right[0])[group].mean()) for group in groups) / len(groups)
    held, paired, independent = 0, 0.0, 0.0
    for _ in range(50):
        rows = torch.randint(len(x), (600,), generator=stream)
        of = [records_of("stage1", {}, (each[rows], labels[rows]), None) for each in scores]
        before, after = (next(r for r in records if r.metric == metric) for records in of)
        error = gain_error([before], [after])
        assert error is not None
        held += abs(after.value - before.value - true) <= INTERVAL * error
        paired += error
        independent += math.hypot(before.standard_error or 0, after.standard_error or 0)
    assert held >= 44
    assert paired < 0.9 * independent
