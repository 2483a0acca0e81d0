"""Check config values: special keys by their rows, other keys by the annotations of constructors."""

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
PLURALS = {NAMES[int]: "whole numbers", NAMES[float]: "finite numbers", NAMES[str]: "texts"}
UNIONS = (typing.Union, types.UnionType)
LISTS = (list, tuple, Sequence)
MAPPINGS = (dict, Mapping)
# Arguments of Lightning's Trainer that `engine.trainer` sets, and what to use instead
SET_HERE = {
    "callbacks": "use the group callbacks=[...]",
    "logger": "use the group logger=[...]",
    "enable_checkpointing": "callbacks=[progress] leaves checkpoints out",
    "overfit_batches": "use data.pretrain_size=64 to train on few images",
    "reload_dataloaders_every_n_epochs": "the loader draws a new order in every epoch",
} | dict.fromkeys(
    ("plugins", "num_sanity_val_steps", "use_distributed_sampler", "enable_model_summary", "barebones"),
    "the run sets it itself",
)
# keywords that every run gives to the class of a group, so that the config has none of them
GIVEN = {"task.": ("backbone", "spec", "optimizer", "scheduler", "seed", "channels_last")}
GIVEN_ELSE = {"backbone.": ("in_channels",)}  # likewise, but allowed in the config
HYDRA_KEYS = ("_target_", "_partial_")


def check_types(config: Mapping[str, Any]) -> None:
    """Raise on the first config value with the wrong type or out of range, and on unknown keys.

    Args:
        config: Resolved, of plain dictionaries and lists.

    Raises:
        ValueError: The message names the key, the value given, and what is allowed.
    """
    import pytorch_lightning as pl

    check_special(config)
    trainer = config.get("trainer", {})
    if ours := [key for key in SET_HERE if key in trainer]:
        raise ValueError(f"trainer.{ours[0]} cannot be given; {SET_HERE[ours[0]]}")
    _refuse_unknown(trainer, {*TRAINER, *inspect.signature(pl.Trainer).parameters}, "trainer.")
    choices = config.get("choices") or {}
    for key, value in config.items():
        if key != "trainer" and isinstance(value, Mapping):
            _check_targets(value, f"{key}.", choices)


