"""Refusals of checkpoints and exported backbones, in tables of how to spoil the file and the error.

Every case goes through an entry point of users, in this process, up to the start of work. Digests show that
existing files stay unchanged. Tests in separate processes show that the error reaches the terminal.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.refusals import _run as entrance
from tests.refusals._run import Attack, absurd, circle, digests, first_weight, make_run, pipe, rewrite

ROOT = Path(__file__).parents[2]
LAST = "checkpoints/last.ckpt"
Spoil = Callable[[Path], Any]


def cut(part: float) -> Spoil:
    """Keep a fraction of the file; if negative, drop this number of bytes."""

    def spoil(path: Path) -> None:
        whole = path.read_bytes()
        path.write_bytes(whole[: int(part * len(whole)) if part > 0 else int(part)])

    return spoil


def put(content: bytes) -> Spoil:
    return lambda path: path.write_bytes(content)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")


def packed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def flipped(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
    whole[part.header_offset + 200] ^= 1  # beyond its name
    path.write_bytes(whole)


def of_old_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


FILES: dict[str, tuple[Spoil, str]] = {
    "cut in the first tenth": (cut(0.1), "torn"),
    "cut in the middle": (cut(0.5), "torn"),
    "cut in the list of parts": (cut(-30), "torn"),
    "cut by a byte": (cut(-1), "torn"),
    "one bit turned": (flipped, "torn"),
    "no bytes": (put(b""), "torn"),
    "text": (put(b"this is no checkpoint\n"), "torn or not a checkpoint"),
    "a zip of something else": (other_zip, "cannot be read as a checkpoint"),
    "a packed archive": (packed, "torn or not a checkpoint"),
    "a folder": (folder, "plain file|holds neither"),
    "a pipe": (pipe, "plain file|is a pipe, socket or device"),
    "a link in a circle": (circle, "Too many levels of symbolic links"),
    "a terabyte": (absurd, "bytes; allowed are at most"),
    "of torch before 1.6": (of_old_torch, "1 unexpected: a|state_dict is missing"),
}


def state(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Change the weights of a checkpoint."""
    return lambda path: rewrite(path, lambda content: change(content["state_dict"]))


def renamed(weights: dict[str, Any]) -> None:
    for name in [name for name in weights if name.startswith("backbone.")]:
        weights[name.replace("backbone.stages", "backbone.layer")] = weights.pop(name)


def set_to(make: Callable[[torch.Tensor], Any]) -> Spoil:
    """Replace the weight of the first convolution."""

    def change(weights: dict[str, Any]) -> None:
        name = first_weight(weights)
        weights[name] = make(weights[name])

    return state(change)


def one_value(value: float) -> Spoil:
    def make(weight: torch.Tensor) -> torch.Tensor:
        weight[0, 0, 0, 0] = value
        return weight

    return set_to(make)


def without(key: str) -> Spoil:
    return lambda path: rewrite(path, lambda content: {k: v for k, v in content.items() if k != key})


def changed(key: str, value: Any) -> Spoil:
    return lambda path: rewrite(path, lambda content: content.update({key: value}))


def attack(path: Path) -> None:
    rewrite(path, lambda content: content | {"attack": Attack(path.parent / "owned")})


