"""Compiled networks, and checkpoints that a run starts from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.data.fake import Fake
from ssl_lightning.networks.convnet import ConvNet
from ssl_lightning.networks.own_statistics import OwnStatistics
from ssl_lightning.run import build
from ssl_lightning.run.build import (
    COMPILED_FROM,
    OWN,
    PROBED,
    RESUMED,
    build_task,
    check_complete,
    use_compiler,
)
from ssl_lightning.run.parts import build_parts
from tests._composed import composed
from tests.test_train import SMALL, results_of, train

FINE: dict[str, Any] = {"device": torch.device("cuda"), "sharded": False, "batches": COMPILED_FROM}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rotation", "inpainting"])  # one network; two with an optimizer each
def test_compiled_steps_equal_plain_steps(tmp_path: Path, task: str) -> None:
    few = [*SMALL, f"task={task}", "optimizer=sgd", "optimizer.lr=0.01", "trainer.precision=32-true"]
    states, probes = [], []
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        train(tmp_path, *few, f"compile={compiled}", f"name={name}")
        folder = tmp_path / f"{task}/fake/convnet" / name
        states.append(load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"])
        probes.append([r.value for r in results_of(folder).probes if not r.trained])
    plain, compiled_state = states
    assert plain.keys() == compiled_state.keys()  # checkpoints are equal with and without compile
    for name, value in plain.items():
        torch.testing.assert_close(compiled_state[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert probes[0] == probes[1]  # the probes are never compiled


def test_a_missing_compiler_is_reported_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no C++ compiler was found\nsecond line")

    monkeypatch.setattr(torch, "compile", lambda _: fail)
    with pytest.raises(
        ValueError, match=r"compile is true, .* here \(no C\+\+ compiler was found\); leave it false"
    ):
        use_compiler(True, **FINE | {"device": torch.device("cpu")})
    assert not use_compiler("auto", **FINE)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"device": torch.device("cpu")}, "it does not pay on cpu"),
        ({"sharded": True}, "trainer.strategy=fsdp does not support it"),
        ({"batches": COMPILED_FROM - 1}, "it pays from 20,000 batches, and this run has 19,999"),
    ],
)
def test_auto_compiles_long_runs_on_a_gpu(
    given: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build, "compiler_error", lambda device: "")
    assert use_compiler("auto", **FINE)
    assert not use_compiler("auto", **FINE | given)
    assert caplog.messages == ["compile=auto is on for 20,000 batches", f"compile=auto is off: {message}"]
    assert not use_compiler(False, **FINE)
    if "sharded" in given:
        with pytest.raises(ValueError, match=f"compile is true, but {message}; leave it false"):
            use_compiler(True, **FINE | given)
    else:
        assert use_compiler(True, **FINE | given)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("length", "batches"),
    [
        (["trainer.max_epochs=3"], 3 * 8),
        (["trainer.max_epochs=3", "trainer.limit_train_batches=0.5"], 3 * 4),
        (["trainer.max_epochs=3", "trainer.limit_train_batches=99"], 3 * 8),
        (["trainer.max_epochs=3", "trainer.max_steps=5"], 5),
        (["trainer.max_epochs=-1", "trainer.max_steps=50", "trainer.accumulate_grad_batches=4"], 200),
    ],
)
def test_a_run_decides_by_its_planned_batches(
    length: list[str], batches: int, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    few = ["data=fake", "data.num_train=144", "data.heldout=16", "data.batch_size=16", "probe=[]"]
    given = [*few, "trainer=cpu", "logger=[]", "callbacks=[]", "compile=auto", *length]
    parts = build_parts(composed(given, tmp_path), tmp_path)
    assert parts.data.pretrain_batches == 8
    assert not parts.compiled
    assert "compile=auto is off: it does not pay on cpu" in caplog.messages
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "ssl_lightning.run.parts.use_compiler", lambda wanted, **named: seen.update(named) or True
    )
    assert build_parts(composed(given, tmp_path), tmp_path).compiled
    assert seen == {"device": torch.device("cpu"), "sharded": False, "batches": batches}


def test_given_weights_set_the_statistics_of_all_inputs(tmp_path: Path) -> None:
    data = Fake(num_train=32, heldout=8, num_test=8, image_size=16, batch_size=8)
    data.setup()
    given = ConvNet(widths=(8, 8), strides=(2, 2))
    given(torch.rand(4, 3, 16, 16))  # changes the statistics
    torch.save(given.state_dict(), tmp_path / "given.pt")
    few = ["data=fake", "backbone.widths=[8,8]", "backbone.strides=[2,2]", f"init_from={tmp_path}/given.pt"]
    cfg = composed([*few, "task=combined", "task.parts=[rotation,pirl]"], tmp_path)
    task, _ = build_task(cfg, data)
    found = [part for part in task.modules() if isinstance(part, OwnStatistics)]
    assert len(found) == 2  # of the part, and of its tiles
    for part in found:
        for own, expected in zip(part.buffers(), given.buffers(), strict=True):
            assert torch.equal(own, expected)


def checkpoint(**changes: Any) -> dict[str, Any]:
    content = {key: kind() for key, kind in RESUMED.items()}
    content["callbacks"] = {name: {"some": 1} for name in OWN}
    return content | changes


@pytest.mark.parametrize("needed", [PROBED, RESUMED])
def test_a_complete_checkpoint_is_accepted(needed: dict[str, type]) -> None:
    check_complete(checkpoint(), "last.ckpt", needed)


@pytest.mark.parametrize(
    ("content", "needed", "message"),
    [
        ({}, PROBED, "state_dict is missing"),
        (checkpoint(state_dict=[]), PROBED, "state_dict is of type list"),
        ({"state_dict": {}}, RESUMED, "epoch is missing"),
        (checkpoint(epoch=True), RESUMED, "epoch is of type bool"),
        (checkpoint(callbacks={}), RESUMED, f"the state of {OWN[0]} is of type NoneType"),
    ],
)
def test_an_incomplete_checkpoint_is_refused(
    content: dict[str, Any], needed: dict[str, type], message: str
) -> None:
    with pytest.raises(ValueError, match=f"last.ckpt is not a checkpoint of a run: {message}.*init_from="):
        check_complete(content, "last.ckpt", needed)
