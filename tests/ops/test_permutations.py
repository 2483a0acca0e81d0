"""Permutation sets against a greedy choice in loops, and against known properties."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_lightning.ops.permutations import permutation_set


def distance(one, other) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def pairwise(orders) -> list[int]:
    return [distance(a, b) for a, b in itertools.combinations(orders, 2)]


def greedy_by_hand(tiles: int, size: int, method: str) -> list[tuple[int, ...]]:
    """Pick greedily the first of the orders farthest from all orders picked before."""
    rest = list(itertools.permutations(range(tiles)))
    taken = [rest.pop(0)]
    while len(taken) < size:
        judge = min if method == "minimum" else sum
        scores = [judge(distance(order, other) for other in taken) for order in rest]
        taken.append(rest.pop(scores.index(max(scores))))
    return taken


@pytest.mark.parametrize("size", [4, 8, 12, 24])
@pytest.mark.parametrize("method", ["minimum", "mean"])
def test_not_below_a_greedy_reference_on_a_2_by_2_grid(method: str, size: int) -> None:
    reference = pairwise(greedy_by_hand(4, size, method))
    chosen = permutation_set(4, size, method=method)
    apart = pairwise(chosen.orders.tolist())
    assert min(apart) >= min(reference)
    assert sum(apart) >= sum(reference)
    assert (chosen.minimum, chosen.mean) == (min(apart), pytest.approx(sum(apart) / len(apart)))


@pytest.mark.parametrize("method", ["minimum", "mean"])
def test_every_step_is_greedy(method: str) -> None:
    """Check that no unused order is farther from the orders before a position than the one chosen."""
    taken = [tuple(order) for order in permutation_set(5, 30, method=method).orders.tolist()]
    everything = set(itertools.permutations(range(5)))
    judge = min if method == "minimum" else sum
    for count in range(1, len(taken)):
        before = taken[:count]
        left = everything - set(before)
        best = max(judge(distance(order, other) for other in before) for order in left)
        assert judge(distance(taken[count], other) for other in before) == best


@pytest.mark.parametrize("method", ["minimum", "mean"])
@pytest.mark.parametrize(("tiles", "size"), [(4, 24), (9, 64), (9, 400), (16, 100)])
def test_orders_are_permutations_all_distinct_and_begin_with_the_identity(
    tiles: int, size: int, method: str
) -> None:
    chosen = permutation_set(tiles, size, method=method)
    orders = chosen.orders
    assert orders.shape == (size, tiles)
    assert orders.dtype == torch.int64
    assert torch.equal(orders.sort(1).values, torch.arange(tiles).expand(size, -1))
    assert len({tuple(order) for order in orders.tolist()}) == size
    assert chosen.identity == 0
    assert orders[0].tolist() == list(range(tiles))
    apart = (orders[:, None] != orders[None]).sum(2)[*torch.triu_indices(size, size, 1)]
    assert chosen.minimum == apart.min()
    assert chosen.mean == pytest.approx(apart.double().mean().item())


def test_64_of_9_factorial_are_far_apart() -> None:
    # 64 random orders have a smallest distance of about 4, and a mean of 8
    minimum, mean = permutation_set(9, 64), permutation_set(9, 64, method="mean")
    assert minimum.minimum >= 7
    assert mean.mean >= minimum.mean
    # no set has a larger mean: each tile is at each position 64 / 9 times, as evenly as possible
    evenly = 9 * (1 - (8 * 7 * 6 + 8 * 7) / (64 * 63))
    assert mean.mean <= evenly + 1e-9
    assert "distance at least 7" in str(minimum)
    assert "identity is number 0" in str(minimum)


def test_the_choice_is_the_same_every_time() -> None:
    for tiles in (6, 12):
        first, again = (permutation_set(tiles, 50).orders for _ in range(2))
        assert torch.equal(first, again)


def test_the_cache_is_read_and_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    made = permutation_set(4, 8, cache_dir=tmp_path).orders
    (path,) = (tmp_path / "permutations").iterdir()  # one file, no temporary file
    np.save(path, made.numpy()[::-1].astype(np.uint8))
    swapped = permutation_set(4, 8, cache_dir=tmp_path)
    assert torch.equal(swapped.orders, made.flip(0))  # from the file
    assert swapped.identity == 7
    for damage in (b"", b"not an array", path.read_bytes()[:-3]):
        path.write_bytes(damage)
        assert torch.equal(permutation_set(4, 8, cache_dir=tmp_path).orders, made)
        assert np.array_equal(np.load(path), made.numpy())
    np.save(path, np.zeros((8, 4), np.uint8))  # complete, but not permutations
    assert torch.equal(permutation_set(4, 8, cache_dir=tmp_path).orders, made)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(os, "replace", refuse)
    assert len(permutation_set(4, 8, cache_dir=tmp_path).orders) == 8
    assert list((tmp_path / "permutations").iterdir()) == []
    (tmp_path / "file").touch()
    assert len(permutation_set(4, 8, cache_dir=tmp_path / "file").orders) == 8  # the folder cannot be created


def test_another_set_has_another_file(tmp_path: Path) -> None:
    for method in ("minimum", "mean"):
        for size in (8, 9):
            assert torch.equal(
                permutation_set(4, size, method=method, cache_dir=tmp_path).orders,
                permutation_set(4, size, method=method).orders,
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 2), "tiles is 1; allowed are 2 to 255"),
        ((0, 2), "tiles is 0"),
        ((4, 1), r"size is 1; allowed are 2 to 24 orders of 4 tiles"),
        ((4, 25), r"size is 25; allowed are 2 to 24"),
        ((16, 200_001), r"allowed are 2 to 200,000"),
    ],
)
def test_bad_numbers_are_refused(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        permutation_set(*arguments)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="method is 'max'; allowed are minimum, mean"):
        permutation_set(4, 8, method="max")
