"""Tasks that break the contract of `PretextTask`: the error names the class and the method."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ssl_lightning.core.image_spec import ImageSpec
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.heads import PooledClassifier
from ssl_lightning.run.checks import try_step
from ssl_lightning.tasks._adversarial import AdversarialTask, Attempt
from ssl_lightning.tasks._contract import TaskContractError
from ssl_lightning.tasks.base import Panel, PretextTask

SPEC = ImageSpec(3, 16, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


class BlurLevel(PretextTask):
    """A task whose step returns what a test sets; it gets the output of the head, `(B, 2)`."""

    returned = staticmethod(lambda y: {"loss": y.mean()})

    def __init__(self, backbone: nn.Module, spec: ImageSpec | None = None, **base) -> None:
        super().__init__(backbone, **base)
        if spec is not None:
            self.build(spec)

    def build(self, spec: ImageSpec) -> None:
        super().build(spec)
        self.head = PooledClassifier(self.backbone, 2)

    def step(self, images, labels, stream):
        return self.returned(self.head(self.backbone(self.normalise(images))))


class Restore(AdversarialTask):
    """An adversarial task whose attempt returns what a test sets."""

    returned = staticmethod(lambda y: y)

    def attempt(self, images, stream):
        return self.returned(self.backbone(self.normalise(images))[-1])


class Stepless(PretextTask):
    """A task without a step."""


class Attemptless(AdversarialTask):
    """An adversarial task without an attempt."""


MUST = "it must return a dictionary of scalar tensors that has 'loss'"
RETURNED = {
    "a tensor": (lambda y: y.mean(), f"BlurLevel.step returned a Tensor; {MUST}"),
    "none": (lambda y: None, f"BlurLevel.step returned None; {MUST}"),
    "a tuple": (lambda y: (y.mean(), y.mean()), f"BlurLevel.step returned a tuple; {MUST}"),
    "no loss": (lambda y: {"acc": y.mean(), "ce": y.mean()}, f"returned no 'loss' but acc, ce; {MUST}"),
    "nothing": (lambda y: {}, f"BlurLevel.step returned an empty dictionary; {MUST}"),
    "a float": (
        lambda y: {"loss": y.mean(), "acc": 0.5},
        "BlurLevel.step: 'acc' is a float; it must be a scalar tensor",
    ),
    "a loss an image": (
        lambda y: {"loss": y.mean(1)},
        r"BlurLevel.step: 'loss' has shape \(\d,\); a scalar with a gradient is needed, such as its mean",
    ),
    "a score an image": (
        lambda y: {"loss": y.mean(), "acc": y},
        r"BlurLevel.step: 'acc' has shape \(\d, 2\); a scalar is needed",
    ),
    "detached": (lambda y: {"loss": y.mean().detach()}, "BlurLevel.step: 'loss' has no gradient; compute it"),
}
ATTEMPTS = {
    "a dictionary": (
        lambda y: {"loss": y.mean()},
        "attempt returned a dict; it must return an Attempt",
    ),
    "none": (lambda y: None, "Restore.attempt returned None; it must return an Attempt"),
    "a tensor": (lambda y: Attempt(y.mean(), y, y), f"Restore.attempt returned a Tensor; {MUST}"),
    "no loss": (lambda y: Attempt({"mse": y.mean()}, y, y), f"returned no 'loss' but mse; {MUST}"),
    "detached": (lambda y: Attempt({"loss": y.mean().detach()}, y, y), "attempt: 'loss' has no gradient"),
}


class Forgetful(BlurLevel):
    """A task whose `build` forgets the one of the base class."""

    def build(self, spec: ImageSpec) -> None:
        self.head = PooledClassifier(self.backbone, 2)


class Early(Forgetful):
    """A task whose `build` uses the spec before it is known."""

    def build(self, spec: ImageSpec) -> None:
        self.channels = self.spec.channels
        super().build(spec)


class Unbuilt(BlurLevel):
    """A task whose constructor does not build."""

    def __init__(self, backbone: nn.Module, spec: ImageSpec | None = None, **base) -> None:
        super().__init__(backbone, **base)


def make(kind: type[PretextTask], returned=None) -> PretextTask:
    torch.manual_seed(0)
    task = kind(ConvNet(widths=(4, 8), strides=(2, 2)), SPEC) if kind is BlurLevel else kind(ConvNet())
    if not task.is_built:
        task.build(SPEC)
    if returned:
        task.returned = returned
    return task


def fit(task: PretextTask) -> None:
    """Train two batches by a stock Trainer, which makes no trial step."""
    loader = DataLoader(TensorDataset(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)), batch_size=4)
    pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(task, loader)  # fmt: skip


@pytest.mark.parametrize("run", [try_step, fit])
@pytest.mark.parametrize("fault", RETURNED)
def test_a_wrong_return_of_step_is_refused(fault: str, run) -> None:
    returned, message = RETURNED[fault]
    with pytest.raises(TaskContractError, match=message):
        run(make(BlurLevel, returned))


@pytest.mark.parametrize("run", [try_step, fit])
@pytest.mark.parametrize("fault", ATTEMPTS)
def test_a_wrong_return_of_attempt_is_refused(fault: str, run) -> None:
    returned, message = ATTEMPTS[fault]
    with pytest.raises(TaskContractError, match=message):
        run(make(Restore, returned))


@pytest.mark.parametrize("run", [try_step, fit])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Stepless, "Stepless has no step; write step"),
        (Attemptless, "Attemptless has no attempt; write"),
    ],
)
def test_a_missing_method_is_named(kind: type[PretextTask], message: str, run) -> None:
    with pytest.raises(TaskContractError, match=message):
        run(make(kind))


def test_a_right_return_is_accepted() -> None:
    task = make(BlurLevel, lambda y: {"loss": y.mean(), "acc": y.detach().mean(), "one": y.mean().view(1)})
    assert try_step(task).scores == ["loss", "acc", "one"]
    fit(task)


IMAGES = torch.zeros(3, 2, 3, 8, 8)  # (rows, columns, C, H, W)
PANELS = {
    "a list": (([IMAGES], ["a", "b"]), "images of Panel is a list; it must be a tensor"),
    "one column": ((IMAGES[:, 0], ["a"]), r"has shape \(3, 3, 8, 8\); allowed is \(rows, columns, C, H, W\)"),
    "channels last": (
        (IMAGES.movedim(2, -1), ["a", "b"]),
        r"has shape \(3, 2, 8, 8, 3\)",
    ),
    "bytes": ((IMAGES.byte(), ["a", "b"]), "is of torch.uint8; it must be floats"),
    "few titles": (
        (IMAGES, ["a"]),
        r"columns of Panel is \['a'\]; it must have 2, one a column",
    ),
    "many titles": ((IMAGES, ["a", "b", "c"]), "it must have 2, one a column"),
    "text": ((IMAGES, "ab"), "columns of Panel is 'ab'; it must have 2, one a column"),
    "few captions": ((IMAGES, ["a", "b"], [["x", "y"]]), r"captions .* lengths \[2\]; .* 3 rows of 2"),
    "short captions": (
        (IMAGES, ["a", "b"], [["x"]] * 3),
        r"captions .* lengths \[1, 1, 1\]",
    ),
    "few answers": (
        (IMAGES, ["a", "b"], [], [[True, False]] * 2),
        r"right of Panel .* lengths \[2, 2\]",
    ),
    "watched": ((IMAGES, ["a", "b"], [], [], 2), "watched of Panel is 2; allowed are 0 to 1 and None"),
}


@pytest.mark.parametrize("fault", PANELS)
def test_a_panel_that_cannot_be_drawn_is_refused(fault: str) -> None:
    fields, message = PANELS[fault]
    with pytest.raises(ValueError, match=message):
        Panel(*fields)


def test_a_panel_that_fits_is_accepted() -> None:
    Panel(IMAGES, ["a", "b"], [["", "x"]] * 3, [[None, True]] * 3, 1)


def test_a_missing_panel_is_named() -> None:
    with pytest.raises(TaskContractError, match="BlurLevel has no panel; write panel"):
        make(BlurLevel).panel(torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize("kind", [Forgetful, Early])
def test_a_build_without_the_base_class_is_named_by_a_stock_trainer(kind: type[PretextTask]) -> None:
    message = rf"build\(\) of {kind.__name__} must first call super\(\).build\(spec\)"
    with pytest.raises(TaskContractError, match=message):
        fit(kind(ConvNet(widths=(4, 8), strides=(2, 2))))
