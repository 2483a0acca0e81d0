"""Every pretext task is in every suite that tests what all tasks promise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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
from tests._tasks import FORMS, SPECIAL, TASKS, VIEW_TASKS, tasks_in
from tests.engine import test_cuda_graphs
from tests.refusals import test_config
from tests.tasks import test_combined, test_stock_trainer, test_view_tasks

# tasks that draw in each process for its own images, so that two processes do not equal one
OWN_DRAWS = {"mae", "jigsaw", "jigsaw on tokens", "context_prediction", "context_prediction on tokens"}


def of(runs: Iterable[Sequence[str]]) -> set[str]:
    """Return the tasks and forms that runs with these overrides train."""
    return set().union(*map(tasks_in, runs))


class Suite(NamedTuple):
    """Tasks of a suite, the place of its cases, and the tasks that it leaves out.

    A suite without a place takes a case of every task by itself.
    """

    tasks: set[str]
    place: str = ""
    left_out: set[str] = frozenset()  # type: ignore[assignment]


SUITES = {
    "resume, graphs, learning": Suite(of(test_user_loop.RUNS.values())),
    "killed runs": Suite(of(overrides for _, overrides in test_resume.KILLED.values())),
    "two processes": Suite(
        of([f"task={name}", *options] for name, options in test_train.EQUAL.items()),
        "EQUAL of tests/test_train.py, or to OWN_DRAWS of tests/test_suites.py",
        OWN_DRAWS,
    ),
    "sharded weights": Suite(of([f"task={name}", *options] for name, options in test_cluster.SHARDED)),
    "graphs on a GPU": Suite(of(test_cuda_graphs.RECORDED.values())),
    "no waiting on a GPU": Suite(of(test_gpu.CASES.values())),
    "wrong values": Suite(
        of(case.split(" ") for case in test_config.CASES if "task=" in case),
        "CASES of tests/refusals/test_config.py: a wrong value and its message",
    ),
    "four channels": Suite(of(test_odd_pictures.FOUR_CHANNELS.values()), "", {"colorization"}),
    "stock trainer": Suite(set(test_stock_trainer.STOCK)),
    "parts": Suite(set(test_combined.PARTS), "", {*FORMS, *SPECIAL}),
    "golden losses": Suite(
        set(json.loads(test_golden.GOLDEN.read_text())),
        "tests/golden.json: python -m tests.test_golden NAME",
        test_golden.LEFT_OUT,
    ),
}


@pytest.mark.parametrize("name", SUITES)
def test_every_task_is_in_every_suite(name: str) -> None:
    suite = SUITES[name]
    missing = sorted(TASKS.keys() - suite.tasks - suite.left_out)
    assert not missing, f"add {', '.join(missing)} to {suite.place}"
    assert not suite.tasks & suite.left_out


def test_every_view_task_is_in_the_suite_of_view_tasks() -> None:
    missing = sorted(set(VIEW_TASKS) - set(test_view_tasks.KINDS))
    assert not missing, f"add {', '.join(missing)} to KINDS of tests/tasks/test_view_tasks.py"
