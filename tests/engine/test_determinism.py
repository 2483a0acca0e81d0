"""Deterministic runs: switches in the rank, a clear error for other operations, and bit-equal runs."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ssl_lightning.artifacts.checkpoints import load_checkpoint
from ssl_lightning.artifacts.run_folder import REFUSED
from ssl_lightning.core.stop_signals import SIGNALS
from ssl_lightning.engine.determinism import NotDeterministicError, deterministic
from ssl_lightning.run import __main__ as rank
from ssl_lightning.run import execute
from tests._composed import composed
from tests._tasks import TASKS, on_a_vit

ROOT = Path(__file__).parents[2]
# and facts of the environment: the folder in the command, and whether the working tree is clean
TIMES = ("wall_s", "images_per_s", "probe_s", "peak_memory_gb", "ended", "command", "git")


def put(*unused: Any, **also: Any) -> None:
    """Call an operation without a deterministic implementation, on a CPU too."""
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


@pytest.fixture
def as_a_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Prepare a run folder whose worker only calls `put`, in this process."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    monkeypatch.setattr(execute, "run", put)
    monkeypatch.setattr(sys, "argv", ["worker", str(tmp_path)])
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield tmp_path
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_rank_is_deterministic_or_names_the_operation(as_a_rank: Path, wanted: bool) -> None:
    cfg = composed([f"deterministic={wanted}", "data=fake", "trainer=cpu"], as_a_rank)
    cfg.overrides = []
    OmegaConf.save(cfg, as_a_rank / "config.yaml")
    assert rank.main() == (REFUSED if wanted else 0)
    assert not torch.are_deterministic_algorithms_enabled()  # as before
    if wanted:
        message = (as_a_rank / "error.txt").read_text().partition("\n\n")[0]
        assert message == (
            "put_ has no deterministic implementation here, and deterministic is true; deterministic=false "
            "permits it, or choose a task, backbone or probe that does without"
        )


def test_all_switches_are_set_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with deterministic(False):
        put()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (False, True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError, match="another"), deterministic(True):
        raise RuntimeError("another error passes unchanged")
    with pytest.raises(NotDeterministicError, match=r"^put_ has no"), deterministic(True):
        put()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ValueError, match=r"CUBLAS_WORKSPACE_CONFIG is ':0:0'.*unset it"), deterministic(True):
        pass


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write JPEG files of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 8)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (6, 7, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels).resize((40, 36), Image.Resampling.BICUBIC)
                picture.save(folder / split / name / f"{number}.jpg")
    return folder


def whole_run(output: Path, pictures: Path, name: str, *overrides: str) -> dict[str, Any]:
    """Run to the end; return the content of the run folder without times."""
    given = [
        "deterministic=true", "data=folder", f"data.pretrain_dir={pictures}/train", "data.image_size=32",
        f"data.train_dir={pictures}/train", f"data.test_dir={pictures}/test", "data.batch_size=8",
        "data.num_workers=2", f"data.root={output}", "trainer=cpu", "trainer.max_epochs=2",
        "trainer.log_every_n_steps=2", "probe=[linear,knn]", "probe.knn.ks=[5]", "probe_untrained=true",
        "callbacks=[checkpoint,panel,collapse,online_knn]", "callbacks.collapse.images=16", "data.heldout=20",
        f"output_dir={output}", f"name={name}", *overrides,
    ]  # fmt: skip
    given += ["backbone.width=24" if on_a_vit(overrides) else "backbone.widths=[8,8,16]"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *given], env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=output, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = output.glob(f"*/folder/*/{name}")
    state = load_checkpoint(folder / "checkpoints/last.ckpt")
    results = json.loads((folder / "results.json").read_text())
    for key in TIMES:
        results["run"].pop(key)
    with open(folder / "metrics.csv", newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "train/images_per_s"} for row in csv.DictReader(file)]
    assert len(rows) > 8
    files = [folder / "backbone.safetensors", folder / "panel.png"]
    return {
        "results": results, "rows": rows,
        "files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in files],
        **{key: state[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")},
    }  # fmt: skip


def assert_equal(one: Any, other: Any, place: str = "") -> None:
    """Check that nested values are bit-equal."""
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one.nan_to_num(), other.nan_to_num()), place
    elif isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{place}/{number}")
    else:
        assert one == other, place


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        *TASKS.values(),
        ["task=rotation", "trainer.devices=2"],
        ["task=simclr", "trainer.devices=2"],
        ["task=inpainting", "trainer.devices=2", "trainer.precision=32-true"],
    ],
    ids=lambda overrides: "-".join(o.partition("=")[2] for o in overrides),
)
def test_two_runs_end_bit_equal(tmp_path: Path, pictures: Path, overrides: list[str]) -> None:
    first, second = (whole_run(tmp_path, pictures, name, *overrides) for name in ("one", "two"))
    assert_equal(first, second)
    if overrides == ["task=rotation"]:  # the comparison detects differences
        other = whole_run(tmp_path, pictures, "other", "seed=1", *overrides)
        with pytest.raises(AssertionError):
            assert_equal(first["state_dict"], other["state_dict"])
