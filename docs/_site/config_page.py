"""Page of config keys, made from `conf/`."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from ssl_lightning.config.keys import KEYS  # noqa: E402

Lookup = Callable[[str, str], str]  # `_target_` and keyword -> annotation of the keyword; empty if unknown
GROUPS = ["task", "data", "backbone", "probe", "trainer", "optimizer", "scheduler", "callbacks", "logger"]
COMMENT = re.compile(r"\s+#\s+(.*)$")
PLAIN = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}
KINDS = {key.name: key.kind for key in KEYS if key.kind is not None}
INTRODUCTION = """# Config keys

Each command has the keys of its own file and of the groups that it composes:
`python train.py task=jigsaw task.grid=2` chooses an option and sets one of its keys. Types come from the
constructors; a dash stands for an unknown one.
`???` marks a key that you must give, and `${...}` takes another key's value.
"""


def page(annotation_of: Lookup) -> str:
    """Return the page: one table for each command and for each option of the groups."""
    parts = [INTRODUCTION, "## Commands\n"]
    for path in sorted((ROOT / "conf").glob("*.yaml")):
        parts += section(path, f"{path.stem}.py", "", annotation_of)
    for group in GROUPS:
        parts.append(f"## {group}\n")
        for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
            prefix = f"{group}.{path.stem}." if group in ("probe", "callbacks", "logger") else f"{group}."
            parts += section(path, f"{group}={path.stem}", prefix, annotation_of)
    return "\n".join(parts)


def section(path: Path, title: str, prefix: str, annotation_of: Lookup) -> list[str]:
    """Return the lines of a file: its title, the comment that it begins with, and its keys."""
    text = path.read_text()
    lines = [f"### {title}\n", about(text) + "\n"]
    rows = []
    for key, value, default, comment, annotation in keys(text, annotation_of):
        name = prefix + key
        rows.append(f"| `{name}` | {cell(type_of(name, value, annotation))} | {cell(default)} | {comment} |")
    if rows:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    return lines


def about(text: str) -> str:
    """Return the comment that a file begins with, without its package line."""
    comments = list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    return escaped(" ".join(line.removeprefix("# ") for line in comments if not line.startswith("# @")))


def escaped(text: str) -> str:
    """Return text whose angle brackets are no HTML; in code, between backticks, they are none anyway."""
    parts = text.split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def keys(text: str, annotation_of: Lookup) -> Iterator[tuple[str, yaml.Node, str, str, str]]:
    """Yield dotted key, value node, default, comment and annotation of each leaf of a file."""
    lines = text.splitlines()

    def leaves(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node, str, str, str]]:
        target = next((value.value for key, value in node.value if key.value == "_target_"), "")
        for key, value in node.value:
            name = prefix + key.value
            if key.value.startswith("_") or (not prefix and key.value in ("defaults", "hydra")):
                continue
            if isinstance(value, yaml.MappingNode) and value.value:
                yield from leaves(value, f"{name}.")
            else:
                end = value.end_mark
                found = COMMENT.match(lines[end.line][end.column :]) if end.column else None
                default = text[value.start_mark.index : end.index].strip()
                if "\n" in default:  # a list over several lines
                    default = yaml.safe_dump(
                        yaml.safe_load(yaml.serialize(value)), default_flow_style=True
                    ).strip()
                comment = escaped(found[1].replace("|", "\\|")) if found else ""
                yield name, value, default, comment, annotation_of(target, key.value)

    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from leaves(root, "")


def type_of(name: str, value: yaml.Node, annotation: str) -> str:
    """Return the type of a key: its row in `config/keys.py`, its annotation, or the type of its default."""
    if name in KINDS:
        kind = KINDS[name]
        return getattr(kind, "__name__", "") if isinstance(kind, type) else str(kind).replace("typing.", "")
    if annotation:
        return annotation
    plain = yaml.safe_load(yaml.serialize(value))
    return PLAIN.get(type(plain), "") if "${" not in str(plain) else ""


def cell(text: str) -> str:
    """Return text as code in a cell of a table; a dash if it is empty. Code needs no escapes there."""
    return f"`{text}`" if text else "-"
