"""Tests that the overrides which a refusal suggests are accepted."""

import re
from pathlib import Path

import pytest

from tests.refusals.test_config import refused

SET_TO = re.compile(r"([a-z_]+(?:\.[a-z_]+)+) to ([\w.]+)(?: or (\d+))?")
OVERRIDE = re.compile(r"(?:^|(?<=[ `'(]))\+?[a-z_]+(?:\.[a-z_]+)*=(?:\[[^\]]*\]|[^ ,;`')]+)")
ADVICE = {  # refused overrides, and the overrides that the message must suggest, each alone
    "data.image_size=2": ["data.image_size=4"],
    "task=super_resolution task.scale=4 data.image_size=18": ["data.image_size=16", "data.image_size=20"],
    "task=super_resolution task.input=small": ["backbone=srresnet", "task.input=enlarged"],
    "backbone=torchvision data.image_size=32 data.channels=1 backbone.pretrained=true": [
        "backbone.pretrained=false"
    ],
    "encoding.input=views probe=[knn] probe.knn.ks=[5]": ["encoding.input=image"],
    "data.heldout=0 probe=[linear]": ["probe=[nonlinear]"],
    "task=jigsaw task.cell=16": ["task.cell=null", "data.image_size=48"],
    "task=context_prediction task.tile=4 task.gap=1 task.jitter=3": ["task.jitter=null"],
    "task=combined task.parts=[rotation,inpainting]": ["+task.options.inpainting.adversarial_weight=0"],
    "probe=[] +probe.knn.ks=[5]": ["probe=[knn]"],
    "data.channels=1 task=colorization": ["data.channels=3"],
    "probe=[detection]": ["probe=[linear]"],
}


def backbone_last(override: str) -> bool:
    return override.startswith("backbone=")


def suggested(message: str) -> list[str]:
    """Return the suggestions in a message; overrides that follow each other belong together."""
    found = re.findall(rf"{OVERRIDE.pattern}(?: {OVERRIDE.pattern})*", message)
    set_to = [f"{key}={value}" for key, *values in SET_TO.findall(message) for value in values if value]
    return found + set_to


@pytest.mark.slow
@pytest.mark.parametrize("given", ADVICE)
def test_suggested_overrides_are_accepted(given: str, tmp_path: Path) -> None:
    message = str(refused(given.split(" "), tmp_path / "run"))
    advice = [each for each in suggested(message) if each not in given]
    assert set(ADVICE[given]) <= set(advice), message
    for each in ADVICE[given]:
        keys = {part.partition("=")[0] for part in each.split(" ")}
        kept = [part for part in given.split(" ") if part.partition("=")[0].lstrip("+") not in keys]
        with pytest.raises(AssertionError, match="are accepted"):
            refused(sorted([*kept, *each.split(" ")], key=backbone_last, reverse=True), tmp_path / "run")