def check_special(config: Mapping[str, Any]) -> None:
    """Check the special keys of `config.keys`; unlike `check_types`, this needs no torch.

    Args:
        config: Resolved, of plain dictionaries and lists.

    Raises:
        ValueError: The message names the key, the value given, and what is allowed.
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
    """Raise if a training has no end, no step or no validation, or if its batches cannot be split.

    Args:
        trainer: Group of the config, checked by `check_types`.
        batches: Batches per epoch.
        batch_size: Images per batch, over all processes.
        processes: Processes of the run.

    Raises:
        ValueError: The message names the key, the value given, and what is allowed.
    """
    if trainer["max_epochs"] == trainer["max_steps"] == -1:
        raise ValueError("trainer.max_epochs and trainer.max_steps are both -1; a schedule needs an end")
    used = _used_batches(trainer, batches)
    if used < 1:
        limit = trainer["limit_train_batches"]
        raise ValueError(f"trainer.limit_train_batches is {limit}, which leaves none of {batches} batches")
    every = trainer["val_check_interval"]
    if isinstance(every, int) and every > used:
        raise ValueError(
            f"trainer.val_check_interval is {every}; allowed is a fraction, or 1 to "
            f"{used}, the batches of an epoch"
        )
    if batch_size % processes:
        raise ValueError(
            f"data.batch_size is {batch_size} in all; it must divide evenly among {processes} processes"
        )


def planned_batches(trainer: Mapping[str, Any], batches: int) -> int:
    """Return the number of training batches of a run from its first to its last step.

    Args:
        trainer: Group of the config, checked by `check_length`.
        batches: Batches per epoch.
    """
    epochs, steps = trainer["max_epochs"], trainer["max_steps"]
    ends = [] if epochs == -1 else [epochs * _used_batches(trainer, batches)]
    ends += [] if steps == -1 else [steps * trainer["accumulate_grad_batches"]]
    return int(min(ends))


def _used_batches(trainer: Mapping[str, Any], batches: int) -> int:
    """Return the number of batches per epoch within `limit_train_batches`."""
    limit = trainer["limit_train_batches"]
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(limit, batches)


def accepted(target: Any) -> tuple[dict[str, Any], bool]:
    """Return the keywords of a class or function with their annotations, by default `Any`.

    If a constructor passes keywords to its base class (`**base`), the base class is searched too.

    Returns:
        The annotations by name, and whether the target takes any other keyword.
    """
    found: dict[str, Any] = {}
    chain = [vars(c).get("__init__") for c in target.__mro__] if inspect.isclass(target) else [target]
    for function in filter(None, chain):
        try:
            signature, hints = inspect.signature(function), typing.get_type_hints(function)
        except (NameError, TypeError, ValueError):  # written in C, or annotated for type checkers only
            return found, True
        parameters = signature.parameters.values()
        for each in parameters:
            if each.name != "self" and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                found.setdefault(each.name, hints.get(each.name, Any))
        if not any(each.kind is each.VAR_KEYWORD for each in parameters):
            return found, False
    return found, True


def _check_targets(node: Mapping[str, Any], place: str, choices: Mapping[str, Any]) -> None:
    """Check the arguments of every `_target_` in nested dictionaries."""
    if "_target_" in node:
        values = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
        target = _target(node["_target_"], place)
        kinds, anything = accepted(target)
        kinds = {name: kind for name, kind in kinds.items() if name not in GIVEN.get(place, ())}
        check_values(values, kinds, place, anything)
        if not node.get("_partial_") and "_args_" not in node:
            _check_needed(values, target, place, choices)
    for key, value in node.items():
        if isinstance(value, Mapping):
            _check_targets(value, f"{place}{key}.", choices)


def _check_needed(values: Mapping[str, Any], target: Any, place: str, choices: Mapping[str, Any]) -> None:
    """Raise on the first argument without a default that a config does not give.

    Raises:
        ValueError: The message names the key and the file of the config.
    """
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # written in C
        return
    known = {*values, *GIVEN.get(place, ()), *GIVEN_ELSE.get(place, ())}
    for each in parameters:
        variable = each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if each.name not in known and each.default is each.empty and not variable:
            group, _, name = place.rstrip(".").partition(".")
            file = f"{group}/{name or choices.get(group, group)}.yaml"
            key = f"{place}{each.name}"
            raise ValueError(f"{key} must be given: +{key}=..., or a line in the config file {file}")


def _target(name: str, place: str) -> Any:
    try:
        return get_object(name)
    except ImportError as error:
        if missing := _missing_name(name):
            raise ValueError(f"{place}_target_ is {name!r}; {missing}") from error
        why = str(error.__cause__ or error).strip().rpartition("\n")[2]
        raise ValueError(f"{place}_target_ is {name!r}, which cannot be imported here: {why}") from error


def _missing_name(target: str) -> str:
    """Say that a module has no such name, and what is close; "" if the module itself cannot be imported."""
    place, _, name = target.rpartition(".")
    try:
        module = get_object(place)
    except (ImportError, ValueError):
        return ""
    if not inspect.ismodule(module):
        return ""
    close = get_close_matches(name, [each for each in vars(module) if not each.startswith("_")], 1, 0.5)
    return f"the module {place} has no {name}" + (f"; did you mean {close[0]}?" if close else "")


def check_values(
    values: Mapping[str, Any], kinds: Mapping[str, Any], place: str, anything: bool = False
) -> None:
    """Raise on values of the wrong type, and on unknown keys.

    Args:
        values: Values by key.
        kinds: Annotations by key.
        place: Prefix of the keys, with a dot, for the message.
        anything: Whether unknown keys are allowed.

    Raises:
        ValueError: The message names the key, the value given, and what is allowed.
    """
    if not anything:
        _refuse_unknown(values, kinds, place)
    for key, value in values.items():
        if key in kinds and not fits(value, kinds[key]):
            raise ValueError(f"{place}{key} is {value!r}; allowed is {describe(kinds[key])}")


def _refuse_unknown(values: Mapping[str, Any], known: Collection[str], place: str) -> None:
    """Raise on the first unknown key; Hydra's own keys begin with an underscore and pass."""
    for key in values:
        if key not in known and not str(key).startswith("_"):
            close = get_close_matches(str(key), known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else f"it takes {', '.join(sorted(known))}"
            raise ValueError(f"{place}{key} is not a key of {place.rstrip('.') or 'the config'}; {hint}")


def fits(value: Any, kind: Any) -> bool:
    """Whether a value read from YAML matches an annotation; types that YAML cannot hold match all values.

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
    """Describe the values of an annotated type in words.

    >>> describe(int | None), describe(Sequence[float]), describe(typing.Literal["a", "b", "c"])
    ('a whole number or null', 'a list of finite numbers', 'a, b or c')
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
        if not inner:
            return "a list"
        each = describe(inner[0])
        if each in PLURALS:
            return f"a list of {len(inner)} {PLURALS[each]}" if fixed else f"a list of {PLURALS[each]}"
        return f"a list{fixed}, each {each}"
    if general in MAPPINGS:
        return "a mapping, such as {key: value}"
    return NAMES.get(general, str(general))


def _is_plain(kind: Any) -> bool:
    """Whether YAML can hold a value of a type."""
    general = typing.get_origin(kind) or kind
    return general in (*NAMES, *UNIONS, *LISTS, *MAPPINGS, typing.Literal, type(None))
