"""Shares of the labelled pictures: random draws, choice of learning rates, and figures over the draws."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.core.messages import fitted
from ssl_lightning.core.seeding import generator, stream_seed
from ssl_lightning.probes._plan import TrainingPlan

PER_DRAW = ("chosen_step", "candidates")  # entries of the protocol of a training that differ between draws


@dataclass(frozen=True)
class Draw:
    """Labelled pictures of one training.

    Args:
        fraction: Share of the labelled pictures; None: all of them, in the only training.
        number: Number of the draw, from 0.
        indices: The pictures, `(n,)` int64, rising.
    """

    fraction: float | None
    number: int
    indices: Tensor

    def seed(self, seed: int) -> int:
        """Return the seed of the weights of the head and of the order of the pictures."""
        return seed if self.fraction is None else stream_seed(seed, "draw", self.number)


@dataclass(frozen=True)
class Trained:
    """State that held-out pictures chose.

    Args:
        heldout: Held-out scores by name.
        protocol: Settings of the training.
        states: Weights of the trained modules.
    """

    heldout: dict[str, Any]
    protocol: dict[str, Any]
    states: list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """Trainings on a share of the labelled pictures, one for each draw.

    Args:
        draws: The draws.
        trained: What each training gave.
        tested: Test scores of each training.
        rates: Held-out figure of each pair of candidate rates in the first draw.
    """

    draws: list[Draw]
    trained: list[Trained]
    tested: list[dict[str, Any]]
    rates: list[dict[str, float]]

    def training(self) -> dict[str, Any]:
        """Return the protocol of the trainings; entries that differ between draws are lists."""
        first = self.trained[0].protocol
        if self.draws[0].fraction is not None:
            first = first | {key: [each.protocol[key] for each in self.trained] for key in PER_DRAW}
        return first | ({"rates": self.rates} if len(self.rates) > 1 else {})

    def figure(self, metric: str) -> tuple[float, dict[str, Any]]:
        """Return the test figure, and the rest of its protocol; of several draws the mean and the spread.

        Scores by class stand under "per_class" of the scores of a split, by metric.
        """
        heldout = [each.heldout[metric] for each in self.trained]
        tested = [each[metric] for each in self.tested]
        per_class = [each["per_class"][metric] for each in self.tested]
        if self.draws[0].fraction is None:
            return tested[0], {"per_class": per_class[0], "heldout": heldout[0]}
        protocol = {
            "fraction": self.draws[0].fraction,
            "draws": len(self.draws),
            "values": tested,
            "sd": statistics.stdev(tested) if len(tested) > 1 else None,
            "heldout": statistics.fmean(heldout),
            "per_class": {name: _mean([each[name] for each in per_class]) for name in per_class[0]},
            "class_draws": {
                "heldout": [each.heldout["per_class"][metric] for each in self.trained],
                "test": per_class,
            },
        }
        return statistics.fmean(tested), protocol


@dataclass(frozen=True)
class Shares:
    """Shares of the labelled pictures to train on: the keywords that the dense probes share.

    A draw is the same in every run and on every machine, so that all backbones see the same pictures. A
    larger share contains the smaller ones of the same draw.

    Args:
        name: Name of the probe, for messages and random streams.
        fractions: Shares in (0, 1]; None: one training on all labelled pictures.
        draws: Draws of each share.

    Raises:
        ValueError: A value is out of range.
    """

    name: str
    fractions: Sequence[float] | None
    draws: int

    def __post_init__(self) -> None:
        if self.fractions is not None and not (
            self.fractions and all(0 < fraction <= 1 for fraction in self.fractions)
        ):
            raise ValueError(
                f"probe.{self.name}.fractions is {list(self.fractions)}; allowed are null, or shares of the "
                f"labelled images above 0 to 1, such as probe.{self.name}.fractions=[0.1,1.0]"
            )
        if self.draws < 1:
            raise ValueError(f"probe.{self.name}.draws is {self.draws}; it must be at least 1")

    def sizes(self, images: int) -> dict[float, int]:
        """Return the number of pictures of each share that has at least one, by share."""
        sizes = {float(share): round(share * images) for share in sorted(set(self.fractions or ()))}
        return {share: size for share, size in sizes.items() if size}

    def smallest(self, images: int) -> int:
        """Return the smallest number of pictures that a training gets."""
        return images if self.fractions is None else min(self.sizes(images).values(), default=0)

    def fitted_limits(self, images: int) -> list[str]:
        """Describe the shares that few images leave out; see `BaseProbe.fitted_limits`."""
        given, used = sorted(set(map(float, self.fractions or ()))), list(self.sizes(images))
        return [] if given == used else [fitted(f"probe.{self.name}.fractions", given, used, images)]

    def of(self, images: int) -> list[list[Draw]]:
        """Return the draws of each share of so many pictures, the smallest share first."""
        if self.fractions is None:
            return [[Draw(None, 0, torch.arange(images))]]
        orders = [
            torch.randperm(images, generator=generator("fixed", self.name, "draw", number))
            for number in range(self.draws)
        ]
        return [
            [Draw(share, number, order[:size].sort().values) for number, order in enumerate(orders)]
            for share, size in self.sizes(images).items()
        ]

    def run(
        self,
        images: int,
        plans: Sequence[TrainingPlan],
        train: Callable[[Draw, TrainingPlan], Trained],
        test: Callable[[Trained], dict[str, Any]],
        choose_by: str,
    ) -> list[Outcome]:
        """Train and test on each draw of each share; the first draw of a share chooses among the plans.

        Args:
            images: Number of labelled training pictures.
            plans: Trainings with candidate rates; the best held-out score wins, the first of equal ones.
            train: Trains on a draw.
            test: Returns the test scores by name; called once for each draw, with its chosen state.
            choose_by: Name of the score.
        """
        outcomes = []
        for draws in self.of(images):
            tries = [train(draws[0], plan) for plan in plans]
            rates = [
                {"lr": plan.lr, "backbone_lr": plan.backbone_lr, "heldout": each.heldout[choose_by]}
                for plan, each in zip(plans, tries, strict=True)
            ]
            best = max(range(len(plans)), key=lambda number: rates[number]["heldout"])
            trained, tested = [tries[best]], [test(tries[best])]
            for draw in draws[1:]:
                trained.append(train(draw, plans[best]))
                tested.append(test(trained[-1]))
            outcomes.append(Outcome(draws, trained, tested, rates))
        return outcomes


def candidate_plans(
    name: str,
    lr: float | Sequence[float],
    backbone_lr: float | Sequence[float],
    *,
    finetune: bool,
    **plan: Any,
) -> list[TrainingPlan]:
    """Return a plan for each pair of candidate rates of head and backbone.

    Args:
        name: Name of the probe.
        lr: Rate of the head, or several.
        backbone_lr: Rate of the backbone, or several.
        finetune: Whether the backbone is trained.
        **plan: The other keywords of `TrainingPlan`.

    Raises:
        ValueError: A value of a plan is out of range, there is no rate, or a frozen backbone has several.
    """
    heads, backbones = _several(lr), _several(backbone_lr)
    if not heads or not backbones:
        raise ValueError(
            f"probe.{name} has lr {heads} and backbone_lr {backbones}; each needs at least one rate"
        )
    if len(backbones) > 1 and not finetune:
        raise ValueError(
            f"probe.{name}.backbone_lr is {backbones}, but the backbone is frozen; set "
            f"probe.{name}.finetune=true, or a single rate"
        )
    return [
        TrainingPlan(name=name, lr=head, backbone_lr=backbone, **plan)
        for head, backbone in product(heads, backbones)
    ]


def _several(given: float | Sequence[float]) -> list[float]:
    """Return one rate or several as a list."""
    return [float(rate) for rate in given] if isinstance(given, Sequence) else [given]


def _mean(values: Sequence[float | None]) -> float | None:
    """Average the scores of a class over the draws that have one."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
