"""Untrusted run folders run only code of the project."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ssl_lightning.config.paths import conf_dir
from ssl_lightning.config.trust import TRUST, check_targets

ROOT = Path(__file__).parents[2]
SOURCE = Path("config.yaml")
EVIL = {
    "a function of the system": {"data": {"_target_": "os.system", "command": "touch owned"}},
    "torch.hub": {"task": {"_target_": "torch.hub.load"}},
    "an alias inside the package": {"task": {"_target_": "ssl_lightning.launch.ranks.subprocess.run"}},
    "a function of the package that writes": {
        "task": {"_target_": "ssl_lightning.core.atomic_files.write_json"}
    },
    "nested in a list": {"callbacks": {"x": {"_target_": "torch.optim.SGD", "a": [{"_target_": "eval"}]}}},
    "no text": {"data": {"_target_": ["os.system"]}},
    "a path that begins alike": {"data": {"_target_": "torch.optim.SGD.step.__globals__"}},
    "in a group that conf/ does not have": {"extra": {"_target_": "torch.optim.SGD"}},
}


@pytest.mark.parametrize("name", EVIL)
def test_unknown_code_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not in conf/"):
        check_targets(EVIL[name], SOURCE)


def test_targets_of_the_project_are_allowed() -> None:
    for path in conf_dir().glob("*/*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(path))
        whole = "@package _global_" in path.read_text()
        check_targets(content if whole else {path.parent.name: content}, path)


def test_a_package_of_the_user_can_be_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    mine: dict[str, Any] = {"task": {"_target_": "mine.tasks.Mine"}}
    with pytest.raises(ValueError, match=TRUST):
        check_targets(mine, SOURCE)
    monkeypatch.setenv(TRUST, "other, mine")
    check_targets(mine, SOURCE)
    with pytest.raises(ValueError, match="minecraft"):
        check_targets({"task": {"_target_": "minecraft.Task"}}, SOURCE)


@pytest.mark.parametrize("entry", ["train.py resume={}", "evaluate.py run={}"])
def test_both_commands_refuse_unknown_code_and_run_nothing(entry: str, tmp_path: Path) -> None:
    config = {"data": {"_target_": "pathlib.Path.write_text", "_args_": [str(tmp_path / "owned"), "x"]}}
    config |= {"task": {"_target_": "ssl_lightning.tasks.random.Random"}, "run_dir": ".", "overrides": []}
    config |= {key: {} for key in ("backbone", "optimizer", "scheduler", "trainer", "choices")}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "config.yaml")
    script, argument = entry.format(tmp_path).split(" ")
    done = subprocess.run(
        [sys.executable, str(ROOT / script), argument],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
    )
    assert done.returncode != 0
    assert "would run 'pathlib.Path.write_text' (data._target_)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "owned").exists()
