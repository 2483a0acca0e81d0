"""Answers of a probe to the test images, which make gains comparable image by image; imports no torch."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_lightning.artifacts.run_folder import ANSWERS
from ssl_lightning.artifacts.typed_json import from_json, to_json
from ssl_lightning.core.atomic_files import write_json
from ssl_lightning.core.untrusted import check_schema, read_json

if TYPE_CHECKING:
    from ssl_lightning.artifacts.records import Record

SCHEMA = 1
MAX_BYTES = 1 << 26  # of an answers.json; 10,000 test images take 2 kB a record
LABEL_BYTES = 4  # of one label


@dataclass(frozen=True)
class Answers:
    """Test images that a classifier answered right.

    Args:
        right: `(N,)` bits, packed as by `numpy.packbits`.
        labels: `(N,)` classes as little-endian int32.
        test: Digest of the test set; only answers to the same images in the same order are comparable.
    """

    right: bytes
    labels: bytes
    test: str


@dataclass(frozen=True)
class AnswersFile:
    """Content of an answers.json; bytes are base64.

    Args:
        schema: Version of this form.
        labels: Labels of each test set, by its digest.
        right: Bits of each record, by its name (`name_of`).
    """

    schema: int
    labels: dict[str, str]
    right: dict[str, str]


def write_answers(folder: Path, records: Iterable[Record]) -> None:
    """Write the answers of the records into a run folder atomically; no file if no record has any."""
    file = AnswersFile(SCHEMA, {}, {})
    for record in records:
        if found := record.answers:
            file.labels[found.test] = base64.b64encode(found.labels).decode()
            file.right[name_of(record, found.test)] = base64.b64encode(found.right).decode()
    if file.right:
        write_json(folder / ANSWERS, to_json(file))


def with_answers(folder: Path, records: Iterable[Record]) -> list[Record]:
    """Return the records with their answers; without them where the file is absent or broken."""
    try:
        content = read_json(folder / ANSWERS, MAX_BYTES)
        check_schema(content, SCHEMA)
        file: AnswersFile = from_json(AnswersFile, content)
        labels = {test: base64.b64decode(text, validate=True) for test, text in file.labels.items()}
        right = {name: base64.b64decode(text, validate=True) for name, text in file.right.items()}
    except (OSError, ValueError):
        return list(records)
    found = []
    for record in records:
        for test, classes in labels.items():
            bits = right.get(name_of(record, test), b"")
            if len(classes) == LABEL_BYTES * record.n and len(bits) == -(-record.n // 8):
                record = replace(record, answers=Answers(bits, classes, test))
        found.append(record)
    return found


def short_digest(*parts: bytes) -> str:
    """Return 16 hex digits that identify a content."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def name_of(record: Record, test: str) -> str:
    """Name a record and its test set; the value is part of it, so that a newer record has another name."""
    settings = [f"{key}={record.protocol[key]}" for key in ("k", "fraction") if key in record.protocol]
    if record.evaluation is not None:
        settings.append(short_digest(json.dumps(to_json(record.evaluation)).encode()))
    state = "trained" if record.trained else "untrained"
    parts = [test, record.probe, record.branch, record.stage, state, record.metric, *settings]
    return "/".join([*parts, repr(record.value)])
