"""The loss of a student and a teacher against lightly's DINOLoss and closed forms."""

import math

import pytest
import torch
from lightly.loss import DINOLoss
from torch import Tensor

from ssl_lightning.core.seeding import generator
from ssl_lightning.ops.distillation import distillation


def logits(views: int, name: str, prototypes: int = 7, batch: int = 5) -> Tensor:
    return torch.randn(views, batch, prototypes, dtype=torch.float64, generator=generator(name))


@pytest.mark.parametrize("views", [2, 3, 6])
@pytest.mark.parametrize("temperature", [0.04, 0.1, 1.0])
def test_value_and_gradient_are_those_of_lightly(views: int, temperature: float) -> None:
    own, theirs = (logits(views, "student").requires_grad_() for _ in "ab")
    teacher, centre = logits(2, "teacher"), logits(1, "centre", batch=1)
    loss, _ = distillation(own, teacher - centre, 0.1, torch.tensor(temperature))
    lightly = DINOLoss(7, student_temp=0.1)
    lightly.center = centre
    expected = lightly(list(teacher), list(theirs), teacher_temp=temperature)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(own.grad, theirs.grad)


@pytest.mark.parametrize("prototypes", [2, 64])
def test_equal_logits_give_the_logarithm_of_the_number_of_prototypes(prototypes: int) -> None:
    loss, entropy = distillation(
        torch.ones(4, 3, prototypes), torch.zeros(2, 3, prototypes), 0.1, torch.tensor(0.04)
    )
    assert loss.item() == pytest.approx(math.log(prototypes), rel=1e-6)
    assert entropy.item() == pytest.approx(math.log(prototypes), rel=1e-6)


def test_one_prototype_for_all_images_gives_0() -> None:
    same = 100 * torch.eye(4)[:1].expand(2, 3, 4)
    loss, entropy = distillation(same, same, 1.0, torch.tensor(1.0))
    assert (loss.item(), entropy.item()) == pytest.approx((0, 0), abs=1e-6)


def test_a_student_that_agrees_loses_the_entropy_of_the_teacher() -> None:
    same = logits(1, "same").expand(2, -1, -1)
    loss, entropy = distillation(same, same, 0.5, torch.tensor(0.5))
    torch.testing.assert_close(loss, entropy)
    share = (same[0] / 0.5).softmax(1)
    torch.testing.assert_close(entropy, -(share * share.log()).sum(1).mean())


def test_a_view_is_not_compared_with_itself() -> None:
    student, teacher = logits(2, "student"), logits(2, "teacher")
    changed = teacher.clone()
    changed[1] = 0  # only the first view of the student sees it
    losses = [distillation(student, each, 0.1, torch.tensor(0.1))[0] for each in (teacher, changed)]
    first = student[0].div(0.1).log_softmax(1)
    gaps = [-((each[1] / 0.1).softmax(1) * first).sum(1).mean() / 2 for each in (teacher, changed)]
    torch.testing.assert_close(losses[0] - losses[1], gaps[0] - gaps[1])


def test_autocast_keeps_full_precision() -> None:
    student, teacher = logits(3, "student").float(), logits(2, "teacher").float()
    expected = distillation(student, teacher, 0.1, torch.tensor(0.04))
    with torch.autocast("cpu", torch.bfloat16):
        found = distillation(student, teacher, 0.1, torch.tensor(0.04))
    torch.testing.assert_close(found, expected)
