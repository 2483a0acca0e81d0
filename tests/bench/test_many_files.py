"""Measurement of the starts with many files, at a small size."""

import pytest

from ssl_lightning.bench.many_files import main


def test_each_start_prints_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--files", "1040", "--side", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["first start", "later start", "data.verify=false"]


def test_too_few_files_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--files", "1000"])
    assert "--files is 1000; more than 1000 are needed" in capsys.readouterr().err
