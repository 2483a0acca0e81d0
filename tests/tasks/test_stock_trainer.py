"""Tasks under a stock Trainer: stock loaders, loggers and callbacks, any backbone, and checkpoints."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchvision
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ssl_lightning.artifacts.weights import load_backbone
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.data.fake import Fake
from ssl_lightning.data.io.collate import collate_images
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.vit import create_small_vit
from ssl_lightning.run.execute import pretrain
from ssl_lightning.run.parts import build_parts
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
from ssl_lightning.tasks.mae import MAE
from ssl_lightning.tasks.pirl import PIRL
from ssl_lightning.tasks.random import Random
from ssl_lightning.tasks.rotation import Rotation
from ssl_lightning.tasks.simclr import SimCLR
from ssl_lightning.tasks.super_resolution import SuperResolution
from ssl_lightning.tasks.supervised import Supervised
from ssl_lightning.tasks.vicreg import VICReg
from tests._composed import composed
from tests._tasks import TASKS, class_of, others

JIGSAW = {"permutations": 4, "permutations_per_image": 2, "embedding": 8, "hidden": 8}
CONTEXT = {"pairs_per_image": 1, "embedding": 8, "hidden": 8}
VIEWS = {"hidden": 8, "embedding": 4}
# keywords that keep a task small
STOCK: dict[str, tuple[type[PretextTask], dict[str, Any]]] = {
    "rotation": (Rotation, {"copies": 1}),
    "jigsaw": (Jigsaw, JIGSAW),
    "jigsaw on tokens": (Jigsaw, {"on": "tokens", **JIGSAW}),
    "context_prediction": (ContextPrediction, CONTEXT),
    "context_prediction on tokens": (ContextPrediction, {"on": "tokens", **CONTEXT}),
    "colorization": (Colorization, {"width": 8, "prior_images": 8}),
    "inpainting": (Inpainting, {"discriminator_width": 4, "decoder_width": 8}),
    "super_resolution": (SuperResolution, {"discriminator_width": 4, "decoder_width": 8}),
    "combined": (
        Combined,
        {
            "parts": ["rotation", "colorization"],
            "weights": [1.0, 0.5],
            "options": {"rotation": {"copies": 1}, "colorization": {"width": 8, "prior_images": 8}},
        },
    ),
    "rotation and simclr": (
        Combined,
        {"parts": ["rotation", "simclr"], "options": {"rotation": {"copies": 1}, "simclr": VIEWS}},
    ),
    "mae": (MAE, {"decoder_width": 8, "decoder_heads": 2}),
    "simclr": (SimCLR, {"jitter": 0.5, **VIEWS}),
    "pirl": (PIRL, VIEWS),
    "barlow_twins": (BarlowTwins, VIEWS),
    "vicreg": (VICReg, VIEWS),
    "byol": (BYOL, {"momentum": 0.5, **VIEWS}),
    "dino": (DINO, {"prototypes": 16, "local_views": 1, "momentum": 0.5, **VIEWS}),
    "lejepa": (LeJEPA, {"views": 3, "slices": 8, **VIEWS}),
    "supervised": (Supervised, {}),
    "random": (Random, {}),
}
STOCK |= {name: (class_of(name), {}) for name in others(STOCK)}
OLD_RUN = Path(__file__).parent.parent / "fixtures/run_8a5cf39"
SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.6), (0.25, 0.2, 0.3))


def pictures(count: int = 8, size: int = 16, channels: int = 3) -> Tensor:
    shape = (count, channels, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator("pictures", size))


def loader(count: int = 8, size: int = 16, batch_size: int = 4) -> DataLoader:
    return DataLoader(TensorDataset(pictures(count, size), torch.arange(count) % 3), batch_size=batch_size)


def given(batches: Any) -> DataLoader:
    """A loader that gives these batches as they are."""
    return DataLoader(batches, batch_size=None)


def small() -> ConvNet:
    return ConvNet(widths=(8, 8), strides=(2, 2))


def vit() -> nn.Module:
    return create_small_vit(width=16, depth=2, heads=2, stages=2)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "logger": False, "max_epochs": 1, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(**(quiet | options))


def rows(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.rglob("metrics.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def scores(task: PretextTask, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    task.eval()
    with torch.no_grad():
        return task.step(task.receive(images), labels, generator("scores"))


def assert_equal_outputs(one: PretextTask, other: PretextTask, size: int) -> None:
    images, labels = pictures(4, size), torch.arange(4) % 3
    first, second = (scores(task, images, labels) for task in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    floats = images / 255
    assert one.branches().keys() == other.branches().keys()
    with torch.no_grad():
        for a, b in zip(
            *(task.backbone.eval()(task.probe_input(floats)) for task in (one, other)), strict=True
        ):
            assert torch.equal(a, b)


TILED = ("jigsaw", "context_prediction", "pirl")  # tiles that fit a stride of 32 need larger images
FAST = ("rotation", "colorization", "super_resolution", "combined", "byol")  # one of each kind of step


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in STOCK]
)
def test_a_stock_trainer_trains_logs_saves_and_loads(name: str, tmp_path: Path) -> None:
    kind, keywords = STOCK[name]
    torch.manual_seed(0)
    on_a_vit = kind is MAE or name.endswith("on tokens")
    task = kind(vit() if on_a_vit else torchvision.models.mobilenet_v3_small(), **keywords)
    size = 128 if name in TILED else 32
    best = ModelCheckpoint(tmp_path, monitor="val/loss", save_weights_only=True)
    found = trainer(
        tmp_path, max_epochs=2, log_every_n_steps=1, logger=CSVLogger(str(tmp_path)),
        enable_checkpointing=True, callbacks=[best, EarlyStopping("val/loss"), LearningRateMonitor()],
    )  # fmt: skip
    found.fit(task, loader(4, size, 2), loader(2, size, 2))
    logged = rows(tmp_path)
    assert len([row for row in logged if row["train/loss"]]) == 4
    assert len([row for row in logged if row["val/loss"]]) == 2
    assert found.callback_metrics.keys() >= {"train/loss", "val/loss"}
    assert Path(best.best_model_path).is_file()
    last = tmp_path / "last.ckpt"
    found.save_checkpoint(last, weights_only=True)
    loaded = kind.load_from_checkpoint(last)
    assert loaded.spec == task.spec
    assert loaded.keywords == keywords
    assert_equal_outputs(task, loaded, size)


@pytest.mark.parametrize("name", [*TASKS, "supervised"])
def test_the_default_optimizer_is_the_one_of_the_command(name: str, tmp_path: Path) -> None:
    cfg = composed(TASKS.get(name, [f"task={name}"]), tmp_path)
    kind, keywords = STOCK[name][0].default_optimizer
    assert cfg.optimizer._target_.rpartition(".")[2] == kind.__name__
    parameters = [nn.Parameter(torch.zeros(1))]
    default = kind(parameters, **keywords).param_groups[0]
    for key, value in cfg.optimizer.items():
        if not key.startswith("_"):
            assert default[key] == (tuple(value) if key == "betas" else value), key
    assert cfg.scheduler._target_.endswith(".one_cycle")


def test_the_schedule_spans_the_run_and_is_logged(tmp_path: Path) -> None:
    monitor = CSVLogger(str(tmp_path))
    found = trainer(
        tmp_path, max_epochs=-1, max_steps=6, logger=monitor, log_every_n_steps=1,
        callbacks=[LearningRateMonitor()],
    )  # fmt: skip
    task = Rotation(small())
    found.fit(task, loader(8, 16, 4))
    assert task.total_steps() == found.global_step == 6
    rates = [float(row["lr-SGD"]) for row in rows(tmp_path) if row.get("lr-SGD")]
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(reference, 0.1, total_steps=6)
    assert rates[0] == pytest.approx(cycle.get_last_lr()[0])
    assert max(rates) == pytest.approx(0.1, rel=0.1)


def test_only_the_logged_steps_call_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = Rotation.log_dict
    monkeypatch.setattr(Rotation, "log_dict", lambda *a, **k: (calls.append(a), plain(*a, **k))[1])
    found = trainer(tmp_path, logger=CSVLogger(str(tmp_path)), log_every_n_steps=2)
    found.fit(Rotation(small()), loader(16, 16, 4))
    assert len(calls) == 2  # of 4 steps
    assert len(rows(tmp_path)) == 2


def test_the_spec_is_the_one_of_the_first_batch_or_of_the_data_module(tmp_path: Path) -> None:
    images = pictures(4).float() / 255
    task = Rotation(small())
    with pytest.raises(ValueError, match=r"knows its images once training starts"):
        _ = task.spec
    trainer(tmp_path).fit(task, DataLoader(TensorDataset(images), batch_size=4))
    assert (task.spec.channels, task.spec.image_size) == (3, 16)
    assert task.spec.mean == pytest.approx(images.numpy().mean((0, 2, 3)), rel=1e-5)
    assert task.spec.std == pytest.approx(images.numpy().std((0, 2, 3), ddof=1), rel=1e-5)
    data, other = Fake(image_size=16, num_train=128, batch_size=16), Rotation(small())
    trainer(tmp_path).fit(other, data)
    assert other.spec == data.spec


BATCHES = {
    "images": [pictures(4)],
    "pair": [[pictures(4), torch.zeros(4)]],
    "triple": [(pictures(4), torch.arange(4), "more")],
    "dict": [{"image": pictures(4), "label": torch.arange(4)}],
    "dict of images": [{"image": pictures(4)}],
    "floats": [pictures(4) / 255],
    "doubles": [pictures(4).double() / 255],
    "grey": [pictures(4, channels=1)],
}


@pytest.mark.parametrize("name", BATCHES)
def test_kinds_of_batches(name: str, tmp_path: Path) -> None:
    backbone = ConvNet(in_channels=1 if name == "grey" else 3, widths=(8,), strides=(2,))
    task = Rotation(backbone)
    trainer(tmp_path).fit(task, given(BATCHES[name]))
    assert set(task.scores) == {"loss", "acc"}


def test_floats_and_bytes_train_alike(tmp_path: Path) -> None:
    found = []
    for batch in (pictures(4), pictures(4) / 255):
        torch.manual_seed(0)
        task = Rotation(small(), SPEC)
        trainer(tmp_path).fit(task, given([batch]))
        found.append(task.scores["loss"])
    torch.testing.assert_close(*found)


WRONG = {
    "pictures": ([[Image.new("RGB", (16, 16))]], "list whose first entry has type Image; .*collate_images"),
    "text": (["cat"], "gives a str; a batch is images"),
    "labels": ([torch.arange(4)], r"gives a tensor of shape \(4,\); a batch is images"),
    "keys": ([{"pixels": pictures(4)}], "gives a dict with the keys pixels; a batch is images"),
    "integers": ([pictures(4).long()], "of type torch.int64; a batch is images"),
    "normalised": ([pictures(4) / 127.5 - 1], "floats from -1 to 1; allowed are uint8 and floats in"),
    "wide": ([pictures(4)[..., :8]], "3 channels and 16 x 8 px; tasks take square images"),
    "alpha": ([pictures(4, channels=4)], "Rotation feeds the backbone 4 channels, but its first .* takes 3;"),
    "two channels": ([pictures(4, channels=2)], "images with 2 channels and 16 x 16 px"),
    "one colour": ([torch.ones(4, 3, 16, 16)], "all pixels of 4 sampled pretraining images have the value"),
    "nothing": ([], "training loader gives no batch"),
    "uncollated": (DataLoader([Image.new("RGB", (8, 8))]), "cannot collate its samples; .*collate_images"),  # type: ignore[arg-type]
    "grey": ([pictures(4, channels=1)], r"feeds the backbone 1 channel, but .* takes 3; .*\(channels=3\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_batches_get_one_sentence(name: str, tmp_path: Path) -> None:
    batches, message = WRONG[name]
    batches = batches if isinstance(batches, DataLoader) else given(batches)
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        trainer(tmp_path).fit(Rotation(small()), batches)
    assert "\n" not in str(error.value)


def test_colorization_of_grey_pictures_is_refused(tmp_path: Path) -> None:
    grey = pictures(4, channels=1).expand(-1, 3, -1, -1).contiguous()
    with pytest.raises(ValueError, match="all 4 sampled pretraining images are grey;"):
        trainer(tmp_path).fit(Colorization(small()), given([grey]))


def test_batches_that_do_not_fit_a_given_spec(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images of shape \(3, 8, 8\), and the task takes \(3, 16, 16\)"):
        trainer(tmp_path).fit(Rotation(small(), SPEC), given([pictures(4, 8)]))
    with pytest.raises(ValueError, match=r"floats from 0 to 255"):
        trainer(tmp_path).fit(Rotation(small(), SPEC), given([pictures(4).float()]))


def test_one_image_is_too_few_for_batch_norm(tmp_path: Path) -> None:
    task = Rotation(ConvNet(widths=(8, 8), strides=(4, 4)), copies=1)
    with pytest.raises(ValueError, match=r"a batch of one image is too small for batch norm.*drop_last=True"):
        trainer(tmp_path).fit(task, loader(3, 16, 2))


@pytest.mark.parametrize("name", [name for name, (kind, _) in STOCK.items() if kind.fewest_images > 1])
def test_tasks_that_compare_images_refuse_one_of_them(name: str, tmp_path: Path) -> None:
    kind, options = STOCK[name]
    with pytest.raises(ValueError, match=rf"batch size is 1, and {kind.__name__} compares .*batch_size=64"):
        trainer(tmp_path).fit(kind(small(), **options), loader(3, 16, 1))


def test_supervised_learns_the_classes_of_the_loader(tmp_path: Path) -> None:
    task = Supervised(small())
    trainer(tmp_path).fit(task, loader(6, 16, 3))
    assert task.spec.class_names == ("0", "1", "2")
    data = TensorDataset(pictures(4), torch.arange(4) % 2)
    data.classes = ["cat", "dog", "frog"]  # type: ignore[attr-defined]
    named = Supervised(small())
    trainer(tmp_path).fit(named, DataLoader(data, batch_size=4))
    assert named.spec.class_names == ("cat", "dog", "frog")
    data = TensorDataset(pictures(4), torch.tensor([0, 1, -1, -1]))
    data.classes = ["cat", "dog"]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"labels must be 0 or more in every batch"):
        trainer(tmp_path).fit(Supervised(small()), DataLoader(data, batch_size=4))
    with pytest.raises(ValueError, match=r"learns from labels, and the loader gives none"):
        trainer(tmp_path).fit(Supervised(small()), given([pictures(4)]))


class Endless(IterableDataset):
    """Images without end."""

    def __iter__(self) -> Any:
        while True:
            yield pictures(1)[0]


def test_runs_without_an_end(tmp_path: Path) -> None:
    endless = DataLoader(Endless(), batch_size=4)
    with pytest.raises(ValueError, match=r"loader has no length.*Trainer\(max_steps=...\)"):
        trainer(tmp_path, max_epochs=2).fit(Rotation(small()), endless)
    with pytest.raises(ValueError, match="are both -1; a schedule needs an end"):
        trainer(tmp_path, max_epochs=-1).fit(Rotation(small()), loader())
    for kind in (Rotation, Inpainting):
        found = trainer(tmp_path, max_epochs=-1, max_steps=4)
        found.fit(kind(small()), endless)
        assert found.global_step == 4


@pytest.mark.parametrize("option", [{"gradient_clip_val": 1.0}, {"accumulate_grad_batches": 2}])
def test_adversarial_tasks_name_their_own_argument(option: dict[str, Any], tmp_path: Path) -> None:
    (name, value), task = next(iter(option.items())), Inpainting(small())
    with pytest.raises(ValueError, match=rf"give it to the task: Inpainting\(..., {name}={value}\)"):
        trainer(tmp_path, **option).fit(task, loader())
    # without a discriminator, the arguments of the Trainer work
    trainer(tmp_path, **option).fit(Inpainting(small(), adversarial_weight=0), loader())
    with pytest.raises(ValueError, match=rf"give them to the Trainer: Trainer\(.*{name}={value}"):
        Inpainting(small(), adversarial_weight=0, **option)


def test_adversarial_tasks_accumulate_and_clip(tmp_path: Path) -> None:
    task = SuperResolution(small(), SPEC, accumulate_grad_batches=2, gradient_clip_val=1e-3)
    norms = []

    class Norms(pl.Callback):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            grads = [
                p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))

    found = trainer(tmp_path, callbacks=[Norms()])
    found.fit(task, loader(16, 16, 4))
    assert found.global_step == 2 * task.total_steps() == 4  # 4 batches, 2 steps of 2 optimizers
    for norm in norms:
        assert norm <= 1.001e-3
    with pytest.raises(ValueError, match="accumulate_grad_batches is 0"):
        Inpainting(small(), accumulate_grad_batches=0)


@pytest.mark.parametrize("warmup", [0, 2, 9])
def test_max_steps_count_both_optimizers(warmup: int, tmp_path: Path) -> None:
    task = Inpainting(small(), warmup_steps=warmup)
    found = trainer(tmp_path, max_epochs=-1, max_steps=6)
    found.fit(task, loader(64, 16, 4))
    generator_steps = {0: 3, 2: 4, 9: 6}[warmup]
    assert task.total_steps() == generator_steps
    assert found.fit_loop.total_batch_idx + 1 == generator_steps


def test_ddp_needs_unused_parameters(tmp_path: Path) -> None:
    found = trainer(tmp_path, strategy="ddp", devices=1)
    task = Inpainting(small(), SPEC)
    task.trainer = found
    with pytest.raises(ValueError, match="ddp_find_unused_parameters_true"):
        task.setup("fit")
    task.trainer = trainer(tmp_path, strategy="ddp_find_unused_parameters_true", devices=1)
    task.setup("fit")


def test_float16_accumulates_for_one_optimizer_only(tmp_path: Path) -> None:
    float16 = SimpleNamespace(precision="16-mixed")
    Inpainting(small(), SPEC).check_trainer(float16)
    Inpainting(small(), SPEC, adversarial_weight=0).check_trainer(float16)
    task = Inpainting(small(), SPEC, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches is 2 with .*=16-mixed"):
        task.check_trainer(float16)
    trainer(tmp_path).fit(task, loader())


@pytest.mark.parametrize("kind", [Rotation, Inpainting])
def test_a_stock_resume_continues_the_run(kind: type[PretextTask], tmp_path: Path) -> None:
    quiet = {"instance_noise": 0.0} if kind is Inpainting else {}  # noise depends on the length of the run
    weights = []
    for folder, epochs in (("whole", (3,)), ("parts", (1, 3))):
        checkpoint = None
        for last in epochs:
            torch.manual_seed(0)
            task = kind(small(), optimizer=lambda p: torch.optim.SGD(p, lr=0.01), **quiet)
            found = trainer(tmp_path, max_epochs=last)
            # another first batch must not change the statistics of the resumed run
            images = loader(8) if checkpoint is None else [*reversed(list(loader(8)))]
            if checkpoint is not None:
                images = OrderOnce(images, list(loader(8)))
            found.fit(task, images, ckpt_path=checkpoint)
            checkpoint = tmp_path / f"{folder}.ckpt"
            found.save_checkpoint(checkpoint)
        weights.append((task.spec, task.state_dict()))
    assert weights[0][0] == weights[1][0]
    for name, value in weights[0][1].items():
        assert torch.equal(value, weights[1][1][name]), name


class OrderOnce:
    """Batches in another order the first time that they are read."""

    def __init__(self, first: list[Any], later: list[Any]) -> None:
        self.first, self.later, self.read = first, later, False

    def __len__(self) -> int:
        return len(self.later)

    def __iter__(self) -> Any:
        chosen = self.later if self.read else self.first
        self.read = True
        return iter(chosen)


class MyNet(nn.Module):
    """A network that no recipe describes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.two = nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu()).mean((2, 3))


