"""The list of all pretext tasks, from which the suites take their cases."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hydra.utils import get_class
from omegaconf import OmegaConf

from tests._composed import CONF

CONTROLS = ("random", "supervised")
VIT = "backbone=vit_tiny_small_images"
FORMS = {
    "jigsaw on tokens": ["task=jigsaw", "task.on=tokens", VIT],
    "context_prediction on tokens": ["task=context_prediction", "task.on=tokens", VIT],
    "rotation and simclr": ["task=combined", "task.parts=[rotation,simclr]"],
}
# for each task and form, the overrides that choose it
TASKS = {
    **{
        path.stem: [f"task={path.stem}"]
        for path in sorted((CONF / "task").glob("*.yaml"))
        if path.stem not in CONTROLS
    },
    **FORMS,
}
# tasks that change the colours of views
VIEW_TASKS = [path.stem for path in sorted((CONF / "task").glob("*.yaml")) if "hue" in OmegaConf.load(path)]

# tasks without a plain case: one takes parts, the other needs a vision transformer
SPECIAL = ("combined", "mae")


def others(cases: Collection[str]) -> list[str]:
    """Return the tasks without a case in a suite; they get its plain case, without keywords."""
    return [name for name in TASKS if name not in {*cases, *FORMS, *SPECIAL}]


def class_of(task: str) -> type:
    """Return the class that the config of a task names."""
    return get_class(OmegaConf.load(CONF / "task" / f"{task}.yaml")._target_)


def on_a_vit(overrides: Sequence[str]) -> bool:
    """Return whether a run has the small vision transformer; MAE chooses it itself."""
    return VIT in overrides or "task=mae" in overrides


def tasks_in(overrides: Sequence[str]) -> set[str]:
    """Return the tasks and forms that a run trains, also as parts of a combined task."""
    given = dict(each.lstrip("+").split("=", 1) for each in overrides)
    task = given.get("task", "rotation")
    parts = given.get("task.parts", "").strip("[]").split(",") if task == "combined" else []
    found = {task, *filter(None, parts)}
    options = {task: "task", **{part: f"task.options.{part}" for part in parts}}
    found |= {f"{name} on tokens" for name, key in options.items() if given.get(f"{key}.on") == "tokens"}
    return found | ({"rotation and simclr"} if {"rotation", "simclr"} <= found else set())