def moments(make: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    def change(content: dict[str, Any]) -> None:
        first = content["optimizer_states"][0]["state"][0]
        first["momentum_buffer"] = make(first["momentum_buffer"])

    return lambda path: rewrite(path, change)


def drop_first(weights: dict[str, Any]) -> None:
    del weights[first_weight(weights)]


WEIGHTS: dict[str, tuple[Spoil, str]] = {  # of a checkpoint, at every entry point
    "a backbone of other widths": (
        set_to(lambda w: w.repeat(2, 1, 1, 1)),
        r"another shape: \S*\.0\.0\.0\.weight",
    ),
    "another backbone": (state(renamed), r"\d+ missing: .*\d+ unexpected: "),
    "images of other channels": (set_to(lambda w: w[:, :1]), r"of another shape: .*\(4, 1, 3, 3\)"),
    "a NaN": (one_value(float("nan")), r"1 not finite: \S*stages.0.0.0.weight"),
    "an infinite weight": (one_value(float("-inf")), r"1 not finite: \S*stages.0.0.0.weight"),
    "a missing weight": (
        state(drop_first),
        r"1 missing: \S*stages.0.0.0.weight",
    ),
    "another weight": (
        state(lambda s: s.update({"backbone.extra": torch.zeros(1)})),
        r"1 unexpected: \S*extra",
    ),
    "whole numbers": (set_to(lambda w: w.to(torch.int32)), "another kind: .* int32 for float32"),
    "complex numbers": (set_to(lambda w: w.to(torch.complex64)), "another kind: .* complex64 for float32"),
    "a sparse weight": (set_to(lambda w: w.to_sparse()), "another kind: .*sparse_coo for float32"),
    "a weight of nowhere": (set_to(lambda w: w.to("meta")), "another kind: .*meta for float32"),
    "a newer version": (changed("ssl_lightning_schema", 2), "made by a newer ssl-lightning: its schema is 2"),
    "a version that is not a number": (changed("ssl_lightning_schema", "2"), "no schema number"),
    "a list": (lambda path: rewrite(path, lambda content: [content]), "holds a list, not a checkpoint"),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), "holds a Tensor, not a checkpoint"),
    "code": (attack, "it would run .*mknod, and code of a file is never run"),
}
OF_A_RUN: dict[str, tuple[Spoil, str]] = {  # of the state of a task
    "another task": (
        state(lambda s: s.update({"head.0.weight": s.pop("head.linear.weight")})),
        "is of another task or backbone: 1 missing: head.linear.weight; 1 unexpected: head.0.weight",
    ),
    "a text for a weight": (set_to(lambda w: "zeros"), "another kind: .* str for float32"),
    "no weights": (without("state_dict"), "state_dict is missing"),
    "a list of weights": (changed("state_dict", []), "state_dict is of type list"),
}
OF_A_RESUME: dict[str, tuple[Spoil, str]] = {  # of the state of its training
    "weights alone": (
        lambda path: rewrite(path, lambda content: {"state_dict": content["state_dict"]}),
        "not a checkpoint of a run: epoch is missing; give a file of weights as init_from=",
    ),
    "no optimizer": (without("optimizer_states"), "optimizer_states is missing"),
    "no loops": (without("loops"), "loops is missing"),
    "an epoch in words": (changed("epoch", "first"), "epoch is of type str"),
    "a step that is true": (changed("global_step", True), "global_step is of type bool"),
    "other loops": (changed("loops", {"fit_loop": {}}), "does not hold the state of this run"),
    "two optimizers": (
        lambda path: rewrite(path, lambda c: c["optimizer_states"].append(c["optimizer_states"][0])),
        "does not hold the state of this run",
    ),
    "another optimizer": (
        lambda path: rewrite(path, lambda c: c["optimizer_states"][0]["param_groups"][0]["params"].clear()),
        "does not hold the state of this run .*parameter group",
    ),
    "momentum of another shape": (moments(lambda m: m[:1]), "momentum_buffer of the optimizer has "),
    "a NaN in the momentum": (
        moments(lambda m: m * float("nan")),
        "momentum_buffer of .* is not finite",
    ),
    "callbacks without state": (
        lambda path: rewrite(path, lambda c: c["callbacks"].update({"Metrics": {}})),
        "not a checkpoint of a run: the state of Metrics",
    ),
}
OF_RUNS = FILES | WEIGHTS | OF_A_RUN
# A run resumes from the checkpoint before a broken one; here there is none
TORN = {name: "torn; start a new run|a pipe, socket" for name in FILES if name != "a zip of something else"}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Silence Lightning's line about missing GPUs, printed for every trainer."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """Return a copy of a run folder at another place."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def refused(enter: Callable[[Path], None], path: Path, answer: str, kept: Path) -> None:
    """Check that an entry point refuses a path in one line, and that files below `kept` stay unchanged."""
    before = digests(kept)
    with pytest.raises(Exception, match=answer) as caught:
        enter(path)
    error = caught.value
    # errors that the worker and Hydra print in one line; others have a traceback
    assert isinstance(error, (ValueError, OSError)) or type(error).__module__.startswith("ssl_lightning")
    assert len(str(error)) < 1500
    assert digests(kept) == before
    assert not list(kept.parent.rglob("owned"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_RUNS | OF_A_RESUME)
def test_resume(name: str, copy: Path) -> None:
    spoil, answer = (OF_RUNS | OF_A_RESUME)[name]
    spoil(copy / LAST)
    refused(entrance.resume, copy, TORN.get(name, answer), copy)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_RUNS)
def test_evaluate_run(name: str, copy: Path) -> None:
    spoil, answer = OF_RUNS[name]
    spoil(copy / LAST)
    refused(entrance.evaluate_run, copy, answer, copy)


@pytest.mark.slow
@pytest.mark.parametrize("enter", [entrance.init_from, entrance.evaluate_weights])
@pytest.mark.parametrize("name", FILES | WEIGHTS)
def test_weights_from_a_checkpoint(
    name: str, enter: Callable[[Path], None], made: Path, tmp_path: Path
) -> None:
    spoil, answer = (FILES | WEIGHTS)[name]
    shutil.copy(made / LAST, tmp_path / "their.ckpt")
    spoil(tmp_path / "their.ckpt")
    refused(enter, tmp_path / "their.ckpt", answer, tmp_path)


