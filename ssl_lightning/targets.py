"""Which code a config from a file may name. Hydra would call any function of any module.

The config of a run folder may come from someone else. Before anything of it is built, every `_target_` is
looked up among those of this project's own `conf/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONF = Path(__file__).parent.parent / "conf"
TRUST = "SSL_LIGHTNING_TRUST"  # packages of one's own, with commas in between
TARGET = re.compile(r"^\s*_target_:\s*(\S+)", re.MULTILINE)


def check_targets(config: Any, source: Path) -> None:
    """Refuse a config that names code which is neither of this project's configs nor trusted.

    Args:
        config: Nested dictionaries and lists.
        source: The file that it came from, for the message.

    Raises:
        ValueError: Names the first such target, and where in the config it stands.
    """
    known = {name for path in CONF.rglob("*.yaml") for name in TARGET.findall(path.read_text())}
    trusted = tuple(f"{name.strip()}." for name in os.environ.get(TRUST, "").split(",") if name.strip())
    for place, target in _targets(config, ""):
        if not isinstance(target, str) or not (target in known or target.startswith(trusted)):
            raise ValueError(
                f"{source} would run {target!r} ({place}), which is not in this project's conf/. If it is "
                f"code of your own, trust its package: {TRUST}=<package>; else the file may be malicious"
            )


def _targets(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{place}.{key}".lstrip(".")
            if key == "_target_":
                yield here, value
            yield from _targets(value, here)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _targets(value, f"{place}[{number}]")
