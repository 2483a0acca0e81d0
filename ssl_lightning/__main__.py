"""Command line: `ssl-lightning train task=rotation`, or `python -m ssl_lightning train task=rotation`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ssl_lightning import __version__
from ssl_lightning.core.entry import ENTRY, command_line

# name -> module, function of its arguments, description; imported at use, since some need torch
COMMANDS = {
    "train": ("launch.commands", "train_main", "pretrain a backbone by a pretext task, then probe it"),
    "evaluate": ("launch.commands", "evaluate_main", "probe the backbone of a run or of a file"),
    "compare": ("launch.commands", "compare_main", "find the pretext task that suits your images"),
    "report": ("launch.commands", "report_main", "write the table and the page of stored runs"),
    "audit": ("launch.commands", "audit_main", "find the shortcuts that the guards of a task prevent"),
    "export": ("launch.commands", "export_main", "write the backbone of a run for another library"),
    "pack": ("data.pack.__main__", "main", "pack image files into shards"),
    "bench": ("bench.__main__", "start", "measure speed against plain PyTorch"),
}


def main(arguments: Sequence[str] | None = None, form: str = "ssl-lightning {}") -> int:
    """Run one command; return its exit status.

    Args:
        arguments: Name of the command and its arguments; None takes them from the command line.
        form: How the user starts a command, with {} for its name.
    """
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    os.environ.setdefault(ENTRY, form)  # error texts and results.json repeat commands in this form
    if name in COMMANDS:
        module, function, _ = COMMANDS[name]
        sys.argv = [command_line(name), *rest]  # for usage lines
        return int(getattr(import_module(f"ssl_lightning.{module}"), function)(rest))
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"ssl-lightning {__version__}")
        return 0
    print(f"error: {name!r} is not a command; allowed are {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


def overview() -> str:
    """Return one line for each command."""
    width = max(len(command_line(name)) for name in COMMANDS)
    lines = [f"  {command_line(name):<{width}}  {about}" for name, (*_, about) in COMMANDS.items()]
    first = f"ssl-lightning {__version__}: pretrain networks on images without labels, and probe them"
    last = f"Options of a command: {command_line('train')} --help. They are overrides in Hydra's grammar."
    return "\n".join([first, "", *lines, "", last])


if __name__ == "__main__":
    sys.exit(main(form="python -m ssl_lightning {}"))
