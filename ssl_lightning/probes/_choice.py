"""Choice of the training labels of a classifier, of the weights to test, and of limits that fit the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_lightning.probes._folds import FEW

SELECTIONS = ("auto", "heldout", "last")
LABELS = ("train", "train+heldout")


@dataclass(frozen=True)
class Choice:
    """Check the keywords `selection` and `labels`, which the probes with trained classifiers share.

    Args:
        name: Name of the probe, for messages.
        selection: "heldout" tests the weights of the best epoch on held-out images, "last" the weights
            after the last epoch. "auto" is "heldout" where `FEW` images or more are held out: fewer choose
            an epoch by luck.
        labels: "train" trains on the training split. "train+heldout" adds the held-out images, which
            leaves no image for selection.

    Raises:
        ValueError: A value is not allowed, or the two values contradict each other.
    """

    name: str
    selection: str
    labels: str

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("selection", self.selection, SELECTIONS),
            ("labels", self.labels, LABELS),
        ):
            if value not in allowed:
                raise ValueError(f"probe.{self.name}.{key} is {value!r}; allowed are {', '.join(allowed)}")
        if self.needs_heldout and self.with_heldout:
            raise ValueError(
                f"probe.{self.name}.labels is {self.labels!r}, which leaves no image to select on; "
                f"set probe.{self.name}.selection=last"
            )

    @property
    def needs_heldout(self) -> bool:
        """Whether held-out images select the weights, however few there are."""
        return self.selection == "heldout"

    @property
    def with_heldout(self) -> bool:
        """Whether held-out images are part of the training set."""
        return self.labels == "train+heldout"

    def counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the number of training images and of remaining held-out images.

        Args:
            counts: As for `BaseProbe.check`.
        """
        train, heldout = counts["train"], counts.get("heldout", 0)
        return (
            {"train": train + heldout, "heldout": 0}
            if self.with_heldout
            else {"train": train, "heldout": heldout}
        )

    def selects(self, counts: Mapping[str, int]) -> bool:
        """Whether held-out images select the weights.

        Args:
            counts: As `counts` returns them.
        """
        return self.needs_heldout or (self.selection == "auto" and counts["heldout"] >= FEW)

    def protocol(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """Describe the choice for the protocol of a result.

        Args:
            counts: As `counts` returns them; other splits are ignored.
        """
        return {
            "selected_on": "heldout" if self.selects(counts) else "nothing",
            "labels": {split: counts[split] for split in ("train", "heldout")},
        }


def at_most(numbers: Sequence[int], limit: int) -> list[int]:
    """Return the numbers up to a limit, or the limit itself if all are above it.

    >>> at_most([5, 20, 200], 30), at_most([20, 200], 9)
    ([5, 20], [9])
    """
    return [number for number in numbers if number <= limit] or [limit]
