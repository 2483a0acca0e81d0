"""Vision transformer for small images, against timm's plain one and naive loops."""

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from ssl_lightning.networks.timm_backbone import create_timm
from ssl_lightning.networks.vit import create_small_vit
from ssl_lightning.ops.positions import positions

TINY = {"width": 24, "depth": 5, "heads": 2, "stages": 2}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@torch.no_grad()
def test_maps_are_those_of_timms_transformer_with_learned_positions():
    ours = create_small_vit(**TINY).eval()
    theirs = VisionTransformer(
        img_size=32, patch_size=4, num_classes=0, global_pool="avg", embed_dim=24, depth=5, num_heads=2,
        class_token=False, fc_norm=False,
    ).eval()  # fmt: skip
    missing = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["pos_embed"], [])
    theirs.pos_embed.copy_(positions(8, 8, 24).flatten(0, 1)[None])
    images = torch.rand(2, 3, 32, 32)
    shallow, deep = ours(images)
    assert ours.feature_info.module_name() == ["blocks.1", "blocks.4"]
    tokens = theirs.forward_features(images)  # (2, 64, 24)
    for row, column in ((0, 0), (2, 5), (7, 1)):
        torch.testing.assert_close(deep[:, :, row, column], tokens[:, 8 * row + column])
    x = theirs.patch_embed(images) + theirs.pos_embed
    torch.testing.assert_close(shallow.flatten(2).mT, theirs.norm(theirs.blocks[1](theirs.blocks[0](x))))


@torch.no_grad()
def test_a_size_that_patches_do_not_divide_is_padded_with_zeros():
    net = create_small_vit(**TINY).eval()
    images = torch.rand(2, 3, 9, 10)
    padded = torch.zeros(2, 3, 12, 12)
    padded[:, :, :9, :10] = images
    for some, other in zip(net(images), net(padded), strict=True):
        assert some.shape == (2, 24, 3, 3)
        torch.testing.assert_close(some, other)


@torch.no_grad()
def test_tiles_together_are_one_sequence_with_the_positions_of_each():
    net = create_small_vit(**TINY).eval()
    tiles = torch.rand(6, 3, 8, 12)  # three of each of two pictures
    (found,) = net(tiles, together=3)
    assert found.shape == (6, 24, 2, 3)
    places = positions(2, 3, 24).flatten(0, 1)
    for picture in range(2):
        own = tiles[3 * picture : 3 * picture + 3]
        tokens = [net.patch_embed(tile[None]).flatten(1, 2)[0] + places for tile in own]
        expected = net.norm(net.blocks(torch.cat(tokens)[None]))[0].split(6)
        for tile, each in zip(found[3 * picture :], expected, strict=False):
            torch.testing.assert_close(tile, each.T.reshape(24, 2, 3))
    torch.testing.assert_close(net(tiles[:1])[-1], net(tiles[:1], together=1)[-1])


def test_drop_path_draws_from_the_global_stream_in_training_only():
    net = create_small_vit(**TINY, drop_path=0.5)
    images = torch.rand(4, 3, 8, 8)

    def last(seed):
        torch.manual_seed(seed)
        return net(images)[-1]

    assert torch.equal(last(1), last(1))
    assert not torch.equal(last(1), last(2))
    net.eval()
    assert torch.equal(last(1), last(2))


def test_the_default_is_half_of_vit_tiny():
    ours, tiny = create_small_vit(), timm.create_model("vit_tiny_patch16_224", num_classes=0)
    assert [ours.blocks[0].attn.num_heads, len(ours.blocks)] == [tiny.blocks[0].attn.num_heads, 6]
    assert {k: v.shape for k, v in ours.blocks[0].state_dict().items()} == {
        k: v.shape for k, v in tiny.blocks[0].state_dict().items()
    }


@pytest.mark.parametrize("dynamic", [False, True])
@torch.no_grad()
def test_any_timm_vit_gives_maps_of_its_tokens(dynamic):
    options = {"img_size": 32, "patch_size": 8, "dynamic_img_size": dynamic}
    net = create_timm("test_vit", **options).eval()
    whole = timm.create_model("test_vit", **options).eval()
    whole.load_state_dict({k.removeprefix("model."): v for k, v in net.state_dict().items()}, strict=False)
    images = torch.rand(2, 3, 32, 32)
    maps = net(images)
    assert [x.shape for x in maps] == [
        (2, c, 32 // r, 32 // r)
        for c, r in zip(net.feature_info.channels(), net.feature_info.reduction(), strict=True)
    ]
    x = whole.patch_embed(images)
    x = whole.blocks(whole.norm_pre(whole._pos_embed(x)))[:, whole.num_prefix_tokens :]
    torch.testing.assert_close(maps[-1].flatten(2).mT, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 20, "heads": 3}, "width 20, depth 6 and heads 3; .* a multiple of 4 and of the heads"),
        ({"width": 6, "heads": 2}, "a multiple of 4"),
        ({"depth": 0}, "depth 0 .*at least 1"),
        ({"stages": 7}, "backbone.stages is 7; allowed are 1 to 6"),
        ({"drop_path": 1.0}, r"backbone.drop_path is 1.0; allowed are 0 to below 1"),
        ({"in_channels": 0}, "in_channels is 0"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        create_small_vit(**options)
