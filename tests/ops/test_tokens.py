"""Tokens of images against lightly's functions, and the draws of hidden tokens."""

import pytest
import torch
from lightly.models import utils

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.tokens import draw_masking, from_patches, to_patches


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_patches_hold_the_pixels_that_lightly_finds(channels, memory_format):
    images = torch.rand(2, channels, 12, 12).to(memory_format=memory_format)
    patches = to_patches(images, 4)
    theirs = utils.patchify(images, 4)  # pixel after pixel, with all channels of each
    assert torch.equal(patches.unflatten(2, (channels, 16)).mT.flatten(2), theirs)
    assert torch.equal(from_patches(patches, channels, 4), images)


def test_masking_hides_the_others():
    keep, restore, hidden = draw_masking(5, 9, 4, generator("mask"))
    for image in range(5):
        visible = set(keep[image].tolist())
        assert len(visible) == 4
        assert {token for token in range(9) if not hidden[image, token]} == visible
        for place, token in enumerate(keep[image].tolist()):
            assert restore[image, token] == place
        assert sorted(restore[image].tolist()) == list(range(9))
    again = draw_masking(5, 9, 4, generator("mask"))
    assert torch.equal(again.keep, keep)
    assert not torch.equal(draw_masking(5, 9, 4, generator("other")).keep, keep)


def test_every_token_is_hidden_equally_often():
    hidden = draw_masking(20_000, 8, 2, generator("often")).hidden
    assert hidden.sum(1).unique().tolist() == [6]
    deviation = (0.75 * 0.25 / 20_000) ** 0.5
    assert (hidden.double().mean(0) - 0.75).abs().max() < 5 * deviation
