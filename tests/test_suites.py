"""Every pretext task is in every suite that tests what all tasks promise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from tests import (
    test_cluster,
    test_golden,
    test_gpu,
    test_odd_pictures,
    test_resume,
    test_train,
    test_user_loop,
)
from tests._tasks import FORMS, TASKS, VIEW_TASKS, tasks_in
from tests.engine import test_cuda_graphs
from tests.refusals import test_config
from tests.tasks import test_combined, test_stock_trainer, test_view_tasks

TILES = {"jigsaw", "jigsaw on tokens", "context_prediction", "context_prediction on tokens"}


def of(runs: Iterable[Sequence[str]]) -> set[str]:
    """Return the tasks and forms that runs with these overrides train."""
    return set().union(*map(tasks_in, runs))


# for each suite, its tasks, and those that it leaves out
SUITES: dict[str, tuple[set[str], set[str]]] = {
    "resume, graphs, learning": (of(test_user_loop.RUNS.values()), set()),
    "killed runs": (of(overrides for _, overrides in test_resume.KILLED.values()), set()),
    # the others draw in each process for its own images
    "two processes": (
        of([f"task={name}", *options] for name, options in test_train.EQUAL.items()),
        {*TILES, "mae"},
    ),
    "sharded weights": (of([f"task={name}", *options] for name, options in test_cluster.SHARDED), set()),
    "graphs on a GPU": (of(test_cuda_graphs.RECORDED.values()), set()),
    "no waiting on a GPU": (of(test_gpu.CASES.values()), set()),
    "wrong values": (of(case.split(" ") for case in test_config.CASES if "task=" in case), set()),
    "four channels": (of(test_odd_pictures.FOUR_CHANNELS.values()), {"colorization"}),
    "stock trainer": (set(test_stock_trainer.STOCK), set()),
    "parts": (set(test_combined.PARTS), {*FORMS, "combined", "mae"}),  # mae needs a transformer
    "golden losses": (set(test_golden.TASKS), {*FORMS, "combined", "mae", "pirl"}),
}


@pytest.mark.parametrize("suite", SUITES)
def test_every_task_is_in_every_suite(suite: str) -> None:
    found, left_out = SUITES[suite]
    assert TASKS.keys() - found == left_out


def test_every_view_task_is_in_the_suite_of_view_tasks() -> None:
    assert set(test_view_tasks.KINDS) == set(VIEW_TASKS)
