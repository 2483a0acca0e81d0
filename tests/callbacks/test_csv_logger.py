"""Rows of metrics.csv in a run that is killed and resumed."""

import csv
from pathlib import Path

from ssl_lightning.callbacks.csv_logger import CSVLogger


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_new_columns_and_rows_are_appended(tmp_path: Path) -> None:
    logger = CSVLogger(str(tmp_path))
    logger.keep_until(0)
    logger.log_metrics({"loss": 1.5}, step=1)
    logger.save()
    logger.log_metrics({"loss": 1.25}, step=2)
    logger.log_metrics({"acc": 0.5}, step=2)
    logger.finalize("success")
    assert rows(tmp_path) == [
        {"step": "1", "loss": "1.5", "acc": ""},
        {"step": "2", "loss": "1.25", "acc": ""},
        {"step": "2", "loss": "", "acc": "0.5"},
    ]


def test_a_resumed_run_continues_after_the_row_of_its_checkpoint(tmp_path: Path) -> None:
    first = CSVLogger(str(tmp_path))
    for step in (1, 2, 3, 4):
        first.log_metrics({"loss": step / 2}, step=step)
    first.save()
    whole = (tmp_path / "metrics.csv").read_text()
    (tmp_path / "metrics.csv").write_text(whole[:-3])  # the last row is cut, as by a kill
    second = CSVLogger(str(tmp_path))
    second.keep_until(2)
    for step in (3, 4):
        second.log_metrics({"loss": step / 2}, step=step)
    second.save()
    assert (tmp_path / "metrics.csv").read_text() == whole
    second.keep_until(0)  # a run from the beginning
    assert rows(tmp_path) == []
