"""Read untrusted files: regular files of bounded size and known schema, with printable texts."""

from __future__ import annotations

import json
import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

UNPACKERS = {".zip": "zipfile", ".tar": "tarfile", ".gz": "tarfile", ".tgz": "tarfile", ".xz": "tarfile"}
MAX_DEPTH = 32  # of nested JSON; a run writes 6 levels


def check_plain(path: str | os.PathLike[str], max_bytes: int | None = None) -> None:
    """Raise if a path is not a regular file; opening a pipe would block.

    Raises:
        ValueError: The path is a folder, pipe, socket or device, or has more than `max_bytes`.
        OSError: The path is absent, unreadable, or a link to itself.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a plain file, but a folder, pipe, socket or device")
    if max_bytes is not None and found.st_size > max_bytes:
        raise ValueError(f"it has {found.st_size:,} bytes; allowed are at most {max_bytes:,}")


def check_folder(path: Path, needs: str = "") -> None:
    """Raise if a path is not a folder; for an archive, the message has the command that unpacks it.

    Args:
        path: The folder.
        needs: What the folder is for, to end the message.

    Raises:
        FileNotFoundError: The folder does not exist.
        NotADirectoryError: The path, or a folder above it, is a file.
    """
    path = path.expanduser()
    if path.is_dir():
        return
    file = next((place for place in (path, *path.parents) if place.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"folder {path} does not exist{needs}")
    advice = ""
    if unpacker := UNPACKERS.get(file.suffix.lower()):
        unpacked = file.with_name(file.name.partition(".")[0])
        command = shlex.join(["python", "-m", unpacker, "-e", str(file), str(unpacked)])
        advice = f"; unpack it, then give {unpacked}: {command}"
    raise NotADirectoryError(f"{file} is a file; a folder is needed{advice}{needs}")


def read_text(path: Path, max_bytes: int) -> str:
    """Read a regular UTF-8 file of at most `max_bytes`; raise ValueError or OSError otherwise."""
    try:
        check_plain(path, max_bytes)
        return path.read_text(encoding="utf-8")
    except ValueError as error:  # including encoding errors
        raise ValueError(f"broken: {error}") from None


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """Read a JSON object without NaN and Infinity.

    Raises:
        ValueError: The file holds anything else; the message does not name the file.
        OSError: The file cannot be read.
    """
    text = read_text(path, max_bytes)
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
        _check_depth(content)
    except ValueError as error:
        raise ValueError(f"broken: {error}") from None
    except RecursionError:
        raise ValueError("broken: it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("foreign: it has no schema number")
    return content


def check_schema(content: Mapping[str, Any], known: int, key: str = "schema") -> None:
    """Raise ValueError if the schema number is missing, or above `known` and so from a newer version."""
    schema = content.get(key)
    if type(schema) is not int or schema < 1:
        raise ValueError("foreign: it has no schema number")
    if schema > known:
        raise ValueError(
            f"made by a newer ssl-lightning: its schema is {schema}, and this version reads {known}; "
            "update ssl-lightning"
        )


def printable(text: str, *, lines: bool = True) -> str:
    """Escape characters that a terminal would obey or a file cannot hold; `lines` keeps line breaks.

    >>> printable("a\\x1b[2Jb\\n\\udcff\\u202e"), printable("a\\nb \u00fc", lines=False)
    ('a\\\\x1b[2Jb\\n\\\\udcff\\\\u202e', 'a\\\\nb \u00fc')
    """
    return "".join(
        char if char.isprintable() or (lines and char == "\n") else char.encode("unicode_escape").decode()
        for char in text
    )


def printable_all(node: Any) -> Any:
    """Apply `printable` to every text and key of nested dictionaries and lists."""
    if isinstance(node, str):
        return printable(node)
    if isinstance(node, dict):
        return {printable_all(key): printable_all(value) for key, value in node.items()}
    return [printable_all(value) for value in node] if isinstance(node, list) else node


def _check_depth(node: Any, left: int = MAX_DEPTH) -> None:
    """Raise ValueError if JSON is nested so deeply that recursive readers could fail."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
    if children is not None and not left:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    for child in children or ():
        _check_depth(child, left - 1)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
