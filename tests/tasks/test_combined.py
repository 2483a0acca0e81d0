"""Combined tasks: each part learns as it does alone, and the loss is the weighted sum."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.tasks.barlow_twins import BarlowTwins
from ssl_lightning.tasks.base import PretextTask
from ssl_lightning.tasks.byol import BYOL
from ssl_lightning.tasks.colorization import Colorization
from ssl_lightning.tasks.combined import Combined
from ssl_lightning.tasks.context_prediction import ContextPrediction
from ssl_lightning.tasks.dino import DINO
from ssl_lightning.tasks.inpainting import Inpainting
from ssl_lightning.tasks.jigsaw import Jigsaw
from ssl_lightning.tasks.lejepa import LeJEPA
from ssl_lightning.tasks.pirl import PIRL
from ssl_lightning.tasks.rotation import Rotation
from ssl_lightning.tasks.simclr import SimCLR
from ssl_lightning.tasks.super_resolution import SuperResolution
from ssl_lightning.tasks.vicreg import VICReg
from tests._tasks import FORMS, TASKS, class_of, others
from tests.tasks._learning import learn

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
SMALL = {"embedding": 8, "hidden": 8}
PARTS: dict[str, tuple[type[PretextTask], dict[str, Any]]] = {
    "rotation": (Rotation, {"copies": 1}),
    "jigsaw": (Jigsaw, {"permutations": 8, **SMALL}),
    "context_prediction": (ContextPrediction, {"pairs_per_image": 3, **SMALL}),
    "colorization": (Colorization, {"width": 8}),
    "inpainting": (Inpainting, {"adversarial_weight": 0.0, "decoder_width": 8}),
    "super_resolution": (SuperResolution, {"adversarial_weight": 0.0, "decoder_width": 8}),
    "simclr": (SimCLR, SMALL),
    "pirl": (PIRL, SMALL),
    "barlow_twins": (BarlowTwins, SMALL),
    "vicreg": (VICReg, SMALL),
    "byol": (BYOL, SMALL),
    "dino": (DINO, {"prototypes": 16, "local_views": 2, **SMALL}),
    "lejepa": (LeJEPA, {"slices": 8, **SMALL}),
}
PARTS |= {name: (class_of(name), {}) for name in others(PARTS)}


def backbone() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(widths=(8, 8), strides=(2, 2))


def alone(name: str, **base: Any) -> PretextTask:
    kind, options = PARTS[name]
    return kind(backbone(), SPEC, **options, **base)


def test_every_hook_of_a_part_is_called() -> None:
    kinds = {cls for kind, _ in PARTS.values() for cls in kind.__mro__ if issubclass(cls, PretextTask)}
    own = {name for kind in kinds - {PretextTask} for name in vars(kind)}
    of_two_optimizers = {"on_save_checkpoint"}  # no part has two
    assert {name for name in own if name.startswith("on_")} - of_two_optimizers <= set(vars(Combined))
    assert "validation_step" not in own  # Lightning calls that of the combined task


def combined(*names: str, **more: Any) -> Combined:
    options = {name: PARTS[name][1] for name in names}
    return Combined(backbone(), SPEC, parts=names, options=options, **more)


def pictures(count: int = 6, name: str = "pictures") -> Tensor:
    return torch.randint(256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator(name))


def score(task: PretextTask, images: Tensor) -> dict[str, Tensor]:
    return task.step(task.receive(images), torch.full((len(images),), -1), generator("step"))


def gradients(task: PretextTask) -> dict[str, Tensor]:
    task.zero_grad()
    score(task, pictures())["loss"].backward()
    return {name: p.grad for name, p in task.backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", PARTS)
def test_one_part_is_the_task_itself(name: str) -> None:
    task, only = alone(name), combined(name)
    for _ in range(2):  # training, then validation
        own, found = score(task, pictures()), score(only, pictures())
        assert torch.equal(found["loss"], own["loss"])
        for key, value in own.items():
            assert torch.equal(found[f"{name}/{key}"], value), key
        task.eval(), only.eval()
    state = only.state_dict()
    for key, value in task.state_dict().items():  # batch-norm statistics too
        place = key if key.startswith("backbone.") else f"parts.{name}.{key}"
        assert torch.equal(state[place], value), key
    assert len(state) == len(task.state_dict())
    floats = pictures() / 255
    assert torch.equal(only.probe_input(floats), task.probe_input(floats))
    assert only.views_per_image == task.views_per_image
    assert only.recalibrate == task.recalibrate
    assert only.input_config() == task.input_config()


@pytest.mark.parametrize("other", [name for name in PARTS if name != "jigsaw"])
@pytest.mark.parametrize("first", [True, False])
def test_another_part_changes_neither_draws_nor_weights_nor_statistics(other: str, first: bool) -> None:
    names = ("jigsaw", other) if first else (other, "jigsaw")
    task, both = alone("jigsaw"), combined(*names)
    for _ in range(2):
        own, found = score(task, pictures()), score(both, pictures())
        for key, value in own.items():
            assert torch.equal(found[f"jigsaw/{key}"], value), key
        assert torch.equal(found["loss"], sum(found[f"{name}/loss"] for name in names))
        task.eval(), both.eval()


@pytest.mark.parametrize("names", [("jigsaw", "colorization"), ("colorization", "jigsaw")])
def test_a_part_of_weight_0_changes_no_gradient(names: tuple[str, str]) -> None:
    expected = gradients(alone(names[0]))
    found = gradients(combined(*names, weights=[1, 0]))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_the_gradient_is_the_weighted_sum() -> None:
    weights = {"rotation": 0.5, "jigsaw": 2.0, "inpainting": 3.0}
    found = gradients(combined(*weights, weights=list(weights.values())))
    parts = {name: gradients(alone(name)) for name in weights}
    for key, value in found.items():
        expected = sum(weight * parts[name][key] for name, weight in weights.items())
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


def test_the_first_part_leads() -> None:
    floats = pictures() / 255
    for names in (("rotation", "colorization"), ("colorization", "rotation"), ("jigsaw", "rotation")):
        task, lead = combined(*names), alone(names[0])
        assert torch.equal(task.probe_input(floats), lead.probe_input(floats))
        assert task.recalibrate == lead.recalibrate
        assert task.input_config() == lead.input_config()
    views = combined("jigsaw", "rotation").probe_views(floats)
    assert torch.equal(views, alone("jigsaw").probe_views(floats))


def test_a_trainer_trains_one_part_as_the_task_and_logs_every_part(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False,
        "enable_checkpointing": False, "max_epochs": 2, "default_root_dir": tmp_path, "log_every_n_steps": 1,
    }  # fmt: skip

    def fit(task: PretextTask) -> pl.Trainer:
        trainer = pl.Trainer(**options)
        train, val = (DataLoader(TensorDataset(pictures(8, name)), batch_size=4) for name in "ab")
        trainer.fit(task, train, val)
        return trainer

    optimizer = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1)}
    task, only = alone("jigsaw", **optimizer), combined("jigsaw", **optimizer)
    fit(task), fit(only)
    for key, value in task.backbone.state_dict().items():
        assert torch.equal(only.backbone.state_dict()[key], value), key
    logged = fit(combined("rotation", "colorization")).callback_metrics.keys()
    both = {"loss", "rotation/loss", "rotation/acc", "colorization/loss", "colorization/constant_loss"}
    assert {name for name in logged if name.startswith("train/")} == {f"train/{name}" for name in both}
    assert {f"val/{name}" for name in both} | {"val/colorization/psnr"} <= set(logged)


def test_a_few_images_are_learned_by_heart() -> None:
    torch.manual_seed(0)
    orders = {"permutations": 4, "permutations_per_image": 4, "embedding": 16, "hidden": 32, "grey": 0.0}
    options = {"rotation": {}, "jigsaw": orders}
    spec = ImageSpec(3, 24, (0.5,) * 3, (0.25,) * 3)
    task = Combined(ConvNet(widths=(16, 16), strides=(2, 2)), spec, parts=list(options), options=options)
    coarse = torch.rand(8, 3, 6, 6, generator=generator("coarse"))
    images = F.interpolate(coarse, 24, mode="bicubic").clamp(0, 1)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    found = learn(task, images, optimizer, steps=100)
    assert found["rotation/acc"] >= 0.95
    assert found["jigsaw/acc"] >= 0.95


def test_the_panel_shows_every_part() -> None:
    task = combined("rotation", "colorization").eval()
    images = pictures(2) / 255
    panel, own = task.panel(images), alone("rotation").eval().panel(images)
    assert panel.images.shape == (2, 4 + 3, 3, 16, 16)
    assert torch.equal(panel.images[:, :4], own.images)
    assert panel.columns[3:5] == ["rotation\nrotated by 270°", "colorization\ngrey"]
    assert [row[:4] for row in panel.captions] == own.captions
    assert panel.captions[0][4].startswith("ab mse")
    assert panel.right[0][4:] == [None] * 3
    assert panel.watched == 5


def test_facts_of_the_parts_are_collected() -> None:
    task = combined("jigsaw", "rotation", "colorization")
    assert task.views_per_image == 9 + 1 + 1
    assert task.chances() == {"jigsaw/acc": 1 / 8, "rotation/acc": 1 / 4}
    assert task.recordable
    assert task.labels_seen == "none"
    assert not task.shares_draws
    assert combined("rotation", "simclr").shares_draws
    owned = {id(p) for network in task.networks() for p in network.parameters()}
    assert owned == {id(p) for p in task.parameters()}


@pytest.mark.parametrize(("other", "shared"), [("simclr", True), ("colorization", False)])
def test_only_parts_that_share_draws_draw_alike_in_all_processes(
    other: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Combined, "global_rank", property(lambda self: self.process))
    task = combined("rotation", other)
    drawn: dict[str, list[float]] = {"rotation": [], other: []}
    for name, part in task.tasks.items():

        def step(
            images: Tensor, labels: Tensor, stream: torch.Generator, name: str = name
        ) -> dict[str, Tensor]:
            drawn[name].append(float(torch.rand(1, generator=stream)))
            return {"loss": torch.zeros((), requires_grad=True)}

        monkeypatch.setattr(part, "step", step)
    for process in range(2):
        task.__dict__["process"] = process
        task.step(torch.zeros(2, 3, 16, 16), torch.zeros(2), task.training_stream(0, torch.device("cpu")))
    assert drawn["rotation"][0] != drawn["rotation"][1]
    assert (drawn[other][0] == drawn[other][1]) == shared
    assert drawn["rotation"][0] == drawn[other][0]  # each part draws what it draws alone


def test_the_channels_of_the_backbone_are_those_of_every_part() -> None:
    grey = ConvNet(in_channels=1, widths=(8, 8), strides=(2, 2))
    Combined(grey, SPEC, parts=["colorization"]).check_channels()
    both = Combined(grey, SPEC, parts=["colorization", "rotation"])
    with pytest.raises(ValueError, match=r"feeds the backbone 3 channels, but its first .* takes 1"):
        both.check_channels()


ALLOWED = ", ".join(name for name in TASKS if name not in {*FORMS, "combined"}) + "$"
REFUSED: dict[str, dict[str, Any]] = {
    rf"task.parts is \['rotatoin'\]; allowed are different names of pretext tasks: {ALLOWED}": {
        "parts": ["rotatoin"]
    },
    r"task.parts is \['rotation', 'random'\]; allowed": {"parts": ["rotation", "random"]},
    r"task.parts is \['combined'\]; allowed": {"parts": ["combined"]},
    r"task.parts is \['jigsaw', 'jigsaw'\]; allowed": {"parts": ["jigsaw", "jigsaw"]},
    r"task.parts is \[\]; allowed": {"parts": []},
    r"task.weights is \[1\]; allowed is null, or a number for each of the 2 task.parts": {"weights": [1]},
    r"task.weights is \[1, -1\]; .* 0 or more": {"weights": [1, -1]},
    r"task.weights is \[0, 0\]; .* one of them above 0": {"weights": [0, 0]},
    r"task.options has jigsaw; allowed are the names in task.parts, rotation, colorization": {
        "options": {"jigsaw": {}}
    },
    r"task.options.rotation.copies is 3; allowed are 4": {"options": {"rotation": {"copies": 3}}},
    r"task.options.rotation.copies is 'x'; allowed is a whole number": {
        "options": {"rotation": {"copies": "x"}}
    },
    r"task.options.rotation.seed is not a key of task.options.rotation; it takes copies": {
        "options": {"rotation": {"seed": 1}}
    },
    r"task.options.colorization.cache_dir is not a key": {"options": {"colorization": {"cache_dir": "x"}}},
    r"inpainting, whose discriminator .*: \+task.options.inpainting.adversarial_weight=0$": {
        "parts": ["rotation", "inpainting"]
    },
    r"task.options.jigsaw.tile is 64 px; allowed are 1 to 5": {
        "parts": ["jigsaw"], "options": {"jigsaw": {"tile": 64}}
    },
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_values_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Combined(backbone(), SPEC, **REFUSED[message])
    assert "\n" not in str(error.value)
