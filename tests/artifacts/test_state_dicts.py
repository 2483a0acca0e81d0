"""Reasons why weights do not fit a network, one at a time."""

from typing import Any

import pytest
import torch
from torch import nn

from ssl_lightning.artifacts.state_dicts import mismatches


def changed(name: str, value: Any) -> dict[str, Any]:
    return {**nn.Linear(3, 2).state_dict(), name: value}


def test_weights_of_the_same_names_and_shapes_fit_in_any_float_type() -> None:
    own = nn.Linear(3, 2).state_dict()
    assert mismatches(own, nn.Linear(3, 2).state_dict()) == []
    assert mismatches(own, changed("bias", torch.zeros(2, dtype=torch.bfloat16))) == []


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"weight": torch.zeros(2, 3)}, "1 missing: bias"),
        (changed("other", torch.zeros(1)), "1 unexpected: other"),
        (changed("bias", torch.zeros(5)), "1 of another shape: bias (5,) for (2,)"),
        (changed("bias", torch.zeros(2, dtype=torch.long)), "1 of another kind: bias int64 for float32"),
        (
            changed("bias", torch.zeros(2).to_sparse()),
            "1 of another kind: bias float32 sparse_coo for float32",
        ),
        (changed("bias", torch.zeros(2, device="meta")), "1 of another kind: bias float32 meta for float32"),
        (changed("bias", [0.0, 0.0]), "1 of another kind: bias list for float32"),
        (changed("bias", torch.tensor([0.0, torch.inf])), "1 not finite: bias"),
    ],
)
def test_each_reason_is_named(state: dict[str, Any], reason: str) -> None:
    assert mismatches(nn.Linear(3, 2).state_dict(), state) == [reason]


def test_long_lists_are_cut() -> None:
    own = {str(number): torch.zeros(1) for number in range(9)}
    assert mismatches(own, {}) == ["9 missing: 0, 1, 2, 3, 4, 5 and 3 more"]
