"""Hook of every Python process under test (PYTHONPATH): log its writes, kill it, or fill its disk.

Environment: FAULT_WATCH is the folder whose files count. FAULT_LOG is a file that gets a line per moment.
FAULT_AT is the moment of the fault, `{"moment": [what, file, number], "delay": s, "signal": n, "to": whom}`,
or with `"fill": file` a file that fills the disk. The hook creates the file FAULT_CAME at the fault.
"""

import json
import os
import re
import signal
import sys
import threading
import time

WATCH = os.environ.get("FAULT_WATCH", "")
LOG = os.environ.get("FAULT_LOG")
AT = json.loads(os.environ.get("FAULT_AT", "null"))
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
seen: dict[tuple[str, str], int] = {}


def plain(path: str) -> str:
    """Return the name of a file in the watched folder, without parts that differ between runs."""
    name = re.sub(r"\.\d+\.tmp$", ".tmp", os.path.relpath(path, WATCH))
    return re.sub(r"\.tmp-[^/]+", ".tmp-*", name)


def fill() -> None:
    with open(AT["fill"], "wb", buffering=0) as file:
        size = 1 << 16
        while size:  # to the last byte
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


def strike() -> None:
    time.sleep(AT["delay"])
    rank = "ssl_lightning.run" in " ".join(sys.orig_argv)
    number = AT["signal"]
    if rank and (number == signal.SIGKILL or AT["to"] == "launcher"):
        os.kill(os.getppid(), number)
    if not rank or number == signal.SIGKILL or AT["to"] == "rank":
        os.kill(os.getpid(), number)


def moment(what: str, path: object) -> None:
    """Handle a moment: just before a file is opened for writing, renamed, synced or removed."""
    try:
        full = os.path.abspath(os.fsdecode(path))  # type: ignore[arg-type]
    except TypeError:  # a descriptor
        return
    if not full.startswith(WATCH + os.sep) or full.endswith(".lock"):
        return
    name = plain(full)
    seen[what, name] = seen.get((what, name), 0) + 1
    here = [what, name, seen[what, name]]
    if LOG:
        handle = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, (json.dumps([*here, time.time(), os.environ.get("RANK")]) + "\n").encode())
        os.close(handle)
    if AT and here == AT["moment"] and "fill" in AT:
        fill()
    elif AT and here == AT["moment"]:
        os.close(os.open(os.environ["FAULT_CAME"], os.O_WRONLY | os.O_CREAT))
        if AT["delay"] == 0 and AT["signal"] == signal.SIGKILL:
            strike()  # before the system call
        threading.Thread(target=strike, daemon=True).start()


def hook(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
        moment("open", arguments[0])
    elif event == "os.rename":
        moment("rename", arguments[1])
    elif event == "os.remove":
        moment("remove", arguments[0])


if WATCH and (LOG or AT):
    sys.addaudithook(hook)
