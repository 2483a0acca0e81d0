"""Files from anywhere, read with distrust: plain ones, of a bounded size, of a schema that is known."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

MAX_DEPTH = 32  # of nested lists and objects; what a run writes has 6


def check_plain(path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
    """Refuse what is no file, before it is opened: a pipe would be waited for, for ever.

    Raises:
        ValueError: It is a folder, pipe, socket or device, or has more than `max_bytes`.
        OSError: It is absent, cannot be reached, or a link that leads in a circle.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no plain file, but a folder, pipe, socket or device")
    if max_bytes is not None and found.st_size > max_bytes:
        raise ValueError(f"it has {found.st_size:,} bytes; allowed are at most {max_bytes:,}")


def read_text(path: Path, max_bytes: int) -> str:
    """Read a text of UTF-8.

    Raises:
        ValueError: It is no plain file, too large, or of another encoding.
        OSError: It cannot be read.
    """
    try:
        check_plain(path, max_bytes)
        return path.read_text(encoding="utf-8")
    except ValueError as error:  # of the encoding too
        raise ValueError(f"broken: {error}") from None


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read an object of JSON, of standard JSON: NaN and Infinity are refused.

    Raises:
        ValueError: It is something else; the message says what, and does not name the file.
        OSError: It cannot be read.
    """
    text = read_text(path, max_bytes)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"broken: {error}") from None
    except RecursionError:
        raise ValueError("broken: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("foreign: it has no schema number")
    if _depth_above(content, MAX_DEPTH):
        raise ValueError(f"broken: it is nested more than {MAX_DEPTH} deep")
    return content


def check_schema(content: Mapping[str, Any], known: int, key: str = "schema") -> None:
    """Refuse what a newer version wrote, of which this one cannot know what it means.

    Raises:
        ValueError: There is no schema number, or one above `known`.
    """
    schema = content.get(key)
    if type(schema) is not int or schema < 1:
        raise ValueError("foreign: it has no schema number")
    if schema > known:
        raise ValueError(
            f"made by a newer ssl-lightning: its schema is {schema}, and this version reads {known}; "
            "update ssl-lightning"
        )


def printable(text: str, *, lines: bool = True) -> str:
    """Show signs that a terminal would obey, or that no file can hold, as their numbers.

    Args:
        text: Anything.
        lines: Whether lines stay lines; a name is none.

    >>> printable("a\\x1b[2Jb\\n\\udcff\\u202e"), printable("a\\nb \u00fc", lines=False)
    ('a\\\\x1b[2Jb\\n\\\\udcff\\\\u202e', 'a\\\\nb \u00fc')
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or (lines and sign == "\n") else sign.encode("unicode_escape").decode()
        for sign in text
    )


def printable_all(node: Any) -> Any:
    """The same for every text, and every key, of nested dictionaries and lists."""
    if isinstance(node, str):
        return printable(node)
    if isinstance(node, dict):
        return {printable_all(key): printable_all(value) for key, value in node.items()}
    return [printable_all(value) for value in node] if isinstance(node, list) else node


def _depth_above(node: Any, limit: int) -> bool:
    """Whether lists and dictionaries are nested deeper; without recursion, which has a limit of its own."""
    level = [node]
    for _ in range(limit):
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
