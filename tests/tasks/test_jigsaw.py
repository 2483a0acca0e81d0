"""Jigsaw: closed forms, input of backbone and head, learning, the panel."""

import math

import pytest
import torch

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.data.fake import striped
from ssl_lightning.networks.alexnet import AlexNet
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.timm_backbone import create_timm
from ssl_lightning.ops.patches import draw_corners
from ssl_lightning.tasks.jigsaw import Jigsaw
from tests.tasks._learning import learn, seen_by

SPEC = ImageSpec(3, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
LABELS = torch.full((8,), -1)


def make(spec: ImageSpec = SPEC, **options) -> Jigsaw:
    torch.manual_seed(0)
    backbone = ConvNet(widths=(8, 16), strides=(2, 2), in_channels=spec.channels)
    return Jigsaw(backbone, spec, **{"embedding": 32, "hidden": 64} | options)


@pytest.mark.parametrize("hidden", [0, 64])
@pytest.mark.parametrize("permutations", [64, 100])
def test_zero_logits_give_log_of_the_number_of_orders(permutations: int, hidden: int) -> None:
    task = make(permutations=permutations, hidden=hidden)
    torch.nn.init.zeros_(task.head.linear.weight)
    torch.nn.init.zeros_(task.head.linear.bias)
    scores = task.step(torch.rand(8, 3, 32, 32), LABELS, generator(0))
    assert scores["loss"].item() == pytest.approx(math.log(permutations))


def test_the_backbone_sees_every_tile_once() -> None:
    task = make()
    seen = seen_by(task.backbone)
    task.step(torch.rand(8, 3, 32, 32), LABELS, generator(0))
    assert [x.shape for x in seen] == [(8 * 9, 3, 8, 8)]
    assert task.views_per_image == 9
    assert seen[0].mean((2, 3)).abs().max() < 1e-5
    assert (seen[0].std((2, 3), correction=0) - 1).abs().max() < 1e-3


def test_the_head_sees_the_tiles_in_the_order_of_the_class() -> None:
    task = make(permutations_per_image=3, embedding=5)
    order = torch.tensor([[4, 0, 63], [7, 8, 9]])
    embedded = torch.rand(2, 9, 5)
    seen = seen_by(task.head)
    task.score(embedded, order)
    for image in range(2):
        for number in range(3):
            tiles = task.permutations.orders[order[image, number]]
            for place in range(9):
                given = seen[0][3 * image + number, place]
                assert torch.equal(given, embedded[image, tiles[place]])


def test_labels_are_the_orders_that_were_scored() -> None:
    """A head that reads the order from the tiles is always right."""
    task = make()
    orders = task.permutations.orders

    def read(sequences: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(sequences), len(orders))
        for row, sequence in enumerate(sequences[..., 0].long()):
            for number, order in enumerate(orders):
                logits[row, number] = 100.0 * bool((sequence == order).all())
        return logits

    task.encode = lambda tiles: torch.arange(9.0).view(1, 9, 1).expand(len(tiles), 9, 1)  # type: ignore[method-assign]
    task.head.forward = read  # type: ignore[method-assign]
    scores = task.step(torch.rand(8, 3, 32, 32), LABELS, generator(3))
    assert scores["acc"].item() == 1
    assert scores["loss"].item() < 1e-6


def test_orders_of_an_image_differ_and_come_equally_often() -> None:
    task = make(permutations=12, permutations_per_image=4)
    drawn = task.draw_orders(3000, generator(4))
    assert drawn.shape == (3000, 4)
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    counts = drawn.flatten().bincount()
    assert len(counts) == 12
    assert (counts / 1000 - 1).abs().max() < 0.12


def test_every_guard_can_be_switched_off() -> None:
    """Without guards the backbone sees the normalised pixels of a square without gaps."""
    task = make(gap=False, standardise=False, grey=0.0, channel_jitter=0)
    images = torch.rand(4, 3, 32, 32)
    seen = seen_by(task.backbone)
    task.step(images, LABELS, generator(5))
    tiles = seen[0].unflatten(0, (4, 3, 3))  # (B, row, column, C, 8, 8)
    whole = tiles.permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 24, 24)
    normal = (images - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    windows = normal.unfold(2, 24, 1).unfold(3, 24, 1)  # (B, C, 9, 9, 24, 24)
    found = (windows - whole[:, :, None, None]).abs().amax((1, 4, 5)) < 1e-5
    assert found.flatten(1).sum(1).tolist() == [1] * 4


def test_guards_change_what_the_backbone_sees() -> None:
    images = torch.rand(4, 3, 32, 32)
    corners = draw_corners(make().grid, 4, generator(0))
    grey = make(grey=1.0, channel_jitter=0).cut(images, corners, generator(1))
    assert torch.equal(grey[:, :, 0], grey[:, :, 2])
    assert make().channel_jitter == 0  # tiles of 8 px
    assert make(ImageSpec(3, 255, SPEC.mean, SPEC.std)).channel_jitter == 2
    plain = make(grey=0.0, channel_jitter=0).cut(images, corners, generator(1))
    moved = make(grey=0.0, channel_jitter=1).cut(images, corners, generator(1))
    same = (plain == moved).all(-1).all(-1).float().mean()  # two shifts of -1, 0 or 1: a ninth stays in place
    assert same.item() == pytest.approx(1 / 9, abs=0.1)


def test_grey_images_have_no_colour_to_guard() -> None:
    spec = ImageSpec(1, 28, (0.5,), (0.2,))
    scores = make(spec, channel_jitter=1).step(torch.rand(8, 1, 28, 28), LABELS, generator(0))
    assert scores["loss"].isfinite()


def test_equal_streams_give_equal_steps() -> None:
    images = torch.rand(8, 3, 32, 32)
    first, again, other = (
        make().step(images, LABELS, generator("step", number))["loss"].item() for number in (0, 0, 1)
    )
    assert first == again != other


def test_the_orders_are_in_the_checkpoint() -> None:
    task, other = make(), make(method="mean")
    assert not torch.equal(other.orders, task.orders)
    other.load_state_dict(task.state_dict())
    assert torch.equal(other.orders, task.permutations.orders)


def test_64_images_are_solved() -> None:
    task = make()
    images = striped(64, 4, 3, 32, "jigsaw")[0].permute(0, 3, 1, 2) / 255
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    assert learn(task, images, optimizer, STEPS)["acc"] >= 0.95  # new gaps and orders


STEPS = 150


def test_the_panel_shows_the_tiles_before_and_after() -> None:
    task = make(grey=0.0).eval()
    images = torch.rand(3, 3, 32, 32) * 0.9
    panel = task.panel(images)
    assert panel.images.shape == (3, 3, 3, 32, 32)
    assert panel.columns == ["tiles", "shuffled", "put back"]
    for row in range(3):
        tiles, shuffled, back = panel.images[row]
        kept = tiles[0] != 1  # the background is white
        assert kept.sum() == 9 * 64
        assert torch.equal(tiles[:, kept], images[row][:, kept])
        number, shown = panel.captions[row][1].split(": ")
        answer = int(panel.captions[row][2].split(",")[0])
        assert panel.right[row] == [None, None, answer == int(number)]
        order = [int(digit) for digit in shown.replace(" ", "")]
        assert order == task.permutations.orders[int(number)].tolist()
        undo = task.permutations.orders[answer].tolist()
        original = torch.stack(list(tiles[:, kept].view(3, -1).T)).sort(0).values
        for picture in (shuffled, back):  # the same pixels at other places
            pixels = picture[:, picture[0] != 1].view(3, -1).T.sort(0).values
            assert torch.equal(pixels, original)
        for place, tile in enumerate(order):
            y, x = (2 + 10 * (place // 3), 2 + 10 * (place % 3))
            cut = shuffled[:, y : y + 8, x : x + 8]
            assert holds(tiles, cut, tile)
            y, x = (2 + 10 * (undo[place] // 3), 2 + 10 * (undo[place] % 3))
            assert torch.equal(back[:, y : y + 8, x : x + 8], cut)


def holds(picture: torch.Tensor, cut: torch.Tensor, tile: int) -> bool:
    """Whether a tile lies anywhere in its cell of a picture, with the grid moved by up to 2 px."""
    top, left = 10 * (tile // 3), 10 * (tile % 3)
    return any(
        torch.equal(picture[:, y : y + 8, x : x + 8], cut)
        for y in range(top, top + 5)
        for x in range(left, left + 5)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 1}, "task.grid is 1"),
        ({"tile": 11}, "task.tile is 11 px; allowed are 1 to 10"),
        ({"tile": 3}, "tiles are 3 px .*image_size is 32.* stride 4 and needs at least 4 px"),
        ({"channel_jitter": 8}, "task.channel_jitter is 8 px; allowed are 0 to 7"),
        ({"channel_jitter": -1}, "task.channel_jitter is -1 px"),
        ({"grey": 1.1}, "task.grey is 1.1; allowed are probabilities"),
        ({"permutations_per_image": 0}, "task.permutations_per_image is 0; allowed are 1 to 64"),
        ({"permutations": 4}, "task.permutations_per_image is 8; allowed are 1 to 4"),
        ({"permutations": 1, "permutations_per_image": 1}, "size is 1"),
        ({"method": "max"}, "method is 'max'"),
        ({"embedding": 0}, "task.embedding is 0"),
        ({"hidden": -1}, "task.hidden -1"),
    ],
)
def test_bad_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_tiles_smaller_than_the_stride_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tiles are 8 px .*stride 32 and needs at least 32 px.*convnet"):
        Jigsaw(create_timm("resnet18"), SPEC)
    with pytest.raises(ValueError, match="needs at least 31 px"):
        Jigsaw(AlexNet(), SPEC)
    Jigsaw(create_timm("resnet18"), ImageSpec(3, 128, SPEC.mean, SPEC.std))
