"""Types of the fields of results.json, with their bounds; imports no torch."""

from __future__ import annotations

from typing import Annotated

from ssl_lightning.artifacts.typed_json import Limits

FRACTION = Limits("a fraction, 0 to 1", minimum=0, maximum=1)

Name = Annotated[str, Limits("a text of at most 200 characters", longest=200)]  # the limit of file names
Count = Annotated[int, Limits("a whole number, 0 or more", minimum=0)]
OneOrMore = Annotated[int, Limits("a whole number, 1 or more", minimum=1)]
Amount = Annotated[float, Limits("a number, 0 or more", minimum=0)]
Fraction = Annotated[float, FRACTION]
Digest = Annotated[str, Limits("a SHA-256 of 64 hex digits", pattern="[0-9a-f]{64}")]
StageName = Annotated[str, Limits("stage and a number, such as stage3", pattern="stage[1-9][0-9]{0,5}")]
Time = Annotated[str, Limits("a time of ISO 8601", time=True)]
