"""Checkpoint files are complete or absent."""

from pathlib import Path

import pytest
import torch

from ssl_lightning.artifacts.checkpoints import (
    AtomicCheckpointIO,
    atomic_file,
    is_complete,
    load_checkpoint,
    resume_point,
)


def test_every_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint({"w": torch.arange(1000.0), "n": 3}, path)
    whole = path.read_bytes()
    assert is_complete(path)
    assert torch.equal(load_checkpoint(path)["w"], torch.arange(1000.0))
    middle = len(whole) // 2  # within the numbers
    damaged = [whole[:cut] for cut in range(0, len(whole), 97)]
    damaged.append(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    for content in damaged:
        path.write_bytes(content)
        assert not is_complete(path)
        with pytest.raises(ValueError, match="torn"):
            load_checkpoint(path)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_text("old")

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    assert resume_point(tmp_path) is None
    io, folder = AtomicCheckpointIO(), tmp_path / "checkpoints"
    io.save_checkpoint({"n": 1}, folder / "previous.ckpt")
    assert resume_point(tmp_path) == folder / "previous.ckpt"
    io.save_checkpoint({"n": 2}, folder / "last.ckpt")
    assert resume_point(tmp_path) == folder / "last.ckpt"
    (folder / "last.ckpt").write_bytes(b"torn")
    assert resume_point(tmp_path) == folder / "previous.ckpt"
    (folder / "previous.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="torn; start a new run"):
        resume_point(tmp_path)
