"""Faults of own tasks before any work, and no trace of the trial panel in a task."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ssl_lightning.callbacks.panel import PanelPicture
from ssl_lightning.run.checks import try_panel
from ssl_lightning.run.parts import build_parts
from ssl_lightning.tasks._contract import TaskContractError
from ssl_lightning.tasks.base import Panel
from tests._composed import composed
from tests._tasks import TASKS, on_a_vit
from tests.tasks.test_contract import BlurLevel, Early, Forgetful, Unbuilt

DATA = ["data=fake", "data.num_train=48", "data.num_test=16", "data.heldout=16", "data.batch_size=8"]
DATA += ["data.image_size=32", "trainer=cpu", "trainer.precision=32-true", "logger=[]", "probe=[]"]


class Drawn(BlurLevel):
    """A task whose panel is what a test sets."""

    made = staticmethod(lambda images: Panel(images[:, None], ["image"]))

    def panel(self, images):
        return self.made(images)


FAULTS = {
    "a tensor": (lambda images: images, "Drawn.panel returned a Tensor; it must return a Panel"),
    "a shape": (
        lambda images: Panel(images, ["image"]),
        r"Drawn.panel: images of Panel has shape",
    ),
    "titles": (
        lambda images: Panel(images[:, None], []),
        r"Drawn.panel: columns of Panel is",
    ),
}


def task_of(kind: type[BlurLevel]) -> list[str]:
    """Return the overrides that train a class without keywords of its own."""
    return ["task=random", f"task._target_={kind.__module__}.{kind.__qualname__}"]


def refused(kind: type[BlurLevel], folder: Path, *given: str) -> str:
    """Return the message that stops a run of the class before any work."""
    task = [*task_of(kind), *given]
    with pytest.raises(TaskContractError) as error:
        build_parts(composed([*DATA, "backbone.widths=[4,4,4]", *task], folder), folder)
    return str(error.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_panel_is_refused_before_any_work(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, message = FAULTS[fault]
    monkeypatch.setattr(Drawn, "made", staticmethod(made))
    assert re.match(message, refused(Drawn, tmp_path))


@pytest.mark.parametrize(
    ("given", "advised"),
    [
        ([], "callbacks=[checkpoint,progress,collapse]"),
        (["callbacks=[panel,online_knn]"], "callbacks=[online_knn]"),
        (["callbacks=[panel]", "+callbacks.x._target_=pytorch_lightning.callbacks.Timer"], "callbacks=[]"),
    ],
)
def test_the_advice_on_a_missing_panel_works(given: list[str], advised: str, tmp_path: Path) -> None:
    said = refused(BlurLevel, tmp_path, *given)
    assert said == f"BlurLevel has no panel; write panel(images); {advised} leaves the panel out"
    kept = [each for each in given if each.startswith("+")]
    given = [*DATA, "backbone.widths=[4,4,4]", *task_of(BlurLevel), *kept, advised]
    build_parts(composed(given, tmp_path), tmp_path)


@pytest.mark.parametrize("kind", [Forgetful, Early, Unbuilt])
def test_a_task_without_its_images_is_refused(kind: type[BlurLevel], tmp_path: Path) -> None:
    said = refused(kind, tmp_path)
    assert said.startswith(f"{kind.__name__} does not know its images after its constructor, which must call")


class Unseeded(BlurLevel):
    """A task whose step draws a random number beside its stream."""

    returned = staticmethod(lambda y: {"loss": y.mean() + torch.rand(())})


def test_a_draw_beside_the_stream_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_parts(
        composed([*DATA, "backbone.widths=[4,4,4]", "callbacks=[]", *task_of(Unseeded)], tmp_path), tmp_path
    )
    assert [m for m in caplog.messages if m.startswith("Unseeded.step gives two losses for one stream")]


@pytest.mark.parametrize("name", TASKS)
def test_a_trial_changes_nothing(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = [] if on_a_vit(TASKS[name]) else ["backbone.widths=[4,4,4]"]
    cfg = composed([*DATA, *own, "callbacks=[]", *TASKS[name]], tmp_path)
    task = build_parts(cfg, tmp_path).task
    assert "two losses" not in caplog.text
    before = {key: value.clone() for key, value in task.state_dict().items()}
    buffers = {key: value.clone() for key, value in task.named_buffers()}
    stream = torch.get_rng_state()
    try_panel(task, {"panel": PanelPicture(images=1)})
    try_panel(task, {"panel": PanelPicture()})
    assert torch.equal(torch.get_rng_state(), stream)
    assert task.training
    for key, value in [*task.state_dict().items(), *task.named_buffers()]:
        assert torch.equal(value, before.get(key, buffers.get(key))), key