@pytest.mark.slow
def test_the_same_run_is_accepted_by_every_entry_point(copy: Path) -> None:
    """Show that the tables refuse only the change of each case."""
    entrance.load_backbone(copy)
    entrance.init_from(copy / LAST)
    entrance.evaluate_weights(copy)
    entrance.evaluate_run(copy)
    before = json.loads((copy / "results.json").read_text())
    entrance.resume(copy)
    after = json.loads((copy / "results.json").read_text())
    assert (before["run"]["epochs"], after["run"]["epochs"]) == (1, 2)


# --- exported backbones: backbone.safetensors and backbone.json ---


def header(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """Change the header of a safetensors file, and keep its data."""

    def spoil(path: Path) -> None:
        whole = path.read_bytes()
        (length,) = struct.unpack("<Q", whole[:8])
        content = json.loads(whole[8 : 8 + length])
        content = change(content) or content
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])

    return spoil


def of_first(**fields: Any) -> Spoil:
    return header(lambda content: content[min(content.keys() - {"__metadata__"})].update(fields))


def backbone(change: Callable[[dict[str, torch.Tensor]], Any]) -> Spoil:
    def spoil(path: Path) -> None:
        weights = load_file(path)
        path.unlink()
        change(weights)
        save_file(weights, path)

    return spoil


