"""Cross-validation over the labelled images, which selects where few images are held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.data.io.splits import FOLDS, draw_folds

FEW = 500  # held-out images; fewer select by luck: the standard error of an accuracy is above 2 %


def selecting_folds(labels: Mapping[str, Tensor]) -> Tensor | None:
    """Return the fold of each image of train and heldout together; None if the held-out images suffice.

    Args:
        labels: `(N_train,)` of train and `(N_heldout,)` of heldout, int64.
    """
    if len(labels["heldout"]) >= FEW:
        return None
    return draw_folds(torch.cat([labels["train"], labels["heldout"]]), FOLDS)


def training_parts(part: Tensor) -> Tensor:
    """Return the images that each fold trains on, `(F, N)` bool: all that are not in it."""
    return part != torch.arange(int(part.max()) + 1, device=part.device)[:, None]


def out_of_fold(part: Tensor, score: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Score every image with the classifier that was not trained on its fold.

    Args:
        part: `(N,)` fold of each image.
        score: Takes a fold and its images, `(N,)` bool; returns their scores `(R, n, K)`, in order.

    Returns:
        `(R, N, K)`.
    """
    found = torch.cat([score(fold, ~rows) for fold, rows in enumerate(training_parts(part))], 1)
    scores = torch.empty_like(found)
    scores[:, part.argsort(stable=True)] = found
    return scores


def selection(part: Tensor | None) -> dict[str, Any]:
    """Describe the selection for the protocol of a result; see `Record.heldout_images`."""
    if part is None:
        return {"selected_on": "heldout"}
    folds = int(part.max()) + 1
    return {"selected_on": f"{folds}-fold cross-validation on train + heldout", "folds": folds}
