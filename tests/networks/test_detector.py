"""Faster R-CNN on stage maps: sizes, anchors, errors."""

import pytest
import torch
from torch import Tensor, nn

from ssl_lightning.networks.detector import SeededSampler, make_detector, pyramid_stages, seeded_samplers


class Maps(nn.Module):
    """Stage maps with strides 4 and 8; stores its input."""

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen = images
        return [images.mean(1, keepdim=True)[..., ::stride, ::stride] for stride in (4, 8)]


def small(backbone: nn.Module, size: tuple[int, int], **options: float) -> nn.Module:
    return make_detector(
        backbone, [1, 1], [4, 8], 3, size, width=8, box_width=8, proposals=10, rois=8, **options
    )


def test_images_are_neither_resized_nor_normalised() -> None:
    backbone = Maps()
    detector = small(backbone, (40, 48)).eval()
    images = torch.randn(2, 1, 40, 48)  # one channel, like a backbone of another colour space
    with torch.no_grad():
        answers = detector(list(images))
    assert backbone.seen.shape == (2, 1, 48, 48)  # padded to whole cells of the coarsest level, 16
    torch.testing.assert_close(backbone.seen[:, :, :40, :48], images)
    assert not backbone.seen[:, :, 40:].any()
    assert all({"boxes", "labels", "scores"} <= set(answer) for answer in answers)


def test_images_without_boxes_train() -> None:
    torch.manual_seed(0)
    detector = small(Maps(), (32, 32)).train()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = detector([torch.randn(3, 32, 32)] * 2, [nothing, nothing])
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    assert total > 0


def test_the_boxes_of_an_image_do_not_depend_on_the_others() -> None:
    sampler = SeededSampler(8, 0.25)
    matched = [torch.randint(-1, 3, (40,), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    sampler.seeds = [5, 6, 7]
    positive, negative = sampler(matched)
    assert int(sampler.sampled) == 3 * 8
    for mask, wanted, each in ((positive, 2, lambda m: m >= 1), (negative, 6, lambda m: m == 0)):
        assert [int(one.sum()) for one in mask] == [wanted] * 3
        assert all(each(m)[one.bool()].all() for m, one in zip(matched, mask, strict=True))
    sampler.seeds = [6]
    (alone,), (others,) = sampler(matched[1:2])
    assert torch.equal(alone, positive[1])
    assert torch.equal(others, negative[1])
    sampler.seeds = [8]
    assert not torch.equal(sampler(matched[1:2])[1][0], others)


def test_both_samplers_of_a_detector_are_seeded() -> None:
    detector = small(Maps(), (32, 32)).train()
    of_proposals, of_boxes = seeded_samplers(detector)  # type: ignore[arg-type]
    of_proposals.seeds = of_boxes.seeds = [1, 2]
    box = {"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": torch.tensor([1])}
    detector([torch.randn(3, 32, 32)] * 2, [box, box])
    assert (int(of_proposals.sampled), int(of_boxes.sampled)) == (2 * 3 * 84, 2 * 8)  # all anchors; 8 RoIs


def test_anchors_grow_with_the_stride() -> None:
    detector = small(Maps(), (32, 32), anchor_scale=6)
    anchors = detector.rpn.anchor_generator
    assert anchors.sizes == ((24,), (48,), (96,))
    assert detector.roi_heads.box_roi_pool.featmap_names == ["0", "1"]


def test_strides_that_do_not_double_are_refused() -> None:
    with pytest.raises(ValueError, match=r"strides \[4, 16\].*probe\.detection\.stages"):
        make_detector(Maps(), [1, 1], [4, 16], 3, (32, 32))


@pytest.mark.parametrize(
    ("reductions", "stages"), [([4, 8, 16], [1, 2, 3]), ([1, 2, 4, 8], [3, 4]), ([2, 2], [2]), ([8, 8], [2])]
)
def test_the_pyramid_has_the_deepest_stage_of_each_stride(reductions: list[int], stages: list[int]) -> None:
    assert pyramid_stages(reductions, 4) == stages
