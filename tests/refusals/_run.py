"""Tiny run for the tests of refusals, and the entry points that read its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

import ssl_lightning
from ssl_lightning.config.paths import conf_dir
from ssl_lightning.launch.resume import check_checkpoint, resumed_config
from ssl_lightning.launch.train import save_config
from ssl_lightning.run.evaluate import evaluate
from ssl_lightning.run.execute import run
from ssl_lightning.run.parts import build_parts
from tests._composed import composed
from tests._tasks import on_a_vit

# one epoch, and `resume` adds one; tests/test_user_loop.py resumes with every callback
TINY = [
    "data=fake", "data.num_train=32", "data.num_test=16", "data.heldout=16", "data.batch_size=8",
    "data.image_size=16", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "logger=[]",
    "callbacks=[checkpoint]", "probe=[knn]", "probe.knn.ks=[5]",
]  # fmt: skip


def tiny(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a tiny run, with a small backbone."""
    return [*TINY, "backbone.width=24" if on_a_vit(overrides) else "backbone.widths=[4,4,4]", *overrides]


def make_run(folder: Path, *overrides: str) -> Path:
    """Train for one epoch in this process; return the run folder."""
    given = tiny(overrides)
    cfg = composed(given, folder)
    OmegaConf.update(cfg, "overrides", given, force_add=True)
    save_config(cfg, folder)
    run(cfg, folder)
    return folder


def composed_with(folder: Path, *overrides: str) -> Any:
    given = tiny(overrides)
    cfg = composed(given, folder)
    OmegaConf.update(cfg, "overrides", given, force_add=True)
    return cfg


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(begin(path)).hexdigest() + f" {path.stat().st_size}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def begin(path: Path) -> bytes:
    """Return the content of a file, or the beginning of a huge one."""
    with open(path, "rb") as file:
        return file.read(1 << 24)


def resume(folder: Path) -> None:
    """Run the launcher part of `train.py resume=` and then the worker, in this process."""
    cfg = resumed_config(folder, ["trainer.max_epochs=2"], conf_dir())
    check_checkpoint(folder, cfg)
    run(cfg, folder)


def init_from(path: Path) -> None:
    """Build a new run with `init_from=`, without training."""
    build_parts(composed_with(path.parent / "new", f"init_from='{path}'"), path.parent / "new")


def evaluate_run(folder: Path) -> None:
    """Do the work of `evaluate.py run=`."""
    cfg = resumed_config(folder, [], conf_dir())
    cfg.update(init_from=None, checkpoint="last", callbacks={}, logger={})
    evaluate(cfg, folder)


def evaluate_weights(path: Path) -> None:
    """Build the untrained task of `evaluate.py weights=` around given weights."""
    folder = path.parent / "evaluated"
    build_parts(composed_with(folder, "task=random", "callbacks=[]", f"init_from='{path}'"), folder)


def load_backbone(path: Path) -> None:
    ssl_lightning.load_backbone(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def circle(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def absurd(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(1 << 40)  # a sparse terabyte


class Attack:
    """Object whose pickle creates a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mknod, (str(self.marker),)


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the content of a checkpoint in place, or replace it by the result of `change`."""
    content = torch.load(path, weights_only=True)
    changed = change(content)
    torch.save(content if changed is None else changed, path)


def first_weight(state: Mapping[str, torch.Tensor]) -> str:
    return next(name for name, value in state.items() if value.ndim == 4)
