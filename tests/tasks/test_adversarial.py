"""Adversarial tasks: closed forms, gradients of each network, and one Trainer for both."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.artifacts.checkpoints import FIRST_STEPS
from ssl_lightning.callbacks.csv_logger import CSVLogger
from ssl_lightning.callbacks.health import DivergedError, GradientWatch, HealthGuard
from ssl_lightning.callbacks.metrics import Metrics
from ssl_lightning.callbacks.throughput import Throughput
from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.core.seeding import generator
from ssl_lightning.data.fake import Fake
from ssl_lightning.engine import optim
from ssl_lightning.engine.trainer import make_trainer
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.discriminator import JUDGES, NORMS
from ssl_lightning.networks.srresnet import SRResNet
from ssl_lightning.ops.adversarial import LOSSES
from ssl_lightning.ops.diff_augment import AUGMENTATIONS
from ssl_lightning.tasks._adversarial import AdversarialTask
from ssl_lightning.tasks.inpainting import Inpainting
from ssl_lightning.tasks.super_resolution import SuperResolution

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
DEFAULT = {
    "mask": "center",
    "adversarial_weight": 0.5,
    "adversarial_loss": "non_saturating",
    "discriminator_width": 8,
    "discriminator_norm": "batch",
    "discriminator_head": "average",
    "label_smoothing": 0.1,
}


def make(**options: Any) -> Inpainting:
    torch.manual_seed(0)
    return Inpainting(ConvNet(widths=(8, 8), strides=(2, 2)), SPEC, **(DEFAULT | options))


def judging(task: AdversarialTask) -> list[nn.Parameter]:
    return task.second_parameters()


def making(task: AdversarialTask) -> list[nn.Parameter]:
    known = {id(p) for p in judging(task)}
    return [p for p in task.parameters() if id(p) not in known]


@pytest.mark.parametrize(("logit", "smoothing"), [(0.0, 0.1), (1.5, 0.1), (-2.0, 0.0)])
def test_a_constant_discriminator_in_closed_form(logit: float, smoothing: float) -> None:
    task = make(label_smoothing=smoothing)
    nn.init.zeros_(task.judge.linear.weight)
    nn.init.constant_(task.judge.linear.bias, logit)
    real, fake = torch.randn(2, 6, 3, 8, 8)
    stages = task.discriminator(real)
    p = 1 / (1 + math.exp(-logit))
    made = task.generator_scores(torch.tensor(3.0), fake, stages)
    assert made["adversarial"].item() == pytest.approx(-math.log(p), rel=1e-5)  # log 2 for a logit of 0
    assert made["loss"].item() == pytest.approx(3 - 0.5 * math.log(p), rel=1e-5)
    judged = task.discriminator_scores(fake, stages)
    on_real = -(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p)
    assert judged["disc_loss"].item() == pytest.approx((on_real - math.log(1 - p)) / 2, rel=1e-5)
    assert judged["disc_acc_real"].item() == (p > (1 - smoothing) / 2)
    assert judged["disc_acc_fake"].item() == (p < (1 - smoothing) / 2)


@pytest.mark.parametrize("loss", ["hinge", "least_squares"])
@pytest.mark.parametrize("head", ["average", "flattened"])
def test_other_losses_of_a_constant_discriminator_in_closed_form(loss: str, head: str) -> None:
    task = make(adversarial_loss=loss, discriminator_head=head, label_smoothing=0.0)
    nn.init.zeros_(task.judge.linear.weight)
    nn.init.constant_(task.judge.linear.bias, 0.25)
    real, fake = torch.randn(2, 6, 3, 8, 8)
    stages = task.discriminator(real)
    made = task.generator_scores(torch.tensor(3.0), fake, stages)
    adversarial = -0.25 if loss == "hinge" else 0.75**2
    assert made["loss"].item() == pytest.approx(3 + 0.5 * adversarial, rel=1e-5)
    judged = task.discriminator_scores(fake, stages)
    expected = 1.0 if loss == "hinge" else (0.75**2 + 0.25**2) / 2
    assert judged["disc_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_spectral_norm_covers_the_head_and_improves_once_a_step() -> None:
    task = make(discriminator_norm="spectral", discriminator_head="flattened")
    names = [name for name, _ in task.named_buffers() if name.endswith("_u")]
    assert len(names) == 3
    assert names[-1].startswith("judge")

    def vectors() -> list[Tensor]:
        return [value.clone() for name, value in task.named_buffers() if name.endswith(("_u", "_v"))]

    real, fake = torch.randn(2, 6, 3, 8, 8)
    begin = vectors()
    stages = task.discriminator(real)
    after = vectors()
    assert not all(map(torch.equal, begin[:-2], after[:-2]))
    task.generator_scores(torch.tensor(0.0), fake, stages)
    assert all(map(torch.equal, after, vectors()))
    task.discriminator_scores(fake, stages)
    assert all(map(torch.equal, after[:-2], vectors()[:-2]))  # the head's follow its weight exactly


def test_the_penalty_leaves_spectral_norm_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(r1=4.0, discriminator_norm="spectral", discriminator_head="flattened")
    task.warm = True
    (norm,) = task.judge.linear.parametrizations.weight
    improved: list[int] = []
    monkeypatch.setattr(norm, "_power_method", lambda weight, steps: improved.append(steps))
    list(task.rounds(torch.rand(4, 3, 16, 16), torch.zeros(4), generator(0)))
    assert len(improved) == 1


def test_the_penalty_joins_the_discriminators_loss() -> None:
    task = make(r1=4.0, discriminator_norm="none", discriminator_head="flattened", instance_noise=0.0)
    plain = make(discriminator_norm="none", discriminator_head="flattened", instance_noise=0.0)
    task.warm = plain.warm = True
    images = torch.rand(4, 3, 16, 16)
    (_, _), (_, found) = task.rounds(images, torch.zeros(4), generator(0))
    (_, _), (_, expected) = plain.rounds(images, torch.zeros(4), generator(0))
    pictures = task.attempt(images, generator(0)).real.detach()
    squares = []
    for picture in pictures:  # by differences of logits in float64
        judge, d = copy.deepcopy(task.judge).double(), copy.deepcopy(task.discriminator).double()
        steps = torch.eye(picture.numel(), dtype=torch.float64).view(-1, *picture.shape) * 1e-6
        with torch.no_grad():
            above, below = (judge(d(picture.double() + sign * steps)) for sign in (1, -1))
        squares.append(((above - below) / 2e-6).square().sum())
    penalty = float(torch.stack(squares).mean())
    assert found["disc_r1"].item() == pytest.approx(penalty, rel=1e-3)
    loss = expected["disc_loss"].item() + 2 * penalty
    assert found["disc_loss"].item() == pytest.approx(loss, rel=1e-4)
    found["disc_loss"].backward()
    assert all(p.grad is None for p in making(task))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in judging(task))


def rotation_by_hand(task: AdversarialTask, pictures: Tensor, stream: torch.Generator) -> Tensor:
    """Mean of -log P(angle) over pictures that are turned one by one, in float64."""
    angles = torch.randint(4, (len(pictures),), generator=stream)
    turned = torch.stack([p.rot90(int(k), (1, 2)) for p, k in zip(pictures, angles, strict=True)])
    head, network = copy.deepcopy(task.rotation.head).double(), copy.deepcopy(task.discriminator).double()
    shares = head(network(turned.double())).softmax(1)
    return -torch.stack([share[k].log() for share, k in zip(shares, angles, strict=True)]).mean()


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_rotation_joins_the_losses_of_both_networks(norm: str) -> None:
    options: dict[str, Any] = {
        "discriminator_norm": norm,
        "adversarial_loss": "hinge",
        "label_smoothing": 0.0,
    }
    task = make(discriminator_rotation=1.0, **options)
    plain = make(**options)
    plain.load_state_dict(task.state_dict(), strict=False)
    task.warm = plain.warm = True
    images = torch.rand(8, 3, 16, 16)
    attempt = task.attempt(images, generator(0))
    stream = generator(0)
    (_, made), (_, found) = task.rounds(images, torch.zeros(8), stream)
    (_, expected), (_, other) = plain.rounds(images, torch.zeros(8), generator(0))
    stream = generator(0)  # the holes are in the middle and there is no noise, so angles are drawn first
    of_made = rotation_by_hand(task, attempt.fake, stream)
    of_real = rotation_by_hand(task, attempt.real, stream)
    assert made["adversarial_rotation"].item() == pytest.approx(of_made.item(), rel=1e-4)
    generated = expected["loss"].item() + 0.5 * 0.2 * of_made.item()
    assert made["loss"].item() == pytest.approx(generated, rel=1e-4)
    # the mean over both kinds is half of the paper's sum, and so is the weight
    assert found["disc_loss"].item() == pytest.approx(
        other["disc_loss"].item() + of_real.item() / 2, rel=1e-4
    )
    assert 0 <= found["disc_rotation_acc"].item() <= 1
    assert task.falling_loss(made).item() == pytest.approx(plain.falling_loss(expected).item(), rel=1e-4)
    made["loss"].backward()
    assert all(p.grad is None for p in judging(task))
    assert all(p.grad is not None for p in making(task))
    task.zero_grad()
    found["disc_loss"].backward()
    assert all(p.grad is None for p in making(task))
    assert all(p.grad is not None for p in judging(task))
    assert task.rotation.head.linear.weight.grad.any()


def test_rotated_pictures_leave_the_statistics_and_the_plain_task_alone() -> None:
    task, plain = make(discriminator_rotation=1.0), make()
    assert "discriminator_rotation" in task.branch_configs()
    assert list(task.branches()) == ["backbone", "discriminator_rotation"]
    names = set(task.state_dict()) - set(plain.state_dict())
    assert names == {"rotation.head.linear.weight", "rotation.head.linear.bias"}
    plain.load_state_dict(task.state_dict(), strict=False)
    task.warm = plain.warm = True
    images = torch.rand(8, 3, 16, 16)
    for each in (task, plain):
        list(each.rounds(images, torch.zeros(8), generator(0)))
    state = task.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, state[name]) or name.endswith("num_batches_tracked")  # which nothing reads


def test_a_discriminator_learns_rotations() -> None:
    task = make(discriminator_rotation=1.0, discriminator_head="flattened")
    optimizer = torch.optim.Adam(judging(task), lr=1e-2)
    ramp = torch.linspace(-1, 1, 8).view(1, 1, 8, 1).expand(32, 3, 8, 8)  # dark above
    real = ramp + 0.1 * torch.randn(32, 3, 8, 8, generator=generator(0))
    for step in range(60):
        loss = torch.zeros(())
        found = task.rotation.of_discriminator(loss, 1.0, task.discriminator, real, generator(step))
        optimizer.zero_grad()
        found["disc_loss"].backward()
        optimizer.step()
    assert found["disc_rotation_acc"] > 0.9


def test_the_adversarial_term_is_no_part_of_the_falling_loss() -> None:
    task = make(adversarial_weight=0.5)
    scores = {"loss": torch.tensor(5.0), "adversarial": torch.tensor(4.0)}
    assert float(task.falling_loss(scores)) == 3
    assert float(task.falling_loss({"loss": torch.tensor(5.0)})) == 5  # in the warm-up


def test_the_generators_step_leaves_the_discriminator_alone() -> None:
    task = make()
    attempt = task.attempt(torch.rand(4, 3, 16, 16), generator(0))
    real = task.discriminator(attempt.real)
    scores = task.generator_scores(attempt.scores["loss"], attempt.fake, real)
    scores["loss"].backward()
    assert all(p.grad is None for p in judging(task))
    assert all(p.grad is not None and p.grad.any() for p in making(task))
    # its adversarial gradient is the gradient of -log D(fake)
    alone = make()
    attempt = alone.attempt(torch.rand(4, 3, 16, 16, generator=generator(1)), generator(0))
    probability = alone.judge(alone.discriminator(attempt.fake)).sigmoid()
    expected = torch.autograd.grad(-probability.log().mean(), attempt.fake, retain_graph=True)[0]
    scores = alone.generator_scores(torch.tensor(0.0), attempt.fake, real)
    found = torch.autograd.grad(scores["adversarial"], attempt.fake)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_the_discriminators_step_leaves_the_generator_alone() -> None:
    task = make()
    attempt = task.attempt(torch.rand(4, 3, 16, 16), generator(0))
    real = task.discriminator(attempt.real)
    task.discriminator_scores(attempt.fake.detach(), real)["disc_loss"].backward()
    assert all(p.grad is None for p in making(task))
    assert all(p.grad is not None and p.grad.any() for p in judging(task))


def test_the_discriminator_keeps_the_statistics_of_real_pictures() -> None:
    task = make()
    norm = task.discriminator.stages[0][3]
    assert isinstance(norm, nn.BatchNorm2d)
    real, fake = torch.randn(6, 3, 8, 8), 5 + torch.randn(6, 3, 8, 8)
    stages = task.discriminator(real)
    expected = norm.running_mean.clone()
    task.generator_scores(torch.tensor(0.0), fake, stages)
    task.discriminator_scores(fake, stages)
    assert torch.equal(norm.running_mean, expected)


class Watched(Inpainting):
    """Records the steps of its two optimizers and their arguments."""

    poison = 10**9

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.steps: list[int] = []
        self.lrs: list[list[float]] = []
        self.began = [p.detach().clone() for p in self.parameters()]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        number = [o.optimizer for o in self.optimizers()].index(optimizer)
        self.steps.append(number)
        if number == 0:
            self.lrs.append([o.param_groups[0]["lr"] for o in self.optimizers()])

    def discriminator_scores(self, fake: Tensor, real: list[Tensor]) -> dict[str, Tensor]:
        scores = super().discriminator_scores(fake, real)
        if len(self.steps) // 2 >= self.poison:
            scores["disc_loss"] = scores["disc_loss"] * float("nan")
        return scores


def fit(
    tmp_path: Path, options: dict[str, Any], *, batch_size: int = 16, norms: bool = True, poison: int = 10**9,
    lr: float = 0.01, scheduler: Any = None, **task_options: Any,
) -> tuple[Watched, Metrics, list[dict]]:  # fmt: skip
    data = Fake(num_train=128, batch_size=batch_size, image_size=16)
    data.setup()
    torch.manual_seed(0)
    task = Watched(
        ConvNet(widths=(8, 8), strides=(2, 2)), data.spec, optimizer=lambda p: torch.optim.SGD(p, lr=lr),
        scheduler=scheduler, **(DEFAULT | task_options),
    )  # fmt: skip
    task.poison = poison
    if not norms:  # batch statistics differ from the statistics of half batches
        for part in list(task.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(part, name, nn.Identity())
    tmp_path.mkdir(exist_ok=True)
    guard, metrics, logger = HealthGuard(tmp_path), Metrics(Throughput()), CSVLogger(str(tmp_path))
    given = {"max_epochs": 2, "log_every_n_steps": 1} | options
    trainer = make_trainer(
        **task.trainer_options(given), accelerator="cpu", precision="32-true",
        callbacks=[guard, metrics, GradientWatch(guard)],
        logger=[logger], enable_progress_bar=False,
    )  # fmt: skip
    try:
        trainer.fit(task, datamodule=data)
    finally:
        logger.finalize("")
    return task, metrics, logger.rows()


def test_both_networks_step_once_a_batch_and_are_logged(tmp_path: Path) -> None:
    task, metrics, rows = fit(tmp_path, {}, discriminator_lr_factor=0.1)
    assert task.steps == [0, 1] * 8  # 64 pretraining images, two epochs
    training = [row for row in rows if row["train/loss"]]
    assert [int(row["step"]) for row in training] == list(range(1, 9))
    for row in training:
        assert float(row["train/lr"]) == pytest.approx(0.01)
        assert float(row["train/lr_1"]) == pytest.approx(0.001)
        assert 0 <= float(row["train/disc_acc_real"]) <= 1
        assert 0 <= float(row["train/disc_acc_fake"]) <= 1
        assert float(row["train/grad_norm_1"]) > 0
    # validation runs the generator only
    assert metrics.validation.keys() == {"val/loss", "val/hole_mse", "val/hole_psnr", "val/mean_fill_psnr"}


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    kept = {"norms": False, "lr": 0.05}
    halves, _, _ = fit(tmp_path / "a", {"accumulate_grad_batches": 2}, batch_size=16, **kept)
    whole, _, _ = fit(tmp_path / "b", {}, batch_size=32, **kept)
    assert halves.steps == whole.steps == [0, 1] * 4
    for x, y, begin in zip(halves.parameters(), whole.parameters(), halves.began, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
        assert not torch.equal(x, begin)


def test_a_rest_of_an_epoch_is_a_step_too(tmp_path: Path) -> None:
    task, _, _ = fit(tmp_path, {"accumulate_grad_batches": 3, "max_epochs": 1}, scheduler=optim.cosine)
    assert task.steps == [0, 1] * 2  # a step of three batches and a step of one
    assert task.total_steps() == 2


def test_a_warm_up_ends_with_a_whole_step(tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 3, "max_epochs": 3}  # 2 steps per epoch: 3 batches, then 1
    task, _, _ = fit(tmp_path, options, scheduler=optim.one_cycle, warmup_steps=3)
    assert task.steps == [0] * 3 + [0, 1] * 3
    # as trainer.max_steps counts them; Lightning counts 12 batches
    assert task.trainer._checkpoint_connector.dump_checkpoint()[FIRST_STEPS] == 6
    assert [config.scheduler.last_epoch for config in task.trainer.lr_scheduler_configs] == [6, 3]


def test_gradients_are_clipped_for_each_network(tmp_path: Path) -> None:
    options = {"gradient_clip_val": 0.01, "max_steps": 1}
    task, _, rows = fit(tmp_path, options, lr=1.0, discriminator_lr_factor=1.0)
    moved = dict(zip(map(id, task.parameters()), task.began, strict=True))
    for name, network in (("train/grad_norm", making(task)), ("train/grad_norm_1", judging(task))):
        assert float(rows[0][name]) > 0.01
        change = torch.cat([(p.detach() - moved[id(p)]).flatten() for p in network])
        assert change.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_both_kinds_of_pictures_are_augmented() -> None:
    task = make(discriminator_augment=["translation", "cutout"])
    task.warm = True
    seen: list[Tensor] = []
    task.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(4, 3, 16, 16)
    scores = [found for _, found in task.rounds(images, torch.zeros(4), generator(0))]
    real, fake, again = seen
    assert torch.equal(fake, again)  # both networks see the same augmented pictures
    assert (real == 0).any()
    assert torch.equal(real == 0, fake == 0)
    scores[0]["loss"].backward()
    assert all(p.grad is not None for p in making(task))


ALONE: list[dict[str, Any]] = [
    *({"discriminator_augment": [kind]} for kind in AUGMENTATIONS),
    {"discriminator_augment": ["cutout"], "r1": 0.1},
    {"r1": 0.1},
    {"discriminator_rotation": 1.0},
    {"instance_noise": 0.5},
    {"input_noise": 0.5},
    *({"discriminator_norm": norm} for norm in NORMS),
    *({"discriminator_head": head} for head in JUDGES),
    *({"adversarial_loss": loss} for loss in LOSSES),
    {"discriminator_sees": "image"},
]


@pytest.mark.parametrize("option", ALONE)
def test_every_option_trains_both_networks_without_the_others(option: dict[str, Any], tmp_path: Path) -> None:
    task, _, _ = fit(tmp_path, {"max_steps": 2}, discriminator_lr_factor=1.0, **option)
    moved = dict(zip(map(id, task.parameters()), task.began, strict=True))
    for network in (making(task), judging(task)):
        assert not torch.equal(network[0], moved[id(network[0])])


def test_the_discriminator_may_step_more_often(tmp_path: Path) -> None:
    options = {"max_steps": 5}
    given: dict[str, Any] = {"warmup_steps": 2, "discriminator_steps": 3, "discriminator_lr_factor": 1.0}
    task, _, _ = fit(tmp_path, options, scheduler=optim.cosine, **given)
    assert task.steps == [0] * 2 + [0, 1, 1, 1] * 3
    assert [config.scheduler.last_epoch for config in task.trainer.lr_scheduler_configs] == [5, 9]
    assert task.total_steps() == 5
    assert not task.recordable
    assert make().recordable


@pytest.mark.parametrize("again", ["from the start", "from a checkpoint"])
def test_spectral_norm_ends_with_the_same_bits(again: str, tmp_path: Path) -> None:
    options = DEFAULT | {
        "discriminator_norm": "spectral", "discriminator_head": "flattened", "adversarial_loss": "hinge",
        "discriminator_steps": 2, "discriminator_augment": ["translation"], "r1": 0.1, "instance_noise": 0.1,
        "discriminator_rotation": 1.0,
    }  # fmt: skip

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    def end(path: Path | None) -> dict[str, Tensor]:
        data = Fake(num_train=128, batch_size=16, image_size=16)
        data.setup()
        torch.manual_seed(0)
        task = Inpainting(ConvNet(widths=(8, 8), strides=(2, 2)), data.spec, **options)
        trainer = make_trainer(
            **task.trainer_options({"max_epochs": 2}), accelerator="cpu", precision="32-true",
            callbacks=[Save()] * (path is None), default_root_dir=tmp_path, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(task, datamodule=data, ckpt_path=path)
        return task.state_dict()

    expected = end(None)
    found = end(tmp_path / "first.ckpt" if again == "from a checkpoint" else None)
    assert sum(name.endswith("_u") for name in expected) == 4
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_further_discriminator_steps_see_its_new_weights() -> None:
    task = make(discriminator_steps=2)
    task.warm, losses = True, []
    optimizer = torch.optim.SGD(judging(task), lr=1.0)
    for name, scores in task.rounds(torch.rand(4, 3, 16, 16), torch.zeros(4), generator(0)):
        scores[name].backward()
        if name == "disc_loss":
            losses.append(scores[name].item())
            optimizer.step()
            optimizer.zero_grad()
    assert losses[1] < losses[0]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 5), (2, 5), (4, 3)])
def test_schedules_and_the_end_count_optimizer_steps(tmp_path: Path, warmup: int, steps: int) -> None:
    task, _, rows = fit(
        tmp_path, {"max_steps": steps}, scheduler=optim.cosine, warmup_steps=warmup,
        discriminator_lr_factor=1.0,
    )  # fmt: skip
    against = max(0, steps - warmup)
    assert task.steps == [0] * min(warmup, steps) + [0, 1] * against
    alone = [row for row in rows if row["train/loss"] and not row.get("train/disc_loss")]
    assert len(alone) == min(warmup, steps)
    rates = [0.01 * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    assert [generator for generator, _ in task.lrs] == pytest.approx(rates)
    rates = [0.01 * 0.5 * (1 + math.cos(math.pi * step / against)) for step in range(against)]
    assert [judge for _, judge in task.lrs[warmup:]] == pytest.approx(rates)
    ended = [config.scheduler.last_epoch for config in task.trainer.lr_scheduler_configs]
    assert ended == [steps, against]


def test_a_discriminator_that_diverges_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"train/disc_loss is not finite at step 3"):
        fit(tmp_path, {}, poison=2)


def test_without_weight_there_is_no_discriminator(tmp_path: Path) -> None:
    task = make(adversarial_weight=0)
    assert list(task.branches()) == ["backbone"]
    assert list(make().branches()) == ["backbone", "discriminator"]
    assert not [name for name in task.state_dict() if "discriminator" in name or "judge" in name]
    assert task.automatic_optimization
    assert task.trainer_options({"max_steps": 4}) == {"max_steps": 4}
    data = Fake(batch_size=16, image_size=16)
    data.setup()
    torch.manual_seed(0)
    task = Inpainting(
        ConvNet(widths=(8, 8), strides=(2, 2)), data.spec, adversarial_weight=0,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01), scheduler=optim.one_cycle,
    )  # fmt: skip
    logged: set[str] = set()

    class Names(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            logged.update(pl_module.scores)

    options = {"max_epochs": 1, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    trainer = make_trainer(
        **task.trainer_options(options), accelerator="cpu", precision="32-true", callbacks=[Names()],
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    assert len(trainer.optimizers) == 1
    assert trainer.global_step == task.total_steps() == 8  # 256 images, 2 batches of 16 each
    assert logged == {"loss", "hole_mse", "hole_psnr", "mean_fill_psnr"}


def test_instance_noise_falls_over_the_run() -> None:
    change = make(instance_noise=0.5).discriminator_input
    real, fake = torch.rand(2, 8, 3, 32, 32)
    for done, expected in ((0.0, 0.5), (0.5, 0.25), (1.0, 0.0)):
        for recorded_on in (None, torch.device("cpu")):
            change.fade(done, recorded_on)
            shown, made = change(real, fake, generator("noise"))
            assert (shown - real).std().item() == pytest.approx(expected, rel=0.03)
            torch.testing.assert_close(shown - real, made - fake)
    assert make().discriminator_input(real, fake, generator("noise"))[1] is fake


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Inpainting, {"mask": "none"}),
        (Inpainting, {"mask": "center"}),
        (SuperResolution, {}),
        (SuperResolution, {"input": "small"}),
    ],
)
def test_input_noise_is_seen_by_the_backbone_alone(
    kind: type[AdversarialTask], options: dict[str, Any]
) -> None:
    images, seen, shown = torch.rand(8, 3, 16, 16), [], []
    for noise in (0.0, 0.5):
        torch.manual_seed(0)
        whole = options.get("input") == "small"
        backbone = SRResNet(blocks=1, num_stages=1, width=4) if whole else ConvNet(widths=(8,), strides=(2,))
        task = kind(backbone, SPEC, input_noise=noise, discriminator_width=4, decoder_width=4, **options)
        backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        shown.append(task.attempt(images, generator(0)).real)
    assert torch.equal(*shown)
    assert (seen[1] - seen[0]).std().item() == pytest.approx(0.5, rel=0.1)


def test_a_discriminator_learns_and_is_fooled() -> None:
    """Coarse pictures are real, noise is fake; minimising the generator's loss fools the discriminator."""
    task = make(adversarial_weight=1.0)
    optimizer = torch.optim.Adam(judging(task), lr=1e-2)
    real = F.interpolate(torch.randn(32, 3, 2, 2, generator=generator(0)), (8, 8))
    fake = torch.randn(32, 3, 8, 8, generator=generator(1))
    for _ in range(120):
        scores = task.discriminator_scores(fake, task.discriminator(real))
        optimizer.zero_grad()
        scores["disc_loss"].backward()
        optimizer.step()
    assert min(scores["disc_acc_real"].item(), scores["disc_acc_fake"].item()) > 0.95
    moved = fake.clone().requires_grad_()
    climbing = torch.optim.Adam([moved], lr=0.1)
    before = task.generator_scores(torch.tensor(0.0), moved, task.discriminator(real))["adversarial"]
    for _ in range(40):
        climbing.zero_grad()
        loss = task.generator_scores(torch.tensor(0.0), moved, task.discriminator(real))["loss"]
        loss.backward()
        climbing.step()
    assert loss.item() < before.item() / 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial_weight": -0.1}, "task.adversarial_weight is -0.1; allowed are 0"),
        ({"adversarial_weight": 1.1}, "task.adversarial_weight is 1.1"),
        ({"discriminator_lr_factor": 0}, "task.discriminator_lr_factor is 0; it must be above 0"),
        ({"label_smoothing": 0.5}, "task.label_smoothing is 0.5"),
        ({"instance_noise": -1}, "task.instance_noise is -1; it must be at least 0"),
        ({"adversarial_loss": "wgan"}, "task.adversarial_loss is 'wgan'; allowed are non_saturating, hinge"),
        ({"discriminator_norm": "layer"}, "task.discriminator_norm is 'layer'; allowed are batch, spectral"),
        ({"discriminator_head": "max"}, "task.discriminator_head is 'max'; allowed are average, flattened"),
        ({"discriminator_steps": 0}, "task.discriminator_steps is 0"),
        ({"discriminator_steps": 2, "accumulate_grad_batches": 3}, "only one of them may be above 1"),
        ({"discriminator_augment": ["blur"]}, r"task.discriminator_augment is \['blur'\]; allowed are some"),
        ({"r1": -1}, "task.r1 is -1"),
        ({"input_noise": -0.5}, "task.input_noise is -0.5"),
        ({"discriminator_rotation": -1}, "task.discriminator_rotation is -1"),
        ({"generator_rotation": -0.1}, r"task.generator_rotation is -0\.1"),
        ({"warmup_steps": -1}, "task.warmup_steps is -1"),
        ({"discriminator_width": 0}, "width 0"),
    ],
)
def test_bad_values_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