def saved(task: PretextTask, folder: Path) -> Path:
    found = trainer(folder)
    found.fit(task, loader(4))
    found.save_checkpoint(folder / "task.ckpt")
    return folder / "task.ckpt"


def test_an_unknown_backbone_is_asked_for(tmp_path: Path) -> None:
    task = Rotation(MyNet())
    path = saved(task, tmp_path)
    with pytest.raises(ValueError, match=r"a MyNet of your own; .*load_from_checkpoint\(.*, backbone=...\)"):
        Rotation.load_from_checkpoint(path)
    assert_equal_outputs(task, Rotation.load_from_checkpoint(path, backbone=MyNet()), 16)
    with pytest.raises(ValueError, match="does not fit the task and its backbone"):
        Rotation.load_from_checkpoint(path, backbone=small())
    with pytest.raises(ValueError, match="holds the task Rotation; load it by Rotation"):
        Jigsaw.load_from_checkpoint(path)


def test_a_changed_torchvision_model_is_not_mistaken(tmp_path: Path) -> None:
    net = torchvision.models.mobilenet_v3_small()
    net.features[0][2] = nn.ReLU()
    path = saved(Rotation(net, copies=1), tmp_path)
    with pytest.raises(ValueError, match="cannot rebuild its backbone, a MobileNetV3"):
        Rotation.load_from_checkpoint(path)


