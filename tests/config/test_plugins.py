"""Plugin packages: their configs compose, and their classes are trusted in stored configs."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_lightning.config.composition import SINGLE, compose
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


TARGETS = {
    "probe": "ssl_lightning.probes.knn.KNNProbe",
    "callbacks": "pytorch_lightning.callbacks.Timer",
    "logger": "pytorch_lightning.loggers.CSVLogger",
}


@pytest.mark.parametrize("group", TARGETS)
@pytest.mark.parametrize("others", [[], ["own"]])
def test_a_file_of_a_list_needs_its_package_line(group: str, others: list[str], packages: Path) -> None:
    folder = write_plugin(packages) / "mytasks/conf" / group
    folder.mkdir()
    content = f"_target_: {TARGETS[group]}\n"
    (folder / "own.yaml").write_text(f"# @package {group}.own\n{content}")
    (folder / "ncm.yaml").write_text(f"# nearest class mean\n{content}")
    given = [f"{group}=[{','.join([*others, 'ncm'])}]"]
    line = f"# @package {group}.ncm"
    with pytest.raises(RunError, match=f"^error: {group}/ncm.yaml lacks its first line, {line}$"):
        compose("train", given)
    (folder / "ncm.yaml").write_text(f"{line}\n{content}")
    assert list(compose("train", given)[group]) == [*others, "ncm"]


@pytest.mark.parametrize("group", SINGLE)
def test_a_file_of_one_class_names_it(group: str, packages: Path) -> None:
    folder = write_plugin(packages) / "mytasks/conf" / group
    folder.mkdir(exist_ok=True)
    (folder / "own.yaml").write_text("speed: 3\n")
    message = f"^error: {group}/own.yaml lacks its class: _target_: <module>.<class>$"
    with pytest.raises(RunError, match=message):
        compose("train", [f"{group}=own"])


CHANGES = {
    "experiment": "seed: 3\n",
    "budget": "seed: 3\n",
    "common_backbone": "seed: 3\n",
    "benchmark": "benchmark:\n  name: own\n",
}


@pytest.mark.parametrize("group", CHANGES)
def test_a_file_of_any_keys_needs_its_package_line(group: str, packages: Path) -> None:
    folder = write_plugin(packages) / "mytasks/conf" / group
    folder.mkdir()
    (folder / "own.yaml").write_text(CHANGES[group])
    given = [f"+{group}=own" if group == "benchmark" else f"{group}=own"]
    message = f"^error: {group}/own.yaml lacks its first line, # @package _global_$"
    with pytest.raises(RunError, match=message):
        compose("train", given)
    (folder / "own.yaml").write_text("# @package _global_\n" + CHANGES[group])
    compose("train", given)
