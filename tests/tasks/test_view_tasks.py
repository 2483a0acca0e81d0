"""Tasks that compare two views: two processes against one, and a last batch of one image."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from ssl_lightning.config.composition import compose
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.engine.sync_batch_norm import synchronise_batch_norm
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks._views import BatchPlace, ViewTask
from ssl_lightning.tasks.barlow_twins import BarlowTwins
from ssl_lightning.tasks.byol import BYOL
from ssl_lightning.tasks.dino import DINO
from ssl_lightning.tasks.lejepa import LeJEPA
from ssl_lightning.tasks.pirl import PIRL
from ssl_lightning.tasks.simclr import SimCLR
from ssl_lightning.tasks.vicreg import VICReg
from tests._two_processes import in_two_processes

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
KINDS: dict[str, type[ViewTask]] = {
    "simclr": SimCLR, "pirl": PIRL, "barlow_twins": BarlowTwins, "vicreg": VICReg, "byol": BYOL, "dino": DINO,
    "lejepa": LeJEPA,
}  # fmt: skip
COUNTS = {True: (5, 5), False: (4, 3)}  # images of each process, in training and in the last validation batch


def make(kind: str, **keywords: Any) -> ViewTask:
    torch.manual_seed(0)
    return KINDS[kind](ConvNet(widths=(8, 16), strides=(2, 2)), SPEC, hidden=32, embedding=8, **keywords)


def pictures(count: int) -> Tensor:
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator("pictures"))


def scored(task: ViewTask, images: Tensor) -> dict[str, Any]:
    scores = task.step(images, torch.full((len(images),), -1), generator("shared"))
    if task.training:
        scores["loss"].backward()
    return {name: value.detach() for name, value in scores.items()}


def one_process(rank: int, folder: Path) -> None:
    found: dict[str, Any] = {}
    for kind in KINDS:
        for training, counts in COUNTS.items():
            task = make(kind).train(training)
            synchronise_batch_norm(task, on_gpu=False)
            task._alone = False
            first = BatchPlace(counts, rank).first
            scores = scored(task, pictures(sum(counts))[first : first + counts[rank]])
            gradients = {n: p.grad for n, p in task.named_parameters()}
            found[f"{kind} {training}"] = (scores, gradients, dict(task.named_buffers()))
    torch.save(found, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(one_process, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("training", COUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_compare_all_images_and_draw_the_views_of_one(
    kind: str, training: bool, two_processes: list[dict[str, Any]]
) -> None:
    task, counts = make(kind).train(training), COUNTS[training]
    expected = scored(task, pictures(sum(counts)))
    parts = [found[f"{kind} {training}"] for found in two_processes]
    for name, value in expected.items():  # Lightning weighs the processes by their images
        shares = [scores[name] * count for (scores, *_), count in zip(parts, counts, strict=True)]
        mean = torch.stack(shares).sum() / sum(counts)
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5, msg=name)
    for name, value in task.named_buffers():  # statistics, and the centre of DINO
        for _, _, buffers in parts:
            torch.testing.assert_close(buffers[name], value, rtol=1e-4, atol=1e-5, msg=name)
    # of all parameters: a bias before a normalisation has a gradient of 0, up to rounding
    learning = {name: p.grad for name, p in task.named_parameters() if training and p.requires_grad}
    scale = max((float(gradient.abs().max()) for gradient in learning.values()), default=0.0)  # type: ignore[union-attr]
    for name, gradient in learning.items():
        mean = (parts[0][1][name] + parts[1][1][name]) / 2  # as DDP takes it
        torch.testing.assert_close(mean, gradient, rtol=1e-3, atol=1e-4 * scale + 1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_validation_batch_of_one_image_has_a_finite_loss(kind: str) -> None:
    assert torch.isfinite(scored(make(kind).eval(), pictures(1))["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_smaller_views_enter_the_backbone(kind: str) -> None:
    task = make(kind, view_scale=0.7)  # 11.2 px; the first stage has stride 2
    sides: list[int] = []
    task.backbone.register_forward_pre_hook(lambda module, given: sides.append(given[0].shape[-1]))
    scored(task, pictures(4))
    assert sides[0] == 12
    assert max(sides) == 12
    shown = task.panel(pictures(4)).images  # (B, columns, C, H, W)
    assert shown.shape[-2:] == (16, 16)


@pytest.mark.parametrize(("scale", "size"), [(1.0, 16), (0.9, 14), (0.75, 12), (0.05, 4), (1.5, 24)])
def test_views_are_a_multiple_of_the_first_stride(scale: float, size: int) -> None:
    assert make("simclr", view_scale=scale).view_size == size


@pytest.mark.parametrize(
    "name", ["convnet", "resnet18_small", "vit_tiny_small_images"]
)  # strides 4, 8; patches 4
def test_views_of_the_tables_have_20_pixels_with_every_backbone(name: str) -> None:
    backbone = instantiate(compose("train", [f"backbone={name}", "name=one"]).backbone)
    task = SimCLR(backbone, ImageSpec(3, 32, SPEC.mean, SPEC.std), view_scale=0.625)
    assert task.view_size == 20
    maps = task.backbone(torch.zeros(2, 3, 20, 20))
    assert all(torch.isfinite(each).all() for each in maps)
