"""Refusals of results.json, in one table of how to spoil the file and the error.

The report names a bad file, leaves it out and shows the others. A sweep says that it does not count as
finished, and runs the job. `evaluate.py run=` and `resume=` refuse it and do not change the file.
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

from ssl_lightning.artifacts.results import Results
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
    """Set a value; the file remains valid JSON."""

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


def shared(**fields: Any) -> Spoil:
    """Write the file in schema 2, with changed fields of its record."""

    def spoil(path: Path) -> None:
        content = Results.from_json(GOOD).to_json()
        (record,) = content["probes"]
        record |= fields
        content["probes"] = [{key: value for key, value in record.items() if value is not ...}]
        path.write_text(json.dumps(content))

    return spoil


def unfolding(path: Path) -> None:
    """Write many records that share one large protocol."""
    content = Results.from_json(GOOD).to_json()
    content["protocols"] = [{"classifier": "x" * 100_000}]
    content["probes"] *= 400
    path.write_text(json.dumps(content))


def literal(name: str) -> Spoil:
    """Set a value that Python writes but JSON does not allow."""
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
    "NaN": (literal("NaN"), "broken: NaN is not a JSON number"),
    "Infinity": (literal("Infinity"), "broken: Infinity is not a JSON number"),
    "-Infinity": (literal("-Infinity"), "broken: -Infinity is not a JSON number"),
    "a number beyond floats": (literal("1e999"), "foreign: pretext.val/loss is 'inf'"),
    "a whole number beyond floats": (literal("9" * 400), "val/loss is a number of many digits"),
    "a whole number of a million digits": (literal("9" * 10**6), "broken: .*integer"),
    "a list": (put("[]"), "foreign: it has no schema"),
    "null": (put("null"), "foreign: it has no schema"),
    "nested in lists": (put("[" * 10**6), "broken: it is nested too deeply"),
    "nested 900 deep": (nested(900), "broken: it is nested "),
    "nested 40 deep": (nested(40), "broken: it is nested more than 32 deep"),
    "a terabyte": (absurd, "broken: it has 1,099,511,627,776 bytes; allowed are at most 33,554,432"),
    "a pipe": (pipe, "plain file|is a pipe, socket or device"),
    "a link in a circle": (circle, "Too many levels of symbolic links"),
    "a device": (device, "plain file|is a link that leads out"),
    "no schema": (field("schema", value=...), "foreign: it has no schema"),
    "a schema of 0": (field("schema", value=0), "foreign: it has no schema"),
    "a schema that is true": (field("schema", value=True), "foreign: it has no schema"),
    "a newer schema": (field("schema", value=3), "made by a newer ssl-lightning: its schema is 3, and"),
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
    "an end that is not a time": (field("run", "ended", value="soon"), "foreign: run.ended is 'soon'"),
    "a command in parts": (field("run", "command", value=["rm"]), "foreign: run.command is "),
    "a pretext in words": (field("pretext", "val/loss", value="low"), "foreign: pretext.val/loss is 'low'"),
    "a record that is a number": (field("probes", 0, value=0.5), r"\[0\] is '0.5'; allowed is an object"),
    "a record without a value": (field("probes", 0, "value", value=...), r"it has no probes\[0\].value"),
    "a value in words": (field("probes", 0, "value", value="50 %"), r"foreign: probes\[0\].value is '50 %'"),
    "a value above 1": (field("probes", 0, "value", value=50.0), r"value is '50.0'; allowed is a fraction"),
    "a value below 0": (field("probes", 0, "value", value=-0.1), r"value is '-0.1'; allowed is a fraction"),
    "no images": (field("probes", 0, "n", value=-5), r"foreign: probes\[0\].n is '-5'"),
    "a held-out figure above 1": (
        field("probes", 0, "protocol", "heldout", value=25), "heldout is '25'; allowed is a fraction",
    ),
    "a protocol in words": (field("probes", 0, "protocol", value="usual"), r"\[0\].protocol is 'usual'"),
    "an evaluation of nothing": (field("probes", 0, "evaluation", value={}), r"\[0\].evaluation.data"),
    "a field that is not known": (field("run", "owner", value="me"), "foreign: run.'owner' is not known"),
    "a stage that is a path": (field("probes", 0, "stage", value="../x"), "stage is '../x'; allowed is"),
    "a record of the next schema": (field("schema", value=2), "foreign: it has no protocols"),
    "a protocol that is not there": (shared(protocol=1), "is '1'; allowed is a place in the list of 1"),
    "a protocol before the first": (shared(protocol=-1), r"\[0\].protocol is '-1'; allowed is"),
    "a protocol by name": (shared(protocol="knn"), r"\[0\].protocol is 'knn'; allowed is a whole number"),
    "a record without its own part": (shared(own=...), r"foreign: it has no probes\[0\].own"),
    "protocols that unfold to gigabytes": (unfolding, "share protocols of more than 33,554,432 bytes"),
    "a held-out figure of its own above 1": (shared(own={"heldout": 25}), "heldout is '25'; allowed is"),
}  # fmt: skip


def leave(folder: Path, name: str) -> Path:
    """Write a finished run and spoil its results.json."""
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
def test_a_sweep_does_not_count_it_as_finished(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, answer = CASES[name]
    cfg = OmegaConf.create(CONFIG | {"output_dir": str(tmp_path)})
    path = leave(tmp_path, "run")
    assert finished_run(cfg) == path.parent
    spoil(path)
    assert finished_run(cfg) is None
    if name == "a link in a circle":  # a search by name misses it
        return
    output = capsys.readouterr().out
    assert output.startswith(f"{path} does not count as finished: ")
    assert output.count("\n") == 1
    with pytest.raises(ValueError, match=answer):
        raise ValueError(output)


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
def test_a_report_without_valid_results_is_refused_and_the_previous_one_stays(tmp_path: Path) -> None:
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
