"""Help texts of the commands, made from the comments of `conf/`."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from ssl_lightning.config.keys import COMPARE_SETS
from ssl_lightning.config.paths import conf_dir
from ssl_lightning.config.plugins import conf_dirs
from ssl_lightning.core.entry import command_line

FLAGS = ("-h", "--help")
WIDTH, COLUMN = 100, 28  # of the text; where descriptions begin
SCRIPT = re.compile(r"python (\w+)\.py")
KEY = re.compile(r'^( *)"?(\w+)"?:(?: ([^#]*?))?(?:\s+# (.*))?$')
HIDDEN = ("defaults", "hydra")  # sections without keys of the user
FILLED = ("${hydra", "{}")  # values that Hydra fills in


def help_text(name: str) -> str:
    """Return the help of a command: its description, its groups with their options, and its keys.

    Args:
        name: Name of the command and of its file in `conf/`.
    """
    text = (conf_dir() / f"{name}.yaml").read_text()
    chosen = defaults(text)
    train = "train" in chosen  # compare and audit take the groups and keys of train too
    if train:
        chosen = defaults((conf_dir() / "train.yaml").read_text())
    refused = COMPARE_SETS if name == "compare" else ()
    groups = {group: option for group, option in chosen.items() if options(group) and group not in refused}
    words = "KEY=VALUE GROUP=OPTION ..." if groups else "KEY=VALUE ..."
    lines = [f"usage: {command_line(name)} {words}", "", *indented(described(text)), ""]
    if groups:
        lines.append("Groups, with the default option first:")
        for group, option in groups.items():
            lines += help_lines(group, listed(group, option))
        lines.append("")
    rows = list(keys(text))
    must = " (??? must be given)" if any(value == "???" for _, value, _ in rows) else ""
    lines.append(f"Keys, with their defaults{must}:")
    for key, value, comment in rows:
        lines += help_lines(f"{key}={value}", comment)
    last = f"`{command_line('train')} --help` lists the keys of each run. " if train else ""
    if groups:
        last += (
            f"`{command_line(name)} data={groups['data']} --cfg job` prints every key of the chosen options."
        )
        lines += ["", *indented(last)]
    return "\n".join(lines)


def defaults(text: str) -> dict[str, Any]:
    """Return the groups that a config composes, with the chosen options; other configs with None."""
    found: dict[str, Any] = {}
    for each in yaml.safe_load(text).get("defaults", []):
        found |= each if isinstance(each, dict) else {each: None}
    return found


def options(group: str) -> list[str]:
    return sorted(path.stem for folder in conf_dirs() for path in (folder / group).glob("*.yaml"))


def listed(group: str, option: Any) -> str:
    """Return the options of a group, its default first: in brackets if it takes a list, null if none."""
    names = options(group)
    if isinstance(option, list):
        rest = [name for name in names if name not in option]
        return ", ".join([f"[{','.join(option)}]", *rest])
    first = ["null"] if option is None else [str(option)] if option in names else []
    return ", ".join([*first, *(name for name in names if name not in first)])


def described(text: str) -> str:
    """Return the comment that a config begins with, with commands as the user starts them."""
    comments = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    head = " ".join(line.removeprefix("#").strip() for line in comments)
    return SCRIPT.sub(lambda match: command_line(match[1]), head)


def keys(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield dotted name, default and comment of each key with a comment, behind it or above it.

    Sections and values that Hydra fills in are left out; a name that follows from the time is empty.

    >>> text = "# A file\\na: 1 # the first\\npart: # a part\\n  b: [x, y] # second\\n# third\\nc: 0\\nd: 0"
    >>> list(keys(text))
    [('a', '1', 'the first'), ('part.b', '[x,y]', 'second'), ('c', '0', 'third')]
    """
    section, above = "", []
    for line in itertools.dropwhile(lambda line: line.startswith("#"), text.splitlines()):
        if line.startswith("#"):
            above.append(line.removeprefix("#").strip())
            continue
        if match := KEY.match(line):
            indent, name, value, comment = match.groups(default="")
            section = section if indent else name
            comment = comment or " ".join(above)
            if comment and value and not value.startswith(FILLED) and section not in HIDDEN:
                shown = "" if "${" in value else value.replace(", ", ",")
                yield f"{section}.{name}" if indent else name, shown, comment
        above = []


def help_lines(name: str, about: str) -> list[str]:
    """Return the lines of a group or a key: its name, and beside or below it what it is."""
    lines = indented(about, " " * COLUMN)
    if len(name) > COLUMN - 4:
        return [f"  {name}", *lines]
    return [f"  {name}".ljust(COLUMN) + lines[0].strip(), *lines[1:]]


def indented(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def is_help(arguments: Sequence[str]) -> bool:
    return any(argument in FLAGS for argument in arguments)
