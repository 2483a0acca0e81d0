"""Segmentation probe: mIoU worked by hand, overfitting, number of encodings, untouched test split."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_lightning.artifacts.records import Record
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.features import FeatureInfo
from ssl_lightning.networks.vit import create_small_vit
from ssl_lightning.probes._runner import run_probes
from ssl_lightning.probes.segmentation import SegmentationProbe

NAMES = ("left", "right", "absent")
SIZES = {"train": 12, "heldout": 4, "test": 8}


class Backbone(nn.Module):
    """Two stages of strides 1 and 2: the image and a trainable layer; counts its images."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.feature_info = FeatureInfo([3, 3], [1, 2], ["a", "b"])

    def forward(self, x: Tensor) -> list[Tensor]:
        self.images += len(x)
        return [x * self.scale, x[..., ::2, ::2] * 50]


def backbone() -> nn.Module:
    """Build a network, as the tests of detection do."""
    return Backbone()


Splits = dict[str, list[tuple[Tensor, Tensor]]]


def splits(change: Callable[[Tensor], Tensor] = lambda masks: masks) -> Splits:
    """Make images of 6 x 10 pixels whose red channel gives one of two classes, in two batches per split."""
    made = {}
    for split, n in SIZES.items():
        stream = generator("segmentation", split)
        masks = torch.randint(2, (n, 6, 10), generator=stream)
        images = torch.randint(256, (n, 3, 6, 10), generator=stream, dtype=torch.uint8)
        images[:, 0] = (60 + 120 * masks).byte()
        masks = change(masks)
        made[split] = [(images[i::2], masks[i::2]) for i in range(2)]
    return made


def run(
    data: Splits, folder: Path, backbone: nn.Module | None = None, seed: int = 0, **options: Any
) -> list[Record]:
    probe = SegmentationProbe(
        **{"steps": 60, "batch_size": 4, "lr": 0.1, "pictures": 0, "evals": 3} | options
    )
    probe.check(SIZES)
    return run_probes(
        {"backbone": backbone or Backbone()},
        lambda x: x - 0.5,
        {"segmentation": probe},
        data,
        class_names=NAMES,
        folder=folder,
        seed=seed,
    )[0]


def test_masks_are_learned_and_a_perfect_answer_scores_one(tmp_path: Path) -> None:
    (record,) = run(splits(), tmp_path, stages=[1])
    assert record.metric == "miou"
    assert (record.stage, record.n, record.value) == ("stage1", 8, 1.0)
    protocol = record.protocol
    assert protocol["per_class"] == {"left": 1.0, "right": 1.0, "absent": None}
    assert protocol["heldout"] == 1.0
    assert (protocol["backbone"], protocol["maps"]) == ("frozen", "kept")
    assert protocol["chosen_step"] == 20  # the first of equal ones


