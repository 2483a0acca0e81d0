"""Command line of the benchmark."""

import json
from pathlib import Path

import pytest

from ssl_lightning.bench import __main__ as bench


def test_the_help_says_what_each_section_measures(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        bench.main(["--help"])
    sections = capsys.readouterr().out.partition("\nsections:\n")[2].splitlines()
    assert [line.split()[0] for line in sections] == list(bench.SECTIONS)
    assert all(len(line.split()) > 3 for line in sections)


@pytest.mark.parametrize(
    "arguments",
    [
        ["backbone=nin", "seed=1", "--sections", "ops", "--tasks", "rotation", "jigsaw"],
        ["--sections", "ops", "--tasks", "rotation", "jigsaw", "backbone=nin", "seed=1"],
        ["--tasks", "rotation", "backbone=nin", "jigsaw", "seed=1", "--sections", "ops"],
    ],
)
def test_overrides_stand_anywhere(arguments: list[str], tmp_path: Path, monkeypatch) -> None:
    given = []
    monkeypatch.setitem(bench.SECTIONS, "ops", lambda options: given.append(options) or [{"op": "none"}])
    assert bench.main([*arguments, f"--out={tmp_path / 'a.json'}"]) == 0
    assert (given[0].tasks, given[0].overrides) == (["rotation", "jigsaw"], ["backbone=nin", "seed=1"])
    assert json.loads((tmp_path / "a.json").read_text())["ops"] == [{"op": "none"}]
