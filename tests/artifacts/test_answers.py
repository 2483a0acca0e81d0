"""Answers to test images: written beside the results, read back, and left out where they do not fit."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssl_lightning.artifacts.answers import Answers, short_digest
from ssl_lightning.artifacts.records import Evaluation, Record
from ssl_lightning.artifacts.results import Results, read_results, write_results
from tests.artifacts.test_results import FACTS

RIGHT = np.arange(1000) % 3 == 0
LABELS = (np.arange(1000) % 7).astype("<i4").tobytes()


def record(right: np.ndarray = RIGHT, **names: object) -> Record:
    answers = Answers(np.packbits(right).tobytes(), LABELS, short_digest(LABELS))
    plain = Record("stage1", "top1", float(right.mean()), len(right), {}, probe="linear", branch="backbone")
    return replace(plain, answers=answers, **names)


def stored(folder: Path, *records: Record) -> list[Record]:
    write_results(folder / "results.json", Results(FACTS, {}, list(records)))
    return read_results(folder / "results.json").probes


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    other = ~RIGHT
    records = [
        record(trained=False), record(other, trained=True), record(stage="stage2"),
        record(protocol={"k": 20}, probe="knn"), record(other, protocol={"k": 200}, probe="knn"),
        record(other, evaluation=Evaluation("cifar10", "last")),
        record(evaluation=Evaluation("cifar10", "best")),
    ]  # fmt: skip
    found = stored(tmp_path, *records)
    assert [r.answers for r in found] == [r.answers for r in records]
    assert found == records
    assert "answers" not in (tmp_path / "results.json").read_text()
    content = json.loads((tmp_path / "answers.json").read_text())
    assert len(content["labels"]) == 1  # one test set
    bits = np.frombuffer(base64.b64decode(next(iter(content["right"].values()))), np.uint8)
    assert np.array_equal(np.unpackbits(bits, count=1000).astype(bool), RIGHT)


def test_without_answers_there_is_no_file(tmp_path: Path) -> None:
    assert stored(tmp_path, replace(record(), answers=None))[0].answers is None
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_answers_of_another_figure_are_not_taken(tmp_path: Path) -> None:
    stored(tmp_path, record())
    answers = (tmp_path / "answers.json").read_text()
    stored(tmp_path, record(~RIGHT))
    (tmp_path / "answers.json").write_text(answers)  # of a run that was killed between the two files
    assert read_results(tmp_path / "results.json").probes[0].answers is None


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"schema": 2, "labels": {}, "right": {}}', '{"schema": 1, "labels": {}}',
        '{"schema": 1, "labels": {"a": "?"}, "right": {}}', '{"schema": 1, "labels": {"a": 1}, "right": {}}',
    ],
)  # fmt: skip
def test_a_broken_file_leaves_the_figures(tmp_path: Path, text: str) -> None:
    stored(tmp_path, record())
    (tmp_path / "answers.json").write_text(text)
    assert [(r.value, r.answers) for r in read_results(tmp_path / "results.json").probes] == [(0.334, None)]


def test_answers_of_another_length_are_left_out(tmp_path: Path) -> None:
    stored(tmp_path, record())
    path = tmp_path / "answers.json"
    content = json.loads(path.read_text())
    content["right"] = {name: bits[:8] for name, bits in content["right"].items()}
    path.write_text(json.dumps(content))
    assert read_results(tmp_path / "results.json").probes[0].answers is None