@pytest.mark.parametrize("name", ["own", "own vit", "timm features", "timm classifier", "timm vit"])
def test_known_backbones_are_rebuilt(name: str, tmp_path: Path) -> None:
    import timm

    make = {
        "own": small,
        "own vit": vit,
        "timm features": lambda: timm.create_model("test_resnet", features_only=True, out_indices=(1, 2)),
        "timm classifier": lambda: timm.create_model("test_resnet", num_classes=7),
        "timm vit": lambda: timm.create_model("test_vit", img_size=16),
    }
    task = Rotation(make[name](), copies=1)
    assert_equal_outputs(task, Rotation.load_from_checkpoint(saved(task, tmp_path)), 16)


def test_checkpoints_hold_plain_values_only(tmp_path: Path) -> None:
    path = saved(Inpainting(small(), optimizer=torch.optim.Adam, mask="blocks"), tmp_path)
    stored = torch.load(path, weights_only=True)["pretext_task"]
    assert stored["keywords"] == {"mask": "blocks"}
    assert stored["backbone"]["_target_"] == "ssl_lightning.networks.convnet.ConvNet"


def test_a_checkpoint_of_a_run_loads(tmp_path: Path) -> None:
    options = ["task=inpainting", "task.discriminator_width=4", "data=fake", "data.num_train=96"]
    options += ["backbone=resnet18_small", "data.image_size=16", "data.batch_size=4", "data.heldout=4"]
    options += ["probe=[]", "callbacks=[checkpoint]"]
    options += ["trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
    job = build_parts(composed(options, tmp_path), tmp_path)
    pretrain(job)
    # the file alone is enough
    path = (tmp_path / "checkpoints/last.ckpt").rename(tmp_path / "moved.ckpt")
    loaded = Inpainting.load_from_checkpoint(path)
    assert loaded.spec == job.data.spec
    assert_equal_outputs(job.task, loaded, loaded.spec.image_size)


def test_a_checkpoint_of_an_old_run_loads(tmp_path: Path) -> None:
    folder = shutil.copytree(OLD_RUN, tmp_path / "run")
    task = Rotation.load_from_checkpoint(folder / "checkpoints/last.ckpt")
    assert (task.spec.image_size, task.spec.num_classes) == (32, 4)
    exported = load_backbone(folder)
    images = pictures(4, 32) / 255
    with torch.no_grad():
        for a, b in zip(
            task.eval().backbone(task.probe_input(images)), exported(task.probe_input(images)), strict=True
        ):
            torch.testing.assert_close(a, b)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("ssl_lightning.networks.convnet.ConvNet", "os.system"))
    with pytest.raises(ValueError, match=r"would run 'os\.system'"):
        Rotation.load_from_checkpoint(folder / "checkpoints/last.ckpt")


