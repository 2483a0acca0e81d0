"""Generate the page of config keys from `conf/`, a hook of mkdocs."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import griffe
import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from ssl_lightning.config.keys import KEYS  # noqa: E402

PAGE = "config.md"
GROUPS = ["task", "data", "backbone", "probe", "trainer", "optimizer", "scheduler", "callbacks", "logger"]
COMMENT = re.compile(r"\s#\s+(.*)$")
PLAIN = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}
KINDS = {key.name: key.kind for key in KEYS if key.kind is not None}
INTRODUCTION = """# Config keys

Each command has the keys of its own file and of the groups that it composes:
`python train.py task=jigsaw task.grid=2` chooses an option and sets one of its keys. Types come from the
constructors; a dash stands for an unknown one.
`???` marks a key that you must give, and `${...}` takes another key's value.
"""


def on_files(files: Files, config: object) -> Files:
    files.append(File.generated(config, PAGE, content=page()))
    return files


def page() -> str:
    """Return the page: one table for each command and for each option of the groups."""
    package = griffe.load("ssl_lightning", search_paths=[str(ROOT)])
    parts = [INTRODUCTION, "## Commands\n"]
    for path in sorted((ROOT / "conf").glob("*.yaml")):
        parts += section(path, f"{path.stem}.py", "", package)
    for group in GROUPS:
        parts.append(f"## {group}\n")
        for path in sorted((ROOT / "conf" / group).glob("*.yaml")):
            prefix = f"{group}.{path.stem}." if group in ("probe", "callbacks", "logger") else f"{group}."
            parts += section(path, f"{group}={path.stem}", prefix, package)
    return "\n".join(parts)


def section(path: Path, title: str, prefix: str, package: griffe.Object) -> list[str]:
    """Return the lines of a file: its title, the comment that it begins with, and its keys."""
    text = path.read_text()
    lines = [f"### {title}\n", about(text) + "\n"]
    rows = []
    for key, value, default, comment, annotation in keys(text, package):
        name = prefix + key
        rows.append(f"| `{name}` | {cell(type_of(name, value, annotation))} | {cell(default)} | {comment} |")
    if rows:
        lines += ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    return lines


def about(text: str) -> str:
    """Return the comment that a file begins with, without its package line."""
    comments = list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))
    return " ".join(line.removeprefix("# ") for line in comments if not line.startswith("# @"))


def keys(text: str, package: griffe.Object) -> Iterator[tuple[str, yaml.Node, str, str, str]]:
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
                found = COMMENT.search(lines[value.end_mark.line] if value.end_mark.column else "")
                default = text[value.start_mark.index : value.end_mark.index].strip()
                comment = found[1].replace("|", "\\|") if found else ""
                yield name, value, default, comment, annotation_of(target, key.value, package)

    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from leaves(root, "")


def annotation_of(target: str, key: str, package: griffe.Object) -> str:
    """Return the annotation of a keyword of the constructor that a config names; empty if unknown."""
    if not target.startswith("ssl_lightning."):
        return ""
    found = package[target.removeprefix("ssl_lightning.")]
    for each in (found, *(found.mro() if found.is_class else ())):
        if key in each.parameters:
            return str(each.parameters[key].annotation or "")
    return ""


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
    """Return text as code in a cell of a table; a dash if it is empty."""
    escaped = text.replace("|", "\\|")
    return f"`{escaped}`" if text else "-"
