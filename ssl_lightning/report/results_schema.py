"""JSON schema of results.json; `python -m ssl_lightning.report.results_schema` rewrites its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssl_lightning.artifacts.field_types import FRACTION
from ssl_lightning.artifacts.records import LESS_IS_BETTER, SPECTRAL
from ssl_lightning.artifacts.results import ResultsFile
from ssl_lightning.artifacts.typed_json import json_schema
from ssl_lightning.core.atomic_files import write_file

SCHEMA_PATH = Path(__file__).parent / "results.schema.json"


def results_schema() -> dict[str, Any]:
    """Build the JSON schema of the results.json of this version."""
    schema = json_schema(ResultsFile)
    record = schema["properties"]["probes"]["items"]
    own = SPECTRAL | LESS_IS_BETTER
    bounds: list[tuple[dict[str, Any], Any]] = [({"const": metric}, limits) for metric, limits in own.items()]
    bounds.append(({"not": {"enum": list(own)}}, FRACTION))
    record["allOf"] = [
        {
            "if": {"properties": {"metric": metric}},
            "then": {"properties": {"value": limits.json_schema()}},
        }
        for metric, limits in bounds
    ]
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "results.json of one run; the protocol of a record is protocols[protocol] and own together",
    }
    return head | schema


def schema_text() -> str:
    """Return the content of the schema file."""
    return json.dumps(results_schema(), indent=1) + "\n"


if __name__ == "__main__":
    write_file(SCHEMA_PATH, schema_text())
