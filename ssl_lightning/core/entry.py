"""Shell commands as the user starts them: `ssl-lightning train`, or `python train.py` in a checkout."""

from __future__ import annotations

import os
from pathlib import Path

ENTRY = "SSL_LIGHTNING_ENTRY"  # environment variable of a command and its processes; {} is the command's name
REPOSITORY = Path(__file__).parents[2]  # of a checkout; the folder of all packages if this one is installed


def command_form() -> str:
    """Return the form of the commands, with {} for the name of the command."""
    return os.environ.get(ENTRY) or ("python {}.py" if is_checkout() else "python -m ssl_lightning {}")


def command_line(name: str) -> str:
    """Return the shell command of that name: train, evaluate, compare, report, audit or bench.

    >>> import pytest
    >>> with pytest.MonkeyPatch.context() as patch:
    ...     patch.setenv(ENTRY, "ssl-lightning {}")
    ...     command_line("train")
    'ssl-lightning train'
    """
    return command_form().replace("{}", name)


def is_checkout() -> bool:
    """Whether the package lies in its repository, beside `conf/`; also for an editable installation."""
    return (REPOSITORY / "conf" / "train.yaml").is_file()


def child_environment() -> dict[str, str]:
    """Return the environment of a child that imports this package and names the commands alike.

    The folder of an installed package is left out: before the standard library it could shadow modules.
    """
    added = [str(REPOSITORY)] if is_checkout() else []
    path = os.pathsep.join(filter(None, [*added, os.environ.get("PYTHONPATH")]))
    return os.environ | {ENTRY: command_form()} | ({"PYTHONPATH": path} if path else {})
