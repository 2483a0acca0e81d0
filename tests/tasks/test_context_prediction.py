"""Context prediction: closed forms, labels against the image, learning, the panel."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.timm_backbone import create_timm
from ssl_lightning.ops.tile_grid import NEIGHBOURS
from ssl_lightning.tasks.context_prediction import ContextPrediction
from tests.tasks._learning import learn, seen_by

SPEC = ImageSpec(3, 32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
PLAIN = ImageSpec(3, 32, (0.0,) * 3, (1.0,) * 3)  # normalising has no effect
LABELS = torch.full((8,), -1)
OFF = {"colours": None, "downsample": 0.0}
STEPS = 200


def make(spec: ImageSpec = SPEC, *, widths: tuple[int, ...] = (8, 16), **options) -> ContextPrediction:
    torch.manual_seed(0)
    backbone = ConvNet(widths=widths, strides=(2, 2, 1)[: len(widths)], in_channels=spec.channels)
    return ContextPrediction(backbone, spec, **{"embedding": 32, "hidden": 64} | options)


@pytest.mark.parametrize("hidden", [0, 64])
@pytest.mark.parametrize("pairs", [1, 8])
def test_zero_logits_give_log_8(pairs: int, hidden: int) -> None:
    task = make(pairs_per_image=pairs, hidden=hidden)
    torch.nn.init.zeros_(task.head.linear.weight)
    torch.nn.init.zeros_(task.head.linear.bias)
    scores = task.step(torch.rand(8, 3, 32, 32), LABELS, generator(0))
    assert scores["loss"].item() == pytest.approx(math.log(8))


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_the_backbone_sees_every_patch_once(pairs: int) -> None:
    task = make(pairs_per_image=pairs)
    backbone, head = seen_by(task.backbone), seen_by(task.head)
    task.step(torch.rand(8, 3, 32, 32), LABELS, generator(0))
    assert [x.shape for x in backbone] == [(8 * (pairs + 1), 3, 8, 8)]
    assert [x.shape for x in head] == [(8 * pairs, 2, 32)]
    assert task.views_per_image == pairs + 1


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_labels_are_where_the_neighbour_lies(pairs: int) -> None:
    """Pixels hold their own position, so each patch shows where it was cut; the label must agree."""
    task = make(PLAIN, pairs_per_image=pairs, **OFF)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    images = torch.stack([y, x, torch.zeros(32, 32)]).expand(8, 3, 32, 32)
    backbone, pair = seen_by(task.backbone), seen_by(task.head)
    task.encode_plain = task.encode
    task.encode = lambda patches: (task.encode_plain(patches), patches[:, :, :2, 0, 0])[1]  # type: ignore[method-assign]
    answers = []

    def read(sequences: torch.Tensor) -> torch.Tensor:
        for centre, neighbour in sequences.tolist():
            dy, dx = (round((b - a) / task.grid.pitch) for a, b in zip(centre, neighbour, strict=True))
            name = f"{('top', '', 'bottom')[dy + 1]} {('left', '', 'right')[dx + 1]}".strip()
            answers.append(NEIGHBOURS.index(name))
        return 100.0 * F.one_hot(torch.tensor(answers), 8)

    task.head.forward = read  # type: ignore[method-assign]
    scores = task.step(images, LABELS, generator(1))
    assert scores["acc"].item() == 1
    assert len(answers) == len(pair[0]) == 8 * pairs
    assert len(backbone[0]) == 8 * (pairs + 1)
    by_image = torch.tensor(answers).view(8, pairs)
    assert all(len(set(row)) == pairs for row in by_image.tolist())
    if pairs == 1:
        assert len(set(answers)) > 2  # different neighbours


def test_guards_change_what_the_backbone_sees() -> None:
    images = torch.rand(8, 3, 32, 32)
    seen = {}
    for name, options in {
        "off": OFF,
        "dropping": {"colours": "dropping", "downsample": 0.0},
        "projection": {"colours": "projection", "downsample": 0.0},
        "downsample": {"colours": None, "downsample": 1.0, "downsample_to": 4},
    }.items():
        task = make(PLAIN, **options)
        patches = seen_by(task.backbone)
        task.step(images, LABELS, generator(2))
        seen[name] = patches[0]
    normal = seen["off"].std((2, 3))
    assert ((seen["dropping"].std((2, 3)) / normal > 0.5).sum(1) == 1).all()
    axis = torch.tensor([-1.0, 2.0, -1.0])
    assert torch.einsum("c,bchw->bhw", axis, seen["off"]).abs().mean() > 0.5
    assert torch.einsum("c,bchw->bhw", axis, seen["projection"]).abs().max() < 1e-5
    smoother = seen["downsample"].std((2, 3)) < normal - 1e-4
    assert 0.7 < smoother.float().mean() < 0.9  # one of five sizes is the full size


def test_gap_and_jitter_can_be_switched_off() -> None:
    """Without both, the nine patches form a square of the image without gaps."""
    task = make(PLAIN, gap=0, **OFF)
    images = torch.rand(4, 3, 32, 32)
    seen = seen_by(task.backbone)
    task.step(images, LABELS, generator(5))
    patches = seen[0].unflatten(0, (4, 9))[:, [1, 2, 3, 4, 0, 5, 6, 7, 8]]  # the centre comes first
    whole = patches.unflatten(1, (3, 3)).permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 24, 24)
    windows = images.unfold(2, 24, 1).unfold(3, 24, 1)
    found = (windows - whole[:, :, None, None]).abs().amax((1, 4, 5)) < 1e-6
    assert found.flatten(1).sum(1).tolist() == [1] * 4


@pytest.mark.parametrize(("size", "smallest"), [(32, 4), (64, 4), (255, 7)])
def test_the_smallest_size_follows_from_the_patch(size: int, smallest: int) -> None:
    task = make(ImageSpec(3, size, SPEC.mean, SPEC.std))
    assert len(task.table) == task.grid.tile - smallest + 1
    papers = make(ImageSpec(3, 400, SPEC.mean, SPEC.std), tile=96, gap=48, jitter=7)
    assert len(papers.table) == 96 - 10 + 1


def test_grey_images_have_no_colour_to_guard() -> None:
    spec = ImageSpec(1, 28, (0.5,), (0.2,))
    for colours in ("dropping", "projection"):
        scores = make(spec, colours=colours).step(torch.rand(8, 1, 28, 28), LABELS, generator(0))
        assert scores["loss"].isfinite()


def test_equal_streams_give_equal_steps() -> None:
    images = torch.rand(8, 3, 32, 32)
    first, again, other = (
        make(pairs_per_image=4).step(images, LABELS, generator("step", number))["loss"].item()
        for number in (0, 0, 1)
    )
    assert first == again != other


def test_64_images_are_solved() -> None:
    task = make(widths=(16, 32, 32))
    blobs = torch.rand(64, 3, 5, 5, generator=generator("context"))  # each place looks different
    images = F.interpolate(blobs, (32, 32), mode="bicubic").clamp(0, 1)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    assert learn(task, images, optimizer, STEPS)["acc"] >= 0.95  # new places


def test_the_panel_shows_the_pair_with_its_place() -> None:
    task = make(PLAIN, **OFF).eval()
    images = torch.rand(5, 3, 32, 32) * 0.9
    panel = task.panel(images)
    assert panel.images.shape == (5, 3, 3, 32, 32)
    assert panel.columns == ["patches", "pair", "as answered"]
    for row in range(5):
        patches, pair, answered = panel.images[row]
        kept = patches[0] != 1  # the background is white
        assert kept.sum() == 9 * 64
        assert torch.equal(patches[:, kept], images[row][:, kept])
        truth, (said, _) = panel.captions[row][1], panel.captions[row][2].split(", ")
        assert panel.right[row] == [None, None, said == truth]
        centre = pair[:, 12:20, 12:20]
        neighbour = pair[:, *window(truth)]
        assert (pair[0] != 1).sum() == 2 * 64
        assert torch.equal(answered[:, *window(said)], neighbour)
        assert torch.equal(answered[:, 12:20, 12:20], centre)
        for cut, (y, x) in ((centre, (12, 12)), (neighbour, (w.start for w in window(truth)))):
            assert any(
                torch.equal(patches[:, a : a + 8, b : b + 8], cut)
                for a in range(max(0, y - 2), y + 3)
                for b in range(max(0, x - 2), x + 3)
            )


def window(place: str) -> tuple[slice, slice]:
    """Return the window of a place in a panel of 32 px: patches of 8 px at a pitch of 10."""
    row = 0 if "top" in place else 2 if "bottom" in place else 1
    column = 0 if "left" in place else 2 if "right" in place else 1
    return slice(2 + 10 * row, 10 + 10 * row), slice(2 + 10 * column, 10 + 10 * column)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs_per_image": 0}, "task.pairs_per_image is 0; allowed are 1 to 8"),
        ({"pairs_per_image": 9}, "task.pairs_per_image is 9"),
        ({"colours": "grey"}, "task.colours is 'grey'; allowed are dropping, projection and null"),
        ({"downsample": -0.1}, "task.downsample is -0.1; allowed are probabilities"),
        ({"downsample_to": 9}, "task.downsample_to is 9 px; allowed are 1 to 8"),
        ({"downsample_to": 0}, "task.downsample_to is 0 px"),
        ({"jitter": 2}, "task.jitter is 2 px; allowed are 0 to 1"),
        ({"tile": 12}, "need 36 px"),
        ({"tile": 3}, "tiles are 3 px .* stride 4 and needs at least 4 px"),
        ({"embedding": 0}, "task.embedding is 0"),
    ],
)
def test_bad_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_patches_smaller_than_the_stride_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tiles are 8 px .*stride 32 and needs at least 32 px.*convnet"):
        ContextPrediction(create_timm("resnet18"), SPEC)
