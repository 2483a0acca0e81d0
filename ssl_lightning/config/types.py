"""Check of config values: special keys by their rows, all others by the annotations of constructors."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.utils import get_object

from ssl_lightning.config.keys import TOP, TRAINER, Key

NAMES = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
UNIONS = (typing.Union, types.UnionType)
LISTS = (list, tuple, Sequence)
MAPPINGS = (dict, Mapping)
HYDRA_KEYS = ("_target_", "_partial_")


def check_types(config: Mapping[str, Any]) -> None:
    """Raise on the first value of a config with the wrong type or out of its range, and on unknown keys.

    Args:
        config: Resolved, of plain dictionaries and lists.

    Raises:
        ValueError: Names the key, what was given, and what is allowed.
    """
    import pytorch_lightning as pl

    check_special(config)
    trainer = config.get("trainer", {})
    _refuse_unknown(trainer, {*TRAINER, *inspect.signature(pl.Trainer).parameters}, "trainer.")
    for key, value in config.items():
        if key != "trainer" and isinstance(value, Mapping):
            _check_targets(value, f"{key}.")


def check_special(config: Mapping[str, Any]) -> None:
    """Do the part of `check_types` that needs no torch: the keys of `config.keys`.

    Args:
        config: Resolved, of plain dictionaries and lists.

    Raises:
        ValueError: Names the key, what was given, and what is allowed.
    """
    _refuse_unknown(config, TOP, "")
    for place, values, keys in (("", config, TOP), ("trainer.", config.get("trainer", {}), TRAINER)):
        for name, value in values.items():
            key = keys.get(name)
            if key and not _is_allowed(value, key):
                allowed = key.range.text if key.range else describe(key.kind)
                raise ValueError(f"{place}{name} is {value!r}; allowed is {allowed}")


def _is_allowed(value: Any, key: Key) -> bool:
    return fits(value, key.kind) and (value is None or key.range is None or key.range.holds(value))


def check_length(trainer: Mapping[str, Any], *, batches: int, batch_size: int, processes: int) -> None:
    """Refuse a training that would have no end, no step or no validation, or that cannot be shared out.

    Args:
        trainer: The group of the config, which `check_types` has passed.
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
        values = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
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
    if not anything:
        _refuse_unknown(values, kinds, place)
    for key, value in values.items():
        if key in kinds and not fits(value, kinds[key]):
            raise ValueError(f"{place}{key} is {value!r}; allowed is {describe(kinds[key])}")


def _refuse_unknown(values: Mapping[str, Any], known: Collection[str], place: str) -> None:
    """Raise on the first key that is not taken; keys of Hydra begin with an underscore."""
    for key in values:
        if key not in known and not str(key).startswith("_"):
            close = get_close_matches(str(key), known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"it takes {', '.join(sorted(known))}"
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

    >>> describe(int | None), describe(Sequence[float]), describe(typing.Literal["a", "b", "c"])
    ('a whole number or null', 'a list, each a finite number', 'a, b or c')
    """
    general, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if general in UNIONS:
        return " or ".join(dict.fromkeys(describe(each) for each in inner if _is_plain(each)))
    if general is typing.Literal:
        return " or ".join(", ".join(map(str, inner)).rsplit(", ", 1))
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
