"""Colours and lines of tasks, the same in every chart, on light and on dark paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Every colour is readable on both papers: a contrast of 3 or more
LIGHT_PAPER, LIGHT_INK = "#ffffff", "#1b1f24"  # as in templates/page.css
DARK_PAPER, DARK_INK = "#12151a", "#e4e8ee"
GREY = "#8a8f98"
TASKS = {  # colour and marker of each task; every pair differs for colour-blind readers too
    "rotation": ("#e5742a", "o"),
    "jigsaw": ("#2a6bd4", "s"),
    "context_prediction": ("#a184e6", "^"),
    "colorization": ("#1a9c6c", "D"),
    "inpainting": ("#c43a7e", "v"),
    "super_resolution": ("#86600a", "P"),
    "random": ("#90959d", "X"),  # the controls are grey
    "supervised": ("#666b73", "X"),
}
# Methods that compare views, and tasks of other packages; the fifth has the first colour and another marker
OTHERS = (("#1791a6", "o"), ("#d0434f", "s"), ("#6f8a1c", "^"), ("#9a6a4f", "D"))
LINES = ("-", "--", ":", "-.")  # of the first, second, ... row of one task


@dataclass(frozen=True)
class Style:
    """Colour and marker of a task, and the line that tells its rows apart."""

    colour: str
    marker: str
    line: str


def styles(tasks: Sequence[str]) -> list[Style]:
    """Choose the style of each row of a table.

    Args:
        tasks: Task of each row. A task keeps its colour; its second row has another line.

    >>> [style.line for style in styles(["rotation", "jigsaw", "rotation"])]
    ['-', '-', '--']
    """
    named = dict(TASKS)
    for place, task in enumerate(sorted(set(tasks) - set(TASKS))):
        turn, number = divmod(place, len(OTHERS))
        named[task] = OTHERS[number][0], OTHERS[(number + turn) % len(OTHERS)][1]
    repeats = [tasks[:place].count(task) for place, task in enumerate(tasks)]
    return [Style(*named[task], LINES[turn % len(LINES)]) for task, turn in zip(tasks, repeats, strict=True)]