def test_iou_is_over_all_pixels_of_the_split_worked_by_hand(tmp_path: Path) -> None:
    data = splits()
    flat = torch.cat([masks for _, masks in data["test"]]).flatten()
    # a quarter of the pixels of "left" turn into "absent", which the head never answers
    wrong = (flat == 0).nonzero().flatten()
    wrong = wrong[: len(wrong) // 4]
    flat[wrong] = 2
    masks = flat.view(8, 6, 10)
    data["test"] = [(images, masks[4 * i : 4 * i + 4]) for i, (images, _) in enumerate(data["test"])]
    (record,) = run(data, tmp_path, stages=[1])
    lefts = int((flat == 0).sum())
    left = lefts / (lefts + len(wrong))  # predicted: all true pixels and the wrong ones
    assert record.protocol["per_class"] == {"left": pytest.approx(left), "right": 1.0, "absent": 0.0}
    assert record.value == pytest.approx((left + 1 + 0) / 3)


def test_void_pixels_count_nowhere(tmp_path: Path) -> None:
    def voided(masks: Tensor) -> Tensor:
        masks = masks.clone()
        masks[:, :2] = 255
        masks[0] = 255  # a full image
        return masks

    clean, void = splits(), splits(voided)
    for split in SIZES:  # the image under void pixels does not matter, in training or in test
        for images, masks in void[split]:
            images[:, 0][masks == 255] = 200
    (record,) = run(void, tmp_path, stages=[1])
    assert record.value == 1.0
    everything_void = {split: [(x, torch.full_like(m, 255)) for x, m in b] for split, b in clean.items()}
    with pytest.raises(ValueError, match=r"heldout.*no pixel"):
        run(everything_void, tmp_path, stages=[1])


def test_a_frozen_backbone_encodes_each_image_once(tmp_path: Path) -> None:
    backbone = Backbone().train()
    before = backbone.scale.clone()
    run(splits(), tmp_path, backbone)
    assert backbone.images == sum(SIZES.values()) + 1  # one tells the size of the maps
    assert torch.equal(backbone.scale, before)
    assert backbone.training


def test_keeping_the_maps_changes_no_figure(tmp_path: Path) -> None:
    def noisy(masks: Tensor) -> Tensor:
        return torch.where(torch.rand(masks.shape, generator=generator("noise")) < 0.3, 1 - masks, masks)

    kept, again = (run(splits(noisy), tmp_path, cache_gb=gb, steps=20)[0] for gb in (4.0, 0.0))
    assert (kept.protocol.pop("maps"), again.protocol.pop("maps")) == ("kept", "encoded at every step")
    assert kept == again
    assert 0.2 < kept.value < 0.9


def test_the_same_seed_gives_the_same_record(tmp_path: Path) -> None:
    options: dict[str, Any] = {"hidden": 4, "steps": 12, "lr": 0.02}
    first, second, other = (run(splits(), tmp_path, seed=seed, **options)[0] for seed in (3, 3, 4))
    assert first == second
    assert first.protocol["candidates"] != other.protocol["candidates"]


def test_finetuning_trains_a_copy(tmp_path: Path) -> None:
    backbone = Backbone()
    (record,) = run(splits(), tmp_path, backbone, finetune=True, backbone_lr=0.1, stages=[1])
    assert torch.equal(backbone.scale, torch.ones(3, 1, 1))
    assert record.protocol["backbone"].startswith("fine-tuned, lr 0.1")
    assert record.value == 1.0


def test_the_scale_of_the_features_does_not_matter(tmp_path: Path) -> None:
    large = Backbone()
    nn.init.constant_(large.scale, 1000.0)
    one, two = (run(splits(), tmp_path, t, steps=15, lr=0.01, stages=[1])[0] for t in (Backbone(), large))
    assert one.protocol["candidates"] == pytest.approx(two.protocol["candidates"], abs=1e-3)


def test_the_test_split_chooses_nothing(tmp_path: Path) -> None:
    data = splits()
    poisoned = {**data, "test": [(images, 1 - masks) for images, masks in data["test"]]}
    clean, other = (run(d, tmp_path, stages=[1])[0] for d in (data, poisoned))
    assert other.value == 0.0
    for record in (clean, other):
        record.protocol.pop("per_class")
    assert clean.protocol == other.protocol


def test_pictures_are_drawn(tmp_path: Path) -> None:
    run(splits(), tmp_path, pictures=2, steps=3)
    assert (tmp_path / "segmentation_backbone.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": -1}, r"hidden -1"),
        ({"cache_gb": -1.0}, r"cache_gb -1"),
        ({"steps": 0}, r"probe\.segmentation\.steps is 0"),
        ({"optimizer": "lion"}, r"'lion'; allowed are adamw, sgd"),
        ({"evals": 0}, r"evals is 0; it must be above 0"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1"),
    ],
)
def test_bad_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SegmentationProbe(**options)


def test_few_steps_have_fewer_evaluations(tmp_path: Path) -> None:
    (said,) = SegmentationProbe(steps=4).fitted_limits({"train": 20, "heldout": 4, "test": 4})
    assert said == "probe.segmentation.evals is 5; 4 is used, since the training has 4 steps"
    (record,) = run(splits(), tmp_path, steps=2, evals=3)
    assert list(record.protocol["candidates"]) == ["1", "2"]


def test_few_images_make_a_smaller_batch_and_unknown_stages_are_refused(tmp_path: Path) -> None:
    (said,) = SegmentationProbe().fitted_limits({"train": 3, "heldout": 4, "test": 4})
    assert said.startswith(
        "probe.segmentation.batch_size is 8; 3 is used, since the train split has 3 labelled"
    )
    (record,) = run(splits(), tmp_path, batch_size=100, steps=3)
    assert record.protocol["batch_size"] == SIZES["train"]
    with pytest.raises(ValueError, match="there are none"):
        SegmentationProbe().check({"train": 0, "heldout": 4, "test": 4})
    with pytest.raises(ValueError, match=r"stages is \[1, 3\]; this backbone has the stages 1 to 2"):
        run(splits(), tmp_path, stages=[1, 3])


def test_a_loss_that_is_not_finite_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"probe segmentation .* lower probe\.segmentation\.lr"):
        run(splits(), tmp_path, lr=1e30, optimizer="sgd", steps=9)


def test_the_maps_of_a_transformer_are_segmented(tmp_path: Path) -> None:
    data: Splits = {}
    for split, n in SIZES.items():
        stream = generator("vit", split)
        masks = torch.randint(2, (n, 4, 4), generator=stream)  # each class fills squares of four patches
        masks = masks.repeat_interleave(4, 1).repeat_interleave(4, 2)
        images = torch.randint(256, (n, 3, 16, 16), generator=stream, dtype=torch.uint8)
        images[:, 0] = (60 + 120 * masks).byte()
        data[split] = [(images, masks)]
    torch.manual_seed(0)
    vit = create_small_vit(patch_size=2, width=16, depth=2, heads=2, stages=2)
    (record,) = run(data, tmp_path, vit, steps=100)
    assert record.value > 0.8  # a constant answer has 0.25
