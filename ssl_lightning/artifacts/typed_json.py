"""Typed JSON: conversion of dataclasses to JSON and back, with type checks and a JSON schema."""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeGuard

from ssl_lightning.config.types import describe, fits

LARGEST = 2**63  # of an integer, so that a float can hold it
NEEDED = {"needed": True}  # metadata of a field that is required in JSON although it has a default
APART = {"apart": True}  # metadata of a field that JSON does not hold
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array"}


@dataclass(frozen=True)
class Limits:
    """Bounds of a value, as the second argument of `Annotated`; None means no bound.

    Args:
        words: Allowed values, for error messages.
        minimum: Smallest number.
        maximum: Largest number.
        longest: Largest length of a text.
        pattern: Regular expression that matches the complete text.
        time: Whether a text must be an ISO 8601 time.
    """

    words: str
    minimum: float | None = None
    maximum: float | None = None
    longest: int | None = None
    pattern: str | None = None
    time: bool = False

    def allow(self, value: Any) -> bool:
        """Whether a value of the right type is within the bounds."""
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.longest is None or len(value) <= self.longest)
            and (self.pattern is None or re.fullmatch(self.pattern, value) is not None)
            and (not self.time or _is_time(value))
        )

    def json_schema(self) -> dict[str, Any]:
        """Return the bounds as keywords of JSON schema."""
        keywords = {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "maxLength": self.longest,
            "pattern": None if self.pattern is None else f"^{self.pattern}$",
            "format": "date-time" if self.time else None,
        }
        return {key: value for key, value in keywords.items() if value is not None}


def to_json(value: Any) -> Any:
    """Convert a dataclass to a JSON object without its None fields; other values stay."""
    if dataclasses.is_dataclass(value):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_json(each) for name, each in pairs if each is not None}
    if isinstance(value, list):
        return [to_json(each) for each in value]
    return value


def from_json(kind: Any, value: Any, place: str = "") -> Any:
    """Check a parsed JSON value and convert it to a type.

    Args:
        kind: A dataclass, a type that `config.types.fits` supports, or `Annotated` with `Limits`.
        value: Result of the JSON parser.
        place: Path of the value for the message, such as `probes[0].value`.

    Returns:
        The value, with dataclasses in place of objects.

    Raises:
        ValueError: The type is wrong or the value is out of bounds; the message names the place.
    """
    base, limits, optional = _parts(kind)
    if value is None and optional:
        return None
    general, inner = _general(base), typing.get_args(base)
    if _is_fields(base):
        if not isinstance(value, dict):
            raise refusal(place, value, "an object")
        return _decode_fields(base, value, place)
    too_large = isinstance(value, int) and abs(value) > LARGEST
    if too_large or not fits(value, base if general is typing.Literal else general):
        raise refusal(place, value, describe(base))
    if limits is not None and not limits.allow(value):
        raise refusal(place, value, limits.words)
    if general is dict and inner:
        return {key: from_json(inner[1], each, _join(place, key)) for key, each in value.items()}
    if general is list and inner:
        return [from_json(inner[0], each, f"{place}[{number}]") for number, each in enumerate(value)]
    return value


def refusal(place: str, value: Any, allowed: str) -> ValueError:
    """Build the error for a wrong value, which is abbreviated."""
    return ValueError(f"foreign: {place} is {_abbreviated(value)}; allowed is {allowed}")


def json_schema(kind: Any) -> dict[str, Any]:
    """Build the JSON schema for the output of `to_json` for a type."""
    base, limits, optional = _parts(kind)
    general, inner = _general(base), typing.get_args(base)
    schema: dict[str, Any] = {}
    if _is_fields(base):
        hints = _fields(base)
        schema = {
            "type": "object",
            "required": [name for name, (_, needed) in hints.items() if needed],
            "additionalProperties": False,
            "properties": {name: json_schema(its) for name, (its, _) in hints.items()},
        }
    elif general is typing.Literal:
        schema = {"enum": list(inner)}
    elif general in JSON_TYPES:
        schema = {"type": JSON_TYPES[general]}
        if inner and (items := json_schema(inner[-1])):
            schema["additionalProperties" if general is dict else "items"] = items
    if optional:
        schema["type"] = [schema["type"], "null"]
    return schema | (limits.json_schema() if limits else {})


def _decode_fields(kind: type, value: Mapping[str, Any], place: str) -> Any:
    """Convert an object to a dataclass; null stands for a field's default."""
    hints = _fields(kind)
    if unknown := [key for key in value if key not in hints]:
        raise ValueError(f"foreign: {_join(place, _abbreviated(unknown[0]))} is not known to this version")
    found = {}
    for name, (its, needed) in hints.items():
        if value.get(name) is not None:
            found[name] = from_json(its, value[name], _join(place, name))
        elif needed and name not in value:
            raise ValueError(f"foreign: it has no {_join(place, name)}")
        elif needed:
            raise refusal(_join(place, name), None, describe(_parts(its)[0]))
        elif _parts(its)[2]:
            found[name] = None
    return kind(**found)


@functools.cache
def _fields(kind: type) -> dict[str, tuple[Any, bool]]:
    """Map each field of a dataclass to its type and whether JSON must have it."""
    hints = typing.get_type_hints(kind, include_extras=True)
    missing = dataclasses.MISSING
    return {
        field.name: (
            hints[field.name],
            field.metadata == NEEDED
            or (
                field.default is missing
                and field.default_factory is missing
                and not _parts(hints[field.name])[2]
            ),
        )
        for field in dataclasses.fields(kind)
        if field.metadata != APART
    }


def _parts(kind: Any) -> tuple[Any, Limits | None, bool]:
    """Split a type into plain type, limits, and whether it may be None."""
    optional, limits = False, None
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (kind,) = (each for each in typing.get_args(kind) if each is not type(None))
        optional = True
    if typing.get_origin(kind) is typing.Annotated:
        kind, limits = typing.get_args(kind)
    return kind, limits, optional


def _is_fields(kind: Any) -> TypeGuard[type]:
    """Tell whether a type is a dataclass."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _general(kind: Any) -> Any:
    return typing.get_origin(kind) or kind


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _is_time(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _abbreviated(value: Any) -> str:
    """Shorten any value for a message."""
    huge = isinstance(value, int) and abs(value) > LARGEST  # Python refuses to print thousands of digits
    return "a number of many digits" if huge else repr(str(value)[:40])
