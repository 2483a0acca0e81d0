"""What is refused of results.json, in one table: what is in the file, and the answer of each that reads it.

The report names a bad file, leaves it out and shows the others; a sweep does not count it as finished, says
so, and runs the job; `evaluate.py run=` and `resume=` refuse, and leave the file as it is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ssl_lightning.config.identity import config_sha256
from ssl_lightning.core.errors import RunError
from ssl_lightning.launch.previous_runs import finished_run, read_objective
from ssl_lightning.report.collect import collect
from ssl_lightning.report.write import write_report
from tests.refusals import _run as entrance
from tests.refusals._run import absurd, circle, digests, make_run, pipe

ROOT = Path(__file__).parents[2]
CONFIG = {"seed": 0, "choices": {"task": "rotation", "data": "fake", "backbone": "convnet"}}
RECORD = {
    "probe": "knn", "branch": "backbone", "stage": "stage1", "trained": True, "split": "test",
    "metric": "top1", "value": 0.5, "n": 16,
    "protocol": {"k": 5, "heldout": 0.25, "input": "image", "batch_norm": "trained"},
}  # fmt: skip
GOOD = {
    "schema": 1,
    "run": {
        "task": "rotation", "data": "fake", "backbone": "convnet", "seed": 0, "epochs": 1, "wall_s": 1.5,
        "images_per_s": 20.0, "git": "abc", "versions": {"torch": "2.15"}, "status": "finished",
        "config_sha256": config_sha256(CONFIG), "ended": "2026-01-01T00:00:00+00:00",
    },
    "pretext": {"val/loss": 1.25},
    "probes": [RECORD],
}  # fmt: skip
Spoil = Callable[[Path], Any]


def put(content: bytes | str) -> Spoil:
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def field(*place: str | int, value: Any) -> Spoil:
    """Put a value at a place; the file is valid JSON still."""

    def spoil(path: Path) -> None:
        content = json.loads(json.dumps(GOOD))
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        if value is ...:
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
        path.write_text(json.dumps(content))

    return spoil


def literal(name: str) -> Spoil:
    """A value that Python writes and JSON does not know."""
    return put(json.dumps(GOOD).replace("1.25", name))


def nested(depth: int) -> Spoil:
    protocol = '{"a":' * depth + "1" + "}" * depth
    return put(json.dumps(GOOD).replace('{"torch": "2.15"}', protocol))


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


CASES: dict[str, tuple[Spoil, str]] = {
    "cut": (put(json.dumps(GOOD)[:-40]), "broken: "),
    "no bytes": (put(""), "broken: Expecting value"),
    "text": (put("accuracy 90 %"), "broken: Expecting value"),
    "two objects": (put(json.dumps(GOOD) * 2), "broken: Extra data"),
    "bytes of zero": (put(b"\0" * 4096), "broken: "),
    "not UTF-8": (put(json.dumps(GOOD).encode().replace(b"rotation", b"rot\xff")), "broken: 'utf-8' codec"),
    "UTF-16": (put(json.dumps(GOOD).encode("utf-16")), "broken: 'utf-8' codec"),
    "NaN": (literal("NaN"), "broken: NaN is no number of JSON"),
    "Infinity": (literal("Infinity"), "broken: Infinity is no number of JSON"),
    "-Infinity": (literal("-Infinity"), "broken: -Infinity is no number of JSON"),
    "a number beyond floats": (literal("1e999"), "foreign: pretext.val/loss is 'inf'"),
    "a whole number beyond floats": (literal("9" * 400), "val/loss is a number of many digits"),
    "a whole number of a million digits": (literal("9" * 10**6), "broken: .*integer"),
    "a list": (put("[]"), "foreign: it has no schema"),
    "null": (put("null"), "foreign: it has no schema"),
    "nested in lists": (put("[" * 10**6), "broken: it is nested too deeply"),
    "nested 900 deep": (nested(900), "broken: it is nested "),
    "nested 40 deep": (nested(40), "broken: it is nested more than 32 deep"),
    "a terabyte": (absurd, "broken: it has 1,099,511,627,776 bytes; allowed are at most 33,554,432"),
    "a pipe": (pipe, "no plain file|is a pipe, socket or device"),
    "a link in a circle": (circle, "Too many levels of symbolic links"),
    "a device": (device, "no plain file|is a link that leads out"),
    "no schema": (field("schema", value=...), "foreign: it has no schema"),
    "a schema of 0": (field("schema", value=0), "foreign: it has no schema"),
    "a schema that is true": (field("schema", value=True), "foreign: it has no schema"),
    "a newer schema": (field("schema", value=2), "made by a newer ssl-lightning: its schema is 2, and"),
    "no run": (field("run", value=...), "foreign: it has no run"),
    "no probes": (field("probes", value=...), "foreign: it has no probes"),
    "a run that is a text": (field("run", value="rotation"), "foreign: run is 'rotation'"),
    "probes by name": (field("probes", value={"knn": 0.5}), "foreign: probes is "),
    "no task": (field("run", "task", value=...), "foreign: it has no run.task"),
    "no status": (field("run", "status", value=...), "foreign: it has no run.status"),
    "another status": (field("run", "status", value="done"), "foreign: run.status is 'done'"),
    "a task that is a number": (field("run", "task", value=3), "foreign: run.task is '3'"),
    "a seed in words": (field("run", "seed", value="zero"), "foreign: run.seed is 'zero'"),
    "a seed that is true": (field("run", "seed", value=True), "foreign: run.seed is 'True'"),
    "seconds below 0": (field("run", "wall_s", value=-1.0), "foreign: run.wall_s is '-1.0'"),
    "epochs below 0": (field("run", "epochs", value=-1), "foreign: run.epochs is '-1'"),
    "versions in a list": (field("run", "versions", value=["2.15"]), "foreign: run.versions is "),
    "an end that is no time": (field("run", "ended", value="soon"), "foreign: run.ended is 'soon'"),
    "a command in parts": (field("run", "command", value=["rm"]), "foreign: run.command is "),
    "a pretext in words": (field("pretext", "val/loss", value="low"), "foreign: pretext.val/loss is 'low'"),
    "a record that is a number": (field("probes", 0, value=0.5), r"foreign: probes\[0\] is not an object"),
    "a record without a value": (field("probes", 0, "value", value=...), r"it has no probes\[0\].value"),
    "a value in words": (field("probes", 0, "value", value="50 %"), r"foreign: probes\[0\].value is '50 %'"),
    "a value above 1": (field("probes", 0, "value", value=50.0), r"\[0\].value is '50.0'; it is a fraction"),
    "a value below 0": (field("probes", 0, "value", value=-0.1), r"\[0\].value is '-0.1'; it is a fraction"),
    "no images": (field("probes", 0, "n", value=-5), r"foreign: probes\[0\].n is '-5'"),
    "a held-out figure above 1": (
        field("probes", 0, "protocol", "heldout", value=25), "heldout is '25'; it is a fraction",
    ),
    "a protocol in words": (field("probes", 0, "protocol", value="usual"), r"\[0\].protocol is 'usual'"),
    "an evaluation of nothing": (field("probes", 0, "evaluation", value={}), r"\[0\].evaluation.data"),
}  # fmt: skip


def leave(folder: Path, name: str) -> Path:
    """A finished run under the outputs, and its results.json made bad."""
    place = folder / "rotation/fake/convnet" / name
    place.mkdir(parents=True)
    (place / "results.json").write_text(json.dumps(GOOD))
    return place / "results.json"


@pytest.mark.parametrize("name", CASES)
def test_the_report_names_it_and_leaves_it_out(name: str, tmp_path: Path) -> None:
    spoil, answer = CASES[name]
    leave(tmp_path, "good")
    spoil(leave(tmp_path, "bad"))
    found = collect(tmp_path)
    assert [run.name for run in found.runs] == ["rotation/fake/convnet/good"]
    with pytest.raises(ValueError, match=answer):
        raise ValueError(found.skipped["rotation/fake/convnet/bad"])


@pytest.mark.parametrize("name", CASES)
def test_a_sweep_does_not_take_it_for_finished(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, answer = CASES[name]
    cfg = OmegaConf.create(CONFIG | {"output_dir": str(tmp_path)})
    path = leave(tmp_path, "run")
    assert finished_run(cfg) == path.parent
    spoil(path)
    assert finished_run(cfg) is None
    if name == "a link in a circle":  # which a search by name does not see
        return
    said = capsys.readouterr().out
    assert said.startswith(f"{path} does not count as finished: ")
    assert said.count("\n") == 1
    with pytest.raises(ValueError, match=answer):
        raise ValueError(said)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("enter", [entrance.evaluate_run, entrance.resume])
@pytest.mark.parametrize("name", CASES)
def test_nothing_is_added_to_it(name: str, enter: Callable[[Path], None], copy: Path) -> None:
    spoil, answer = CASES[name]
    spoil(copy / "results.json")
    before = digests(copy)
    with pytest.raises((ValueError, RunError), match=answer) as caught:
        enter(copy)
    assert str(copy / "results.json") in str(caught.value)
    assert digests(copy) == before


def test_a_figure_for_a_sweeper_is_not_read_from_it(tmp_path: Path) -> None:
    path = leave(tmp_path, "run")
    assert read_objective(path.parent, "probe/knn/top1") == 0.25
    for name in ("cut", "a pipe", "a value above 1", "a newer schema"):
        path.unlink()
        path.write_text(json.dumps(GOOD))
        CASES[name][0](path)
        with pytest.raises(RunError, match=CASES[name][1]):
            read_objective(path.parent, "probe/knn/top1")


@pytest.mark.slow
def test_a_report_of_nothing_else_is_refused_and_the_one_before_stays(tmp_path: Path) -> None:
    outputs, out = tmp_path / "outputs", tmp_path / "report"
    path = leave(outputs, "run")
    write_report(outputs, out, None, None)
    before = digests(out)
    CASES["cut"][0](path)
    with pytest.raises(ValueError, match="broken: "):
        write_report(outputs, out, None, None)
    assert digests(out) == before


@pytest.mark.slow
def test_the_line_reaches_the_terminal_without_a_traceback(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    leave(outputs, "good")
    for number, name in enumerate(CASES):
        CASES[name][0](leave(outputs, f"bad-{number}"))
    command = [sys.executable, str(ROOT / "report.py"), f"outputs={outputs}", f"out={tmp_path / 'report'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("/results.json: ") == len(CASES)
