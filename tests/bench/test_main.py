"""Command line of the benchmark."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from ssl_lightning.bench import __main__ as bench
from ssl_lightning.bench.build import ratio
from ssl_lightning.core.progress import span


def test_the_help_says_what_each_section_measures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        bench.main(["--help"])
    sections = capsys.readouterr().out.partition("\nsections:\n")[2].splitlines()
    assert [line.split()[0] for line in sections] == list(bench.SECTIONS)
    assert all(len(line.split()) > 3 for line in sections)


def fake(given: list[tuple[argparse.Namespace, str, int]], rows: list[dict]) -> bench.Section:
    """Return a section that keeps what it is given, and measures nothing."""

    def measure(options: argparse.Namespace, task: str, repeats: int) -> list[dict]:
        """Speed of nothing."""
        given.append((options, task, repeats))
        return [{"task": task} | row for row in rows]

    return bench.Section(measure, repeats=3, seconds=10, each_task=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["backbone=nin", "seed=1", "--sections", "ops", "--tasks", "rotation", "jigsaw"],
        ["--sections", "ops", "--tasks", "rotation", "jigsaw", "backbone=nin", "seed=1"],
        ["--tasks", "rotation", "backbone=nin", "jigsaw", "seed=1", "--sections", "ops"],
    ],
)
def test_overrides_stand_anywhere(arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    given: list[tuple[argparse.Namespace, str, int]] = []
    monkeypatch.setitem(bench.SECTIONS, "ops", fake(given, [{"ms": 1.5}]))
    assert bench.main([*arguments, f"--out={tmp_path / 'a.json'}"]) == 0
    assert {tuple(options.overrides) for options, _, _ in given} == {("backbone=nin", "seed=1")}
    assert [(task, repeats) for _, task, repeats in given] == [("rotation", 3), ("jigsaw", 3)]
    expected = [{"task": "rotation", "ms": 1.5}, {"task": "jigsaw", "ms": 1.5}]
    assert json.loads((tmp_path / "a.json").read_text())["ops"] == expected


def test_all_ratios_end_in_one_table_with_their_spread(tmp_path: Path, monkeypatch, capsys) -> None:
    row = {"images_per_s": 512.25, **ratio("of_bare", [0.91, 0.95, 0.9]), **ratio("times", [2.5])}
    for name in ("steps", "defaults"):
        monkeypatch.setitem(bench.SECTIONS, name, fake([], [row]))
    command = ["--tasks", "rotation", f"--out={tmp_path / 'a.json'}", "--sections", "steps", "defaults"]
    assert bench.main(command) == 0
    said = capsys.readouterr().out
    assert "1 of 2: steps rotation; about 0 s left" in said
    cells = [line.split() for line in said.splitlines()]
    for name in ("steps", "defaults"):
        assert [name, "rotation", "of_bare", "0.91", "0.9", "0.95"] in cells
        assert [name, "rotation", "times", "2.5", "2.5", "2.5"] in cells
    assert "512" not in said
    bench.main([*command, "--details"])
    assert "512" in capsys.readouterr().out


def test_a_section_without_ratios_prints_its_figures(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(bench.SECTIONS, "parts", fake([], [{"loader_ms": 1.25}]))
    assert bench.main(["--sections", "parts", "--tasks", "rotation", f"--out={tmp_path / 'a.json'}"]) == 0
    assert "1.25" in capsys.readouterr().out


def test_the_time_left_follows_the_planned_seconds(monkeypatch, capsys) -> None:
    now = [0.0]
    monkeypatch.setattr(bench.time, "monotonic", lambda: now[0])
    monkeypatch.setitem(bench.SECTIONS, "steps", fake([], []))  # twice 10 s
    monkeypatch.setitem(bench.SECTIONS, "ops", replace(fake([], []), each_task=False, seconds=40))
    options = argparse.Namespace(sections=["steps", "ops"], tasks=["rotation", "jigsaw"], repeats=None)
    for _ in bench.measurements(options):
        now[0] += 20  # half as fast as planned
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("; about ")[2] for line in lines] == [
        f"{span(100)} left",
        f"{span(80)} left",
        f"{span(0)} left",
    ]


def test_the_default_takes_less_than_ten_minutes() -> None:
    usual = [section for section in bench.SECTIONS.values() if section.default]
    times = [section.seconds * (len(bench.DEFAULT_TASKS) if section.each_task else 1) for section in usual]
    assert sum(times) < 600


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=x", "error: data.batch_size is 'x'; allowed is a whole number"),
        ("task=rotaton", "error: In 'train': Could not find 'task/rotaton'; did you mean rotation?"),
        ("+data.crops=2", "error: data.crops is not a key of data; it takes batch_size, "),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["data=fake", override, "--out", str(tmp_path / "a.json")]
    assert bench.main([*given, "--sections", "steps", "--tasks", "supervised"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)