def huge_and_consistent(path: Path) -> None:
    """Write a header for half a terabyte into a sparse file of this size."""
    text = json.dumps({"w": {"dtype": "U8", "shape": [1 << 35], "data_offsets": [0, 1 << 35]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    with open(path, "r+b") as file:
        file.truncate(8 + len(text) + (1 << 35))


def value_of_first(value: float) -> Spoil:
    return backbone(lambda weights: weights[first_weight(weights)].view(-1)[:1].fill_(value))


NO_SAFETENSORS = "backbone.safetensors is torn or not a safetensors file"
EXPORT: dict[str, tuple[Spoil, str]] = {
    "cut in its header": (cut(0.1), NO_SAFETENSORS),
    "cut in its weights": (cut(0.9), NO_SAFETENSORS),
    "cut by a byte": (cut(-1), NO_SAFETENSORS),
    "no bytes": (put(b""), NO_SAFETENSORS),
    "text": (put(b"these are no weights, though more than 8 bytes\n"), NO_SAFETENSORS),
    "a zip": (other_zip, NO_SAFETENSORS),
    "a folder": (folder, "cannot be read|holds neither"),
    "a pipe": (pipe, "plain file"),
    "a link in a circle": (circle, "Too many levels of symbolic links"),
    "a terabyte": (absurd, "bytes; allowed are at most"),
    "a header of 2**63 bytes": (put(struct.pack("<Q", 1 << 63) + b"{}"), NO_SAFETENSORS),
    "a header longer than the file": (put(struct.pack("<Q", 4000) + b"{}"), NO_SAFETENSORS),
    "a header nested deeply": (header(lambda _: b"[" * 100_000), NO_SAFETENSORS),
    "weights beyond the file": (of_first(data_offsets=[0, 1 << 50]), NO_SAFETENSORS),
    "a shape larger than its bytes": (of_first(shape=[1 << 60, 4]), NO_SAFETENSORS),
    "a shape that overflows": (of_first(shape=[1 << 40, 1 << 40]), NO_SAFETENSORS),
    "an unknown type": (of_first(dtype="F4096"), NO_SAFETENSORS),
    "weights that are not ours, of 32 GB": (huge_and_consistent, "missing.*1 unexpected: w|unable to mmap"),
    "a NaN": (value_of_first(float("nan")), "1 not finite: stages.0.0.0.weight"),
    "an infinite weight": (value_of_first(float("inf")), "1 not finite: stages.0.0.0.weight"),
    "a missing weight": (backbone(drop_first), "1 missing: stages.0.0.0.weight"),
    "another weight": (backbone(lambda w: w.update({"x": torch.zeros(1)})), "1 unexpected: x"),
    "whole numbers": (
        backbone(lambda w: w.update({first_weight(w): w[first_weight(w)].int()})),
        "of another kind: stages.0.0.0.weight int32 for float32",
    ),
    "other widths": (
        backbone(lambda w: w.update({first_weight(w): torch.zeros(8, 3, 3, 3)})),
        r"of another shape: stages.0.0.0.weight \(8, 3, 3, 3\) for \(4, 3, 3, 3\)",
    ),
}


def says(**fields: Any) -> Spoil:
    """Change fields of the backbone in backbone.json."""

    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        content["backbone"].update(fields)
        path.write_text(json.dumps(content))

    return spoil


def top(**fields: Any) -> Spoil:
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def timm(**options: Any) -> Spoil:
    target = "ssl_lightning.networks.timm_backbone.create_timm"
    return top(backbone={"_target_": target, "model_name": "resnet18", "in_channels": 3, **options})


BESIDE = r"backbone.json is needed beside backbone.safetensors and cannot be read: "
DESCRIPTION: dict[str, tuple[Spoil, str]] = {
    "absent": (Path.unlink, BESIDE),
    "no JSON": (put(b"{'backbone': 1}"), BESIDE + "broken: Expecting"),
    "cut": (cut(0.5), BESIDE + "broken: "),
    "not UTF-8": (put(b'{"schema": 1, "a": "\xff"}'), BESIDE + "broken: 'utf-8'"),
    "a list": (put(b"[]"), BESIDE + "foreign"),
    "nested deeply": (put(b"[" * 500_000), BESIDE + "broken: it is nested too deeply"),
    "NaN": (put(b'{"schema": NaN}'), BESIDE + "broken: NaN is not a JSON number"),
    "of 16 MB": (put(b" " * (1 << 24)), BESIDE + "broken: it has 16,777,216 bytes"),
    "a pipe": (pipe, BESIDE + "broken: not a plain file"),
    "a link in a circle": (circle, BESIDE + ".*Too many levels of symbolic links"),
    "a newer version": (top(schema=2), BESIDE + "made by a newer ssl-lightning: its schema is 2"),
    "no version": (top(schema=None), BESIDE + "foreign: it has no schema number"),
    "no backbone": (top(backbone=[]), BESIDE),
    "a class of torch": (
        says(_target_="torch.nn.Conv2d"), "'torch.nn.Conv2d'; only backbones of ssl_lightning"
    ),
    "a function of the system": (says(_target_="os.system"), "'os.system'; only backbones of ssl_lightning"),
    "an import of a backbone module": (
        says(_target_="ssl_lightning.networks.timm_backbone.get_close_matches"), "only backbones of",
    ),
    "a target that is not text": (says(_target_=["os.system"]), "only backbones of ssl_lightning"),
    "widths in words": (says(widths="many"), "backbone.widths is 'many'; allowed is a list"),
    "widths of other backbones": (says(widths=[8, 8, 8]), r"of another shape: stages.0.0.0.weight \(4,"),
    "negative widths": (says(widths=[-4, 4, 4]), "cannot be built"),
    "widths that are an object": (says(widths={"_target_": "os.system"}), "widths is .*allowed is a list"),
    "an unknown key": (says(depth=3), "backbone.depth is not a key of backbone"),
    "weights by timm from a file": (timm(pretrained_cfg={"file": "/x.pth"}), "_cfg .*init_from="),
    "weights by timm from an address": (timm(pretrained_cfg={"url": "http://x"}), "_cfg .*init_from="),
    "a checkpoint of timm": (timm(checkpoint_path="/x.pth"), "checkpoint_path .*init_from="),
    "a model of the hub": (timm(model_name="hf-hub:evil/model"), "which timm does not have"),
    "a model of a folder": (timm(model_name="local-dir:/tmp/evil"), "which timm does not have"),
    "a model behind a tag": (timm(model_name="resnet18.hf-hub:evil/model"), "which timm does not have"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORT)
def test_exported_weights(name: str, copy: Path) -> None:
    spoil, answer = EXPORT[name]
    spoil(copy / "backbone.safetensors")
    refused(entrance.load_backbone, copy / "backbone.safetensors", answer, copy)


@pytest.mark.slow
@pytest.mark.parametrize("enter", [entrance.init_from, entrance.evaluate_weights])
@pytest.mark.parametrize("name", EXPORT)
def test_exported_weights_given_as_a_file(name: str, enter: Callable[[Path], None], copy: Path) -> None:
    spoil, answer = EXPORT[name]
    spoil(copy / "backbone.safetensors")
    refused(enter, copy / "backbone.safetensors", answer + "|holds neither", copy)


@pytest.mark.slow
@pytest.mark.parametrize("name", DESCRIPTION)
def test_descriptions_of_exported_backbones(name: str, copy: Path) -> None:
    spoil, answer = DESCRIPTION[name]
    spoil(copy / "backbone.json")
    refused(entrance.load_backbone, copy, answer, copy)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train.py resume={}", "evaluate.py run={}"])
def test_the_line_reaches_the_terminal_without_a_traceback(command: str, copy: Path) -> None:
    set_to(lambda w: w.repeat(2, 1, 1, 1))(copy / LAST)
    before = digests(copy)
    script, argument = command.format(copy).split(" ")
    done = subprocess.run(
        [sys.executable, str(ROOT / script), argument],
        capture_output=True, text=True, check=False, cwd=copy.parent, env=os.environ, timeout=120,
    )  # fmt: skip
    assert done.returncode != 0
    assert "is of another task or backbone: 1 of another shape: backbone.stages.0.0.0.weight" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    after = digests(copy)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() <= {".lock", "evaluation.yaml"}
