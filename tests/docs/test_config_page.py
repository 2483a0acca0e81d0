"""Tests of the page of config keys: a small config by value, and the real ones against the constructors."""

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
SMALL = """# @package probe.small
# A small probe
# in two lines
defaults:
  - other
_target_: ssl_lightning.small.Small
ks: [1, 5] # neighbours | a list
share: 0.5 # at most 1, as <root>/`<name>`
name: null
title: "a # b" # in quotes
path: ${oc.env:HOME} # a folder
flag: true
empty: {} # filled by the group
inner: # a part
  _target_: ssl_lightning.small.Inner
  depth: 3 # of the tree
last:
  - 1
  - 2
after: ??? # must be given
"""
ROWS = [
    ("probe.small.ks", "list", "[1, 5]", "neighbours \\| a list"),
    ("probe.small.share", "float", "0.5", "at most 1, as &lt;root>/`<name>`"),
    ("probe.small.name", "str | None", "null", ""),
    ("probe.small.title", "str", '"a # b"', "in quotes"),
    ("probe.small.path", None, "${oc.env:HOME}", "a folder"),
    ("probe.small.flag", "bool", "true", ""),
    ("probe.small.empty", "dict", "{}", "filled by the group"),
    ("probe.small.inner.depth", "int", "3", "of the tree"),
    ("probe.small.last", "list", "[1, 2]", ""),
    ("probe.small.after", "str", "???", "must be given"),
]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("config_page", ROOT / "docs/_site/config_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


config_page = load()


def known(target: str, key: str) -> str:
    """Annotations of the small config."""
    return {("ssl_lightning.small.Small", "name"): "str | None"}.get((target, key), "")


def test_a_small_config(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    title, text, *table = config_page.section(path, "probe=small", "probe.small.", known)
    assert (title, text) == ("### probe=small\n", "A small probe in two lines\n")
    rows = [
        f"| `{key}` | {f'`{kind}`' if kind else '-'} | `{default}` | {comment} |"
        for key, kind, default, comment in ROWS
    ]
    assert table == ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]


def parameters(target: str) -> dict[str, str]:
    """Annotations of a constructor and of its bases, by Python's own means."""
    found = get_object(target)
    places = [each.__init__ for each in found.__mro__] if inspect.isclass(found) else [found]
    annotations: dict[str, str] = {}
    for place in reversed(places):
        annotations |= {k: v for k, v in getattr(place, "__annotations__", {}).items() if isinstance(v, str)}
    return annotations


@pytest.mark.parametrize("path", sorted((ROOT / "conf/task").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_keys_of_a_task_are_complete(path: Path) -> None:
    def lookup(target: str, key: str) -> str:
        return parameters(target).get(key, "")

    lines = config_page.section(path, f"task={path.stem}", "task.", lookup)
    rows = {m[1]: m[2] for line in lines if (m := re.match(r"\| `task\.([\w.]+)` \| `?([^`]*)`? \|", line))}
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    keys = {str(key) for key in content if not str(key).startswith("_") and key != "defaults"}
    assert {key.partition(".")[0] for key in rows} == keys
    annotations = parameters(content["_target_"])
    for key in keys & rows.keys():
        assert rows[key] == annotations[key], key


def test_the_page_has_every_option() -> None:
    page = config_page.page(lambda target, key: "")
    for group in config_page.GROUPS:
        for path in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"### {group}={path.stem}\n" in page
    assert page.count("| key | type | default | meaning |") > 30
    assert "| `probe.knn.ks` |" in page
