"""Entry of a rank process: `python -m ssl_lightning.run <run folder>`."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import traceback
import warnings
from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from ssl_lightning.artifacts.run_folder import (
    CONFIG,
    ERROR,
    EVALUATION,
    EVALUATION_ERROR,
    NEXT_CONFIG,
    NEXT_EVALUATION,
    NOT_FIRST,
    PARENT_PIPE,
    REFUSED,
    UNREPORTED,
    accept_config,
)
from ssl_lightning.config.trust import check_links, check_trusted, load_config
from ssl_lightning.core.atomic_files import naming_full_disk
from ssl_lightning.core.entry import command_line
from ssl_lightning.core.errors import cause_of
from ssl_lightning.core.messages import shorten_warnings, showing_messages
from ssl_lightning.core.stop_signals import STOP
from ssl_lightning.core.untrusted import printable

# Warnings of Lightning about intended behaviour or its own internals; no user can act on them
NOISE = (
    "Experiment logs directory",  # the launcher has created the run folder
    "You have overridden `on_after_batch_transfer`",  # tasks convert uint8 to float there
    ".*isinstance\\(treespec, LeafSpec\\)",
    ".*does not have many workers",
    "The number of training batches",  # in a short run, below log_every_n_steps
)


def main() -> int:
    """Run the folder named on the command line; return the exit status.

    `ssl_lightning.launch.ranks`, `torchrun` or `srun` starts it. The folder holds the resolved `config.yaml`.
    A failure leaves a one-line message and the traceback in `error.txt`; of an evaluation, in a file that the
    launcher removes.
    """
    mode = sys.argv[2] if len(sys.argv) == 3 else "train"
    config = {
        "train": CONFIG,
        "next": NEXT_CONFIG,
        "evaluate": EVALUATION,
        "next-evaluate": NEXT_EVALUATION,
    }.get(mode)
    evaluates = mode.endswith("evaluate")
    first = os.environ.get("RANK", "0") == "0"  # other ranks may not see the folder yet
    if (
        len(sys.argv) not in (2, 3)
        or config is None
        or (first and not (Path(sys.argv[1]) / config).is_file())
    ):
        print(
            f"usage: python -m ssl_lightning.run <run folder with a {CONFIG}> [evaluate]",
            file=sys.stderr,
        )
        return 2
    folder = Path(sys.argv[1])
    STOP.install()
    die_with_parent()
    refuses = True

    def accept() -> None:
        nonlocal refuses
        refuses = False
        if mode.startswith("next") and first:
            accept_config(folder)

    try:
        from ssl_lightning.engine.determinism import deterministic
        from ssl_lightning.engine.trainer import of_first_process
        from ssl_lightning.run import evaluate, execute

        keep_quiet()
        cfg = of_first_process(partial(load_config, folder / config))
        if PARENT_PIPE not in os.environ:  # no launcher has checked the folder
            check_links(folder)
            check_trusted(cast(dict[str, Any], OmegaConf.to_container(cfg)), folder, folder / config)
        resumes = not evaluates and "resume" in cfg  # the config of an evaluation has no `resume`
        again = (
            f"resume with: {command_line('train')} resume={shlex.quote(str(folder))}"
            if resumes
            else "run the same command again"
        )
        wanted = cfg.get("deterministic") is True
        with (
            showing_messages(sys.stdout),
            naming_full_disk(folder, f"Make room, then {again}"),
            deterministic(wanted),
        ):
            if evaluates:
                evaluate.evaluate(cfg, folder, accept)
            else:
                execute.run(cfg, folder, accept)
    except SystemExit:
        if STOP.signum is not None and first and not refuses:
            print(f"stopped by a signal; {again}", flush=True)
        raise
    except Exception as error:
        if STOP.signum is not None and not first:
            STOP.exit()  # rank 0 stopped, and this rank lost the connection
        report = folder / (EVALUATION_ERROR if evaluates else ERROR)
        return leave_report(report, error, refuses=refuses)
    return 0


def keep_quiet() -> None:
    """Silence messages of Lightning and Hydra that no user can act on; Lightning must already be imported."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # its import sets INFO
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # its errors are raised too
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    shorten_warnings()


def leave_report(report: Path, error: Exception, *, refuses: bool) -> int:
    """Write the first failure as message, empty line and traceback; return the exit status.

    Args:
        report: The file.
        error: The failure.
        refuses: Whether it came before any work.
    """
    cause = cause_of(error)
    expected = isinstance(cause, (ValueError, OSError)) or type(cause).__module__.startswith("ssl_lightning")
    message = printable(str(cause) if expected else f"{type(cause).__name__}: {cause}")
    text = "".join(traceback.format_exception(error))
    first, status = True, REFUSED if refuses and expected else 1
    try:
        with open(report, "x") as file:
            file.write(message.strip().replace("\n\n", "\n") + "\n\n" + text)
    except FileExistsError:  # another rank failed before, most likely the cause of this failure
        first, status = False, NOT_FIRST
    except OSError:  # the disk is full, which is the cause or hides it
        report.unlink(missing_ok=True)
        print(f"error: {message}", file=sys.stderr, flush=True)
        status = UNREPORTED
    if first and not expected:
        print(text, file=sys.stderr)
    elif PARENT_PIPE not in os.environ:  # no launcher prints it
        print(f"error: {message}", file=sys.stderr)
    return status


def die_with_parent() -> None:
    """End this process when the launcher ends for any reason.

    The launcher holds the other end of a pipe and never writes, so the read returns when the launcher ends.
    """
    if PARENT_PIPE not in os.environ:
        return
    pipe = int(os.environ[PARENT_PIPE])

    def wait() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
