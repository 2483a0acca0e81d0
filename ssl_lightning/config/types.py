"""Values of a config against what the constructors say that they take: the annotations are the schema.

Constructors check ranges; that text is no number is seen here, for every key of every group alike, before
anything is built.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.utils import get_object

TOP = {
    "seed": int,
    "name": str | int | float,  # a number too: YAML reads name=42 as one
    "output_dir": str,
    "folder": str,
    "run_dir": str,
    "choices": Mapping,
    "overrides": Sequence[str],
    "resume": str | None,
    "skip_finished": bool,
    "go_on": bool,
    "init_from": str | None,
    "prefix_map": Mapping[str, str | None] | None,
    "probe_untrained": bool,
    "diverged": float | None,
    "deterministic": bool,
    "channels_last": bool,
    "compile": bool,
    "cuda_graphs": typing.Literal["auto", True, False],
    "encoding": Mapping,
    "objective": str | None,
    "benchmark": Mapping,
    "run": str | None,  # of evaluate.py, as the next two
    "checkpoint": str,
    "weights": str | None,
    **dict.fromkeys(("task", "data", "backbone", "optimizer", "scheduler", "trainer"), Mapping),
    **dict.fromkeys(("probe", "logger", "callbacks"), Mapping),
}
PART = "a number of batches above 0, or a fraction of them, above 0.0 to 1.0"
TRAINER = {
    "accelerator": typing.Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"],
    "devices": int | str,
    "num_nodes": int,
    "launcher": typing.Literal["local", "slurm", "torchrun"],
    "strategy": str,
    "precision": int | str,
    "max_epochs": int,
    "max_steps": int,
    "limit_train_batches": int | float | None,
    "limit_val_batches": int | float | None,
    "accumulate_grad_batches": int,
    "gradient_clip_val": float | None,
    "check_val_every_n_epoch": int,
    "val_check_interval": int | float,
    "log_every_n_steps": int,
    "sync_batchnorm": bool,
    "enable_progress_bar": bool,
}
PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")  # images and corruptions are float32 in all
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {  # of what is not null
    "num_nodes": (lambda n: n >= 1, "1 or more"),
    "precision": (lambda p: p in PRECISIONS, ", ".join(PRECISIONS)),
    "max_epochs": (lambda n: n >= 1 or n == -1, "1 or more, or -1 with trainer.max_steps"),
    "max_steps": (lambda n: n >= 1 or n == -1, "1 or more, or -1 for as many as the epochs make"),
    "limit_train_batches": (lambda n: 0 < n <= (1 if isinstance(n, float) else n), PART),
    "limit_val_batches": (lambda n: 0 <= n <= (1 if isinstance(n, float) else n), f"0, {PART}"),
    "accumulate_grad_batches": (lambda n: n >= 1, "1 or more"),
    "gradient_clip_val": (lambda n: n > 0, "a number above 0, or null for no clipping"),
    "check_val_every_n_epoch": (lambda n: n >= 1, "1 or more"),
    "val_check_interval": (lambda n: 0 < n <= (1 if isinstance(n, float) else n), PART),
    "log_every_n_steps": (lambda n: n >= 1, "1 or more"),
}
NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
UNIONS = (typing.Union, types.UnionType)
LISTS = (list, tuple, Sequence)
MAPPINGS = (dict, Mapping)
SPECIAL = ("_target_", "_partial_")  # keys of Hydra that this project's configs use


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse the first value of a config that is of another type than its key takes, and unknown keys.

    Args:
        config: Resolved, of plain dictionaries and lists.

    Raises:
        ValueError: Names the key, what was given, and what is allowed.
    """
    import pytorch_lightning as pl

    check_values(config, TOP, "")
    if config.get("name") == "":
        raise ValueError("name is empty; it is the last part of the run folder")
    others = dict.fromkeys(inspect.signature(pl.Trainer).parameters, Any)
    trainer = config.get("trainer", {})
    check_values(trainer, others | TRAINER, "trainer.")
    for key, (fine, allowed) in RANGES.items():
        value = trainer.get(key)
        if value is not None and not fine(value):
            raise ValueError(f"trainer.{key} is {value!r}; allowed is {allowed}")
    for key, value in config.items():
        if key != "trainer" and isinstance(value, Mapping):
            _check_targets(value, f"{key}.")


def check_length(trainer: Mapping[str, Any], *, batches: int, batch_size: int, processes: int) -> None:
    """Refuse a training that would have no end, no step or no validation, or that cannot be shared out.

    Args:
        trainer: The group of the config, which `check_config` has passed.
        batches: Of an epoch.
        batch_size: Images of a batch, over all processes.
        processes: Of the run.

    Raises:
        ValueError: Names the key, what was given, and what is allowed.
    """
    if trainer["max_epochs"] == trainer["max_steps"] == -1:
        raise ValueError("trainer.max_epochs and trainer.max_steps are both -1; a schedule needs an end")
    limit = trainer["limit_train_batches"]
    used = batches if limit is None else int(batches * limit) if isinstance(limit, float) else limit
    if used < 1:
        raise ValueError(f"trainer.limit_train_batches is {limit}: of {batches} batches none is left")
    every = trainer["val_check_interval"]
    if isinstance(every, int) and every > min(used, batches):
        raise ValueError(
            f"trainer.val_check_interval is {every}; allowed is a fraction, or 1 to "
            f"{min(used, batches)}, the batches of an epoch"
        )
    if batch_size % processes:
        raise ValueError(
            f"data.batch_size is {batch_size} in all; it must divide evenly among {processes} processes"
        )


