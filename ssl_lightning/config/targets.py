"""Which code a config from a file may name. Hydra would call any function of any module.

The config of a run folder may come from someone else. Before anything of it is built, every `_target_` is
looked up among those of this project's own `conf/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONF = Path(__file__).parents[2] / "conf"
TRUST = "SSL_LIGHTNING_TRUST"  # packages of one's own, with commas in between
MARKS = ("_target_", "_partial_")  # of the keys that Hydra acts on those that this project uses
TARGET = re.compile(r"^\s*_target_:\s*(\S+)", re.MULTILINE)


def check_targets(config: Any, source: Path) -> None:
    """Refuse a config that names code which is neither of this project's configs nor trusted.

    Args:
        config: Nested dictionaries and lists.
        source: The file that it came from, for the message.

    Raises:
        ValueError: Names the first such target, and where in the config it stands.
    """
    known = _known()
    everything = set().union(*known.values())
    trusted = tuple(f"{name.strip()}." for name in os.environ.get(TRUST, "").split(",") if name.strip())
    for place, key, value in _marks(config, ""):
        if key not in MARKS:
            raise ValueError(
                f"{source} has {place}, which Hydra would act on; allowed are {' and '.join(MARKS)}"
            )
        allowed = known.get(place.partition(".")[0], everything)
        fine = key == "_partial_" or (
            isinstance(value, str) and (value in allowed or value.startswith(trusted))
        )
        if not fine:
            raise ValueError(
                f"{source} would run {value!r} ({place}), which is not in this project's conf/ for that. "
                f"Trust a package of your own by {TRUST}=<package>; else the file may be malicious"
            )


def _known() -> dict[str, set[str]]:
    """Targets of this project by the group that they are of; those of no group stand under their key."""
    known: dict[str, set[str]] = {"encoding": set()}
    for path in CONF.rglob("*.yaml"):
        group = path.parent.name if path.parent != CONF else "encoding"
        known.setdefault(group, set()).update(TARGET.findall(path.read_text()))
    return {group: names for group, names in known.items() if names}


def _marks(node: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """Every key that begins with an underscore: its place, itself, its value."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f"{place}.{key}".lstrip(".")
            if str(key).startswith("_"):
                yield here, str(key), value
            yield from _marks(value, here)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _marks(value, f"{place}[{number}]")
