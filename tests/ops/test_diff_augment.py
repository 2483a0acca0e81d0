"""Augmentations of the discriminator's input against loops over pixels."""

import pytest
import torch

from ssl_lightning.ops.diff_augment import AUGMENTATIONS, diff_augment


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kinds", [[kind] for kind in AUGMENTATIONS] + [list(AUGMENTATIONS), []])
def test_both_kinds_are_augmented_alike_and_equal_streams_draw_alike(kinds: list[str]) -> None:
    pictures = torch.randn(6, 3, 16, 12, generator=stream())
    one, two = diff_augment([pictures, pictures], kinds, stream(1))
    assert torch.equal(one, two)
    assert torch.equal(one, diff_augment([pictures], kinds, stream(1))[0])
    assert torch.equal(one, pictures) == (not kinds)
    if kinds:
        assert not torch.equal(one, diff_augment([pictures], kinds, stream(2))[0])


def test_a_translation_moves_every_pixel_by_one_shift() -> None:
    pictures = torch.rand(40, 2, 16, 12, generator=stream()) + 1
    (found,) = diff_augment([pictures], ["translation"], stream(1))
    seen = set()
    for before, after in zip(pictures, found, strict=True):
        shifts = [
            (dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if _moved(before, dy, dx).equal(after)
        ]
        assert len(shifts) == 1
        seen |= set(shifts)
    assert len(seen) > 10  # of 25


def _moved(picture: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    moved = torch.zeros_like(picture)
    for y in range(16):
        for x in range(12):
            if 0 <= y + dy < 16 and 0 <= x + dx < 12:
                moved[:, y, x] = picture[:, y + dy, x + dx]
    return moved


def test_a_cutout_hides_one_square() -> None:
    (found,) = diff_augment([torch.ones(300, 2, 8, 8)], ["cutout"], stream())
    hidden = found == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    rows, columns = hidden[:, 0].any(2), hidden[:, 0].any(1)
    assert torch.equal(hidden[:, 0], rows[:, :, None] & columns[:, None, :])
    assert set(rows.sum(1).tolist()) == set(columns.sum(1).tolist()) == {2, 3, 4}  # half the side, or cut off
    assert hidden[:, 0].any(0).all()


def test_colours_change_by_an_affine_map_of_grey_and_of_saturation() -> None:
    pictures = torch.randn(5, 3, 8, 8, generator=stream())
    (found,) = diff_augment([pictures], ["colour"], stream(1))
    for before, after in zip(pictures, found, strict=True):
        grey, moved = before.mean(0), after.mean(0)
        contrast = (moved.std() / grey.std()).item()
        assert 0.5 <= contrast <= 1.5
        torch.testing.assert_close(moved - moved.mean(), contrast * (grey - grey.mean()))
        assert abs((moved.mean() - grey.mean()).item()) <= 0.5
        saturation = ((after - moved) * (before - grey)).sum() / (before - grey).square().sum() / contrast
        torch.testing.assert_close(after - moved, saturation * contrast * (before - grey))
        assert 0 <= saturation.item() <= 2


def test_gradients_pass() -> None:
    pictures = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=stream(), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: diff_augment([x], AUGMENTATIONS, stream(1))[0], (pictures,))
