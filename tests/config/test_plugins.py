"""Plugin packages: their configs compose, and their classes are trusted in stored configs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_lightning.config.composition import compose
from ssl_lightning.config.paths import conf_dir
from ssl_lightning.config.plugins import conf_dirs, plugin_dirs
from ssl_lightning.config.trust import check_targets
from ssl_lightning.core.errors import RunError
from tests._plugin import write_entry_point, write_plugin

SOURCE = Path("config.yaml")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin_dirs.cache_clear()
    yield tmp_path
    plugin_dirs.cache_clear()


def test_its_options_compose_beside_the_own_ones(packages: Path) -> None:
    write_plugin(packages)
    assert conf_dirs() == [conf_dir(), packages / "mytasks" / "conf"]
    cfg = compose("train", ["task=flip", "task.chance=0.25", "data=fake"])
    assert cfg.task == {"_target_": "mytasks.flip.Flip", "chance": 0.25, "lr_reference_batch": None}
    assert cfg.choices == {"task": "flip", "data": "fake", "backbone": "convnet"}
    assert compose("train", ["task=rotation"]).task._target_.startswith("ssl_lightning.")
    assert "mytasks" not in sys.modules  # composition imports no plugin


def test_an_own_option_comes_before_one_of_a_plugin(packages: Path) -> None:
    write_plugin(packages)
    (packages / "mytasks/conf/task/rotation.yaml").write_text("_target_: mytasks.flip.Flip\n")
    assert compose("train", ["task=rotation"]).task._target_ == "ssl_lightning.tasks.rotation.Rotation"


def test_only_the_targets_in_its_configs_are_trusted(packages: Path) -> None:
    flip = {"task": {"_target_": "mytasks.flip.Flip"}}
    with pytest.raises(ValueError, match="would run 'mytasks"):
        check_targets(flip, SOURCE)
    write_plugin(packages)
    plugin_dirs.cache_clear()
    check_targets(flip, SOURCE)
    for wrong in ({"data": flip["task"]}, {"task": {"_target_": "mytasks.flip.torch.load"}}):
        with pytest.raises(ValueError, match="is not in conf/ for that group"):
            check_targets(wrong, SOURCE)


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("gone", "'gone' of the group .* is not an installed package"),
        ("bare", "'bare' of the group .* has no folder conf in "),
    ],
)
def test_a_broken_plugin_is_named(packages: Path, package: str, message: str) -> None:
    if package == "bare":
        (packages / package).mkdir()
        (packages / package / "__init__.py").touch()
    write_entry_point(packages, package)
    with pytest.raises(RunError, match=message):
        compose("train")
