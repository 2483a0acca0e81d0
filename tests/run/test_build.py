"""Compiled networks, and checkpoints that a run starts from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.run.build import OWN, PROBED, RESUMED, check_compiler, check_complete
from tests.test_train import SMALL, results_of, train


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
        check_compiler(torch.device("cpu"))


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
