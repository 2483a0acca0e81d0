"""Progress lines: their interval on an injected clock, words, nesting, ranks, and silence by default."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ssl_lightning.core import progress
from ssl_lightning.core.progress import EVERY_S, Work, report, shown_by, tracked, watched


class SlowWork:
    """Clock and end of work: each wait takes its full time, in which the work advances."""

    def __init__(self, work: Callable[[int], None], waits: int) -> None:
        self.now, self.work, self.waits = 0.0, work, waits
        self.asked: list[float] = []

    def wait(self, timeout: float) -> bool:
        self.asked.append(timeout)
        if len(self.asked) > self.waits:
            return True
        self.now += timeout
        self.work(len(self.asked))
        return False


def lines_of(running: list[Work], slow: SlowWork) -> list[str]:
    lines: list[str] = []
    with shown_by(lines.append):
        report(running, slow, lambda: slow.now)
    return lines


def test_a_slow_work_a_line_in_every_interval() -> None:
    encode = Work("encode train", 5000, "images", began=0.0)
    slow = SlowWork(lambda number: encode.advance(1000 if number < 3 else 500), waits=4)
    assert lines_of([encode], slow) == [
        "encode train: 1,000 of 5,000 images, 40 s left",
        "encode train: 2,000 of 5,000 images, 30 s left",
        "encode train: 2,500 of 5,000 images, 30 s left",
        "encode train: 3,000 of 5,000 images, 27 s left",
    ]
    assert slow.asked == [EVERY_S] * 5


def test_short_work_shows_nothing() -> None:
    assert lines_of([Work("encode", 5, "images", 0.0)], SlowWork(lambda number: None, waits=0)) == []


def test_work_that_cannot_be_counted_shows_its_time() -> None:
    whole = [Work("probe linear", 5, "stages", 0.0), Work("fit", None, "", 0.0)]
    assert lines_of(whole[:1], SlowWork(lambda number: None, 1)) == [
        "probe linear: 0 of 5 stages, 10 s so far"
    ]
    assert lines_of(whole, SlowWork(lambda number: None, 1)) == ["probe linear, fit: 10 s so far"]
    found = Work("search", None, "files", 0.0)
    assert lines_of([found], SlowWork(lambda number: found.advance(2000), 1)) == [
        "search: 2,000 files, 10 s so far"
    ]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Show a line every millisecond; return the list of the lines."""
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    lines: list[str] = []
    with shown_by(lines.append):
        yield lines


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "no line came"
        time.sleep(0.001)


def test_the_innermost_stage_is_shown_and_the_thread_ends(quick: list[str]) -> None:
    before = threading.active_count()
    with watched("outer"):
        for item in tracked(range(4), "inner", "items"):
            if item == 2:
                wait_for(lambda: any("outer, inner: 2 of 4 items" in line for line in quick))
        quick.clear()
        wait_for(lambda: any(line.startswith("outer: ") for line in quick))
    wait_for(lambda: threading.active_count() == before)


def test_an_error_within_an_iteration_leaves_nothing(quick: list[str]) -> None:
    def fail() -> None:
        with watched("outer"):
            for item in tracked(range(4), "inner", "items"):
                assert item > 0

    with pytest.raises(AssertionError) as caught:
        fail()
    assert progress._running == []
    with watched("next"):
        wait_for(lambda: any(line.startswith("next: ") for line in quick))
    assert caught.tb is not None  # holds the frames of the iteration until here


@pytest.mark.parametrize(("alone", "shows"), [(False, False), (True, True)])
def test_only_rank_zero_shows_lines_but_for_work_of_one_process(
    quick: list[str], monkeypatch: pytest.MonkeyPatch, alone: bool, shows: bool
) -> None:
    monkeypatch.setenv("RANK", "1")
    with watched("work", alone=alone):
        assert (len(progress._running) == 1) == shows
        if shows:
            wait_for(lambda: bool(quick))


def test_a_program_that_configures_no_logging_sees_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    asked: list[str] = []
    monkeypatch.setattr(progress, "_show", [lambda line: (asked.append(line), progress.log.info(line))])
    with watched("work"):
        wait_for(lambda: len(asked) > 3)
    assert capfd.readouterr() == ("", "")


def test_lines_go_to_the_logger_of_the_package(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    with caplog.at_level(logging.INFO, "ssl_lightning"), watched("count 100%"):
        wait_for(lambda: bool(caplog.records))
    assert caplog.records[0].getMessage().startswith("count 100%: ")