def accepted(target: Any) -> tuple[dict[str, Any], bool]:
    """Find the keywords of a class or function with their annotations, `Any` where there is none.

    Keywords that a constructor hands to that of its base class (`**base`) are looked up there.

    Returns:
        The annotations by name; and whether any other keyword is taken too.
    """
    found: dict[str, Any] = {}
    chain = [vars(c).get("__init__") for c in target.__mro__] if inspect.isclass(target) else [target]
    for function in filter(None, chain):
        try:
            signature, hints = inspect.signature(function), typing.get_type_hints(function)
        except (NameError, TypeError, ValueError):  # made of C, or annotated for a type checker only
            return found, True
        parameters = signature.parameters.values()
        for each in parameters:
            if each.name != "self" and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                found.setdefault(each.name, hints.get(each.name, Any))
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            return found, False
    return found, True


def _check_targets(node: Mapping[str, Any], place: str) -> None:
    """Check what every `_target_` of nested dictionaries is given."""
    if "_target_" in node:
        values = {key: value for key, value in node.items() if key not in SPECIAL}
        kinds, anything = accepted(get_object(node["_target_"]))
        check_values(values, kinds, place, anything)
    for key, value in node.items():
        if isinstance(value, Mapping):
            _check_targets(value, f"{place}{key}.")


def check_values(
    values: Mapping[str, Any], kinds: Mapping[str, Any], place: str, anything: bool = False
) -> None:
    """Refuse values of other types than their keys take, and keys that are not taken.

    Args:
        values: By key.
        kinds: Annotations by key.
        place: What the keys are of, with a dot, for the message.
        anything: Whether other keys are taken too.

    Raises:
        ValueError: Names the key, what was given, and what is allowed.
    """
    for key, value in values.items():
        if key in kinds:
            if not fits(value, kinds[key]):
                raise ValueError(f"{place}{key} is {value!r}; allowed is {describe(kinds[key])}")
        elif not anything and not str(key).startswith("_"):
            close = get_close_matches(str(key), kinds, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"it takes {', '.join(sorted(kinds))}"
            raise ValueError(f"{place}{key} is no key of {place.rstrip('.') or 'the config'}; {hint}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value of a config, read from YAML, is of an annotated type; of types not plain, all are.

    >>> fits(3, int), fits(True, int), fits(3, float), fits(float("nan"), float), fits("3", int | None)
    (True, False, True, False, False)
    >>> fits([1, 2], tuple[int, int]), fits([1], tuple[int, int]), fits([1, "a"], Sequence[int])
    (True, False, False)
    """
    general, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if general in UNIONS:
        plain = [each for each in inner if _is_plain(each)]
        return not plain or any(fits(value, each) for each in plain)
    if general is typing.Literal:
        return value in inner
    if general is type(None):
        return value is None
    if general in NAMES:
        if general is bool or isinstance(value, bool):
            return general is bool and isinstance(value, bool)
        if general is float:
            return isinstance(value, (int, float)) and math.isfinite(value)
        return isinstance(value, general)
    if general in LISTS:
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        if general is tuple and inner and inner[-1] is not Ellipsis:
            return len(value) == len(inner) and all(map(fits, value, inner))
        return not inner or all(fits(each, inner[0]) for each in value)
    if general in MAPPINGS:
        return isinstance(value, Mapping) and (not inner or all(fits(v, inner[1]) for v in value.values()))
    return True


def describe(kind: Any) -> str:
    """Say in words which values are of an annotated type.

    >>> describe(int | None), describe(Sequence[float]), describe(typing.Literal["a", "b"])
    ('a whole number or null', 'a list, each a finite number', 'a or b')
    """
    general, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if general in UNIONS:
        return " or ".join(dict.fromkeys(describe(each) for each in inner if _is_plain(each)))
    if general is typing.Literal:
        return " or ".join(map(str, inner))
    if general is type(None):
        return "null"
    if general in LISTS:
        fixed = f" of {len(inner)}" if general is tuple and inner and inner[-1] is not Ellipsis else ""
        return f"a list{fixed}" + (f", each {describe(inner[0])}" if inner else "")
    if general in MAPPINGS:
        return "a mapping, such as {key: value}"
    return NAMES.get(general, str(general))


def _is_plain(kind: Any) -> bool:
    """Whether YAML can hold a value of a type."""
    general = typing.get_origin(kind) or kind
    return general in (*NAMES, *UNIONS, *LISTS, *MAPPINGS, typing.Literal, type(None))
