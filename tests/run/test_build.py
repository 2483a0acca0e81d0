"""What is built beside the parts themselves: compiled networks."""

from pathlib import Path

import pytest
import torch

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.run.build import check_compiler
from tests.test_train import SMALL, results_of, train


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rotation", "inpainting"])  # one network; two with an optimizer each
def test_compiled_steps_are_those_that_are_not_compiled(tmp_path: Path, task: str) -> None:
    few = [*SMALL, f"task={task}", "optimizer=sgd", "optimizer.lr=0.01", "trainer.precision=32-true"]
    states, probes = [], []
    for name, compiled in (("plain", "false"), ("compiled", "true")):
        train(tmp_path, *few, f"compile={compiled}", f"name={name}")
        folder = tmp_path / f"{task}/fake/convnet" / name
        states.append(load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"])
        probes.append([r["value"] for r in results_of(folder)["probes"] if not r["trained"]])
    plain, compiled_state = states
    assert plain.keys() == compiled_state.keys()  # a checkpoint does not tell
    for name, value in plain.items():
        torch.testing.assert_close(compiled_state[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert probes[0] == probes[1]  # the probes are never compiled


def test_without_a_compiler_it_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no C++ compiler was found\nsecond line")

    monkeypatch.setattr(torch, "compile", lambda _: fail)
    with pytest.raises(
        ValueError, match=r"compile is true, .* here \(no C\+\+ compiler was found\); leave it false"
    ):
        check_compiler(torch.device("cpu"))
