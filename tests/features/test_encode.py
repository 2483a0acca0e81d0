"""Encode pass of a backbone over the labelled splits, with one process and with two."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.core.seeding import generator
from ssl_lightning.features.encode import encode, evaluating, gather_batches, global_order
from tests._two_processes import in_two_processes


class Backbone(nn.Module):
    """Three stages: the image itself, a batch-normed half-size map, and one cell; counts its images."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        self.seen.append(x)
        half = self.norm(F.avg_pool2d(x, 2))
        return [x, half, F.adaptive_avg_pool2d(half, 1)]


def images(n: int, name: str = "images") -> tuple[Tensor, Tensor]:
    stream = generator(name)
    pixels = torch.randint(256, (n, 3, 8, 8), generator=stream, dtype=torch.uint8)
    return pixels, torch.randint(5, (n,), generator=stream)


def batches(n: int, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(part.split(size) for part in images(n)), strict=True))


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_values_grids_and_counts() -> None:
    backbone = Backbone()
    features = encode(backbone, double, {"train": batches(10), "test": batches(3)}, [2, 1, 2, 6])
    pixels, labels = images(10)
    assert torch.equal(features.labels["train"], labels)
    assert features.stages == ("stage1", "stage2", "stage3")
    x = 2 * pixels.float() / 255
    for pool in (1, 2, 6):
        torch.testing.assert_close(
            features.get("train", "stage1", pool), F.adaptive_avg_pool2d(x, pool).flatten(1)
        )
    # a grid is at most as fine as the map, and equal grids are stored once
    assert (features.grids["stage2", 6], features.grids["stage3", 2]) == ((4, 4), (1, 1))
    assert features.get("train", "stage2", 6).shape == (10, 3 * 4 * 4)
    assert features.get("test", "stage3", 1) is features.get("test", "stage3", 6)
    assert torch.equal(torch.cat(backbone.seen)[:10], x)
    assert sum(map(len, backbone.seen)) == 13  # each image once for all pool sizes
    assert features.images_per_s == pytest.approx(13 / features.encode_s)


def test_modes_of_the_parts_are_restored_and_statistics_untouched() -> None:
    backbone = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.BatchNorm2d(3)).train()
    backbone[2].eval()  # frozen by the caller
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with evaluating(backbone):
        assert not any(part.training for part in backbone.modules())
        backbone(torch.randn(4, 3, 2, 2))
    assert [part.training for part in backbone.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_features_of_a_diverged_backbone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stage1 on train are not finite"):
        encode(Backbone(), lambda x: x / 0, {"train": batches(4)}, [1])


def test_images_of_another_shape_are_refused() -> None:
    others = [(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2))]
    with pytest.raises(
        ValueError, match=r"split 'test' has images of shape \(1, 4, 4\), and other images are \(3,"
    ):
        encode(Backbone(), double, {"train": batches(4), "test": others}, [1])


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'test' has no images"):
        encode(Backbone(), double, {"test": []}, [1])


@pytest.mark.parametrize(("n", "size", "world"), [(10, 4, 3), (9, 4, 2), (8, 4, 4), (5, 8, 3), (13, 4, 4)])
def test_global_order_undoes_the_cut(n: int, size: int, world: int) -> None:
    parts = [batch.tensor_split(world) for batch in torch.arange(n).split(size)]
    counts = [[len(part[rank]) for part in parts] for rank in range(world)]
    counts = [list(itertools.takewhile(bool, c)) for c in counts]  # a loader may skip an empty last slice
    longest = max(map(sum, counts))
    padded = torch.full((world, longest), -1)
    for rank in range(world):
        rows = torch.cat([part[rank] for part in parts])
        padded[rank, : len(rows)] = rows
    assert torch.equal(padded.flatten()[global_order(counts, longest)], torch.arange(n))


def test_one_process_gathers_nothing() -> None:
    local = torch.arange(3)
    assert gather_batches(local, [2, 1]) is local


def _encode_a_share(rank: int, folder: Path) -> None:
    share = [(x.tensor_split(2)[rank], y.tensor_split(2)[rank]) for x, y in batches(9)]
    features = encode(Backbone(), double, {"train": share}, [2])
    torch.save((features.labels, features.pooled), folder / f"{rank}.pt")


def test_two_processes_get_what_one_gets(tmp_path: Path) -> None:
    in_two_processes(_encode_a_share, tmp_path)  # the second has no rows of the last batch
    alone = encode(Backbone(), double, {"train": batches(9)}, [2])
    for rank in range(2):
        labels, pooled = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(labels["train"], alone.labels["train"])
        for key, values in alone.pooled["train"].items():
            torch.testing.assert_close(pooled["train"][key], values)


@pytest.mark.slow
def test_a_compiled_backbone_is_encoded_as_it_is_written() -> None:
    def backend(*_: object) -> None:
        raise AssertionError("it is compiled")

    backbone, images = Backbone(), torch.randint(256, (6, 3, 4, 4)).byte()
    loaders = {"train": [(images, torch.zeros(6).long())]}
    expected = encode(backbone, nn.Identity(), loaders, [1]).get("train", "stage3", 1)
    backbone.compile(backend=backend)
    assert torch.equal(encode(backbone, nn.Identity(), loaders, [1]).get("train", "stage3", 1), expected)
    with pytest.raises(Exception, match="it is compiled"):
        backbone(images.float())
