"""Labels that a classifier is trained on, and the choice of the weights that are tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SELECTIONS = ("heldout", "last")
LABELS = ("train", "train+heldout")


@dataclass(frozen=True)
class Choice:
    """The keywords `selection` and `labels` that the probes which train classifiers share.

    Args:
        name: Of the probe, for messages.
        selection: "heldout" tests the weights of the epoch that does best on held-out images, "last" the
            weights after the last epoch.
        labels: "train" trains on the training split; "train+heldout" on the held-out images too, so that
            nothing can be selected on them.

    Raises:
        ValueError: A value is none of these, or both together make no sense.
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
                raise ValueError(f"probe.{self.name}.{key} is {value!r}; allowed are {' and '.join(allowed)}")
        if self.by_heldout and self.with_heldout:
            raise ValueError(
                f"probe.{self.name}.labels is {self.labels!r}, which leaves no image to select on; "
                f"set probe.{self.name}.selection=last"
            )

    @property
    def by_heldout(self) -> bool:
        """Whether weights are selected on held-out images."""
        return self.selection == "heldout"

    @property
    def with_heldout(self) -> bool:
        """Whether held-out images are trained on."""
        return self.labels == "train+heldout"

    def counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Images that are trained on, and held-out ones that are left; `counts` as for `BaseProbe.check`."""
        train, heldout = counts["train"], counts.get("heldout", 0)
        return (
            {"train": train + heldout, "heldout": 0}
            if self.with_heldout
            else {"train": train, "heldout": heldout}
        )

    def protocol(self, counts: Mapping[str, int], figure: float | None) -> dict[str, Any]:
        """Say it, for the protocol of a figure.

        Args:
            counts: As `counts` returns them, further ones are left out.
            figure: On held-out images, with the weights that are tested; None if none are left.
        """
        return {
            "selected_on": "heldout" if self.by_heldout else "nothing",
            "labels": {split: counts[split] for split in ("train", "heldout")},
            "heldout": figure,
        }