def test_collate_images() -> None:
    red, grey = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("L", (4, 4), 7)
    images = collate_images([red, grey])
    assert images.shape == (2, 3, 4, 4)
    assert images[:, :, 0, 0].tolist() == [[255, 0, 0], [7, 7, 7]]
    assert collate_images([grey, grey]).shape == (2, 1, 4, 4)
    found = collate_images([{"image": red, "label": 1}, {"image": grey, "label": 2}])
    assert found["label"].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"pictures of 4 x 4 and 8 x 4 px; add Resize"):
        collate_images([red, Image.new("RGB", (8, 4))])
    with pytest.raises(ValueError, match="found a Tensor in place of a picture"):
        collate_images([torch.zeros(3, 4, 4)])
    deep = Image.fromarray(np.array([[0, 257, 65535]], np.uint16))  # converted as of files, not clipped
    assert collate_images([deep]).flatten().tolist() == [0, 1, 255]


def test_pictures_train_with_the_collate(tmp_path: Path) -> None:
    data: Any = [(Image.fromarray(each.permute(1, 2, 0).numpy()), n) for n, each in enumerate(pictures(4))]
    task = Rotation(small())
    trainer(tmp_path).fit(task, DataLoader(data, batch_size=4, collate_fn=collate_images))
    assert task.spec.image_size == 16
