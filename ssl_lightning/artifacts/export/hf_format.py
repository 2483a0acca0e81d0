"""Folder for the Hugging Face Hub, which `load_backbone` reads offline."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ssl_lightning.artifacts.export.source import ExportSource
from ssl_lightning.artifacts.run_folder import BACKBONE, BACKBONE_CONFIG, MODEL_CARD
from ssl_lightning.artifacts.weights import HF_CONFIG, HF_WEIGHTS, load_backbone, write_weights
from ssl_lightning.core.atomic_files import write_file, write_json

HEADER = """\
---
library_name: ssl-lightning
pipeline_tag: image-feature-extraction
tags:
- self-supervised-learning
---

"""
CARD = """\
# A backbone of ssl-lightning

    import ssl_lightning

    backbone = ssl_lightning.load_backbone("<this folder>")
"""


def write(source: ExportSource, folder: Path) -> Callable[[Tensor], list[Tensor]]:
    """Write `config.json`, `model.safetensors` and the model card; return the outputs of the folder.

    Args:
        source: Any backbone.
        folder: An empty folder.
    """
    write_weights(folder / HF_WEIGHTS, source.backbone.state_dict())
    write_json(folder / HF_CONFIG, source.content)
    card = source.run / MODEL_CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else CARD
    for name, new in ((BACKBONE, HF_WEIGHTS), (BACKBONE_CONFIG, HF_CONFIG)):
        text = text.replace(f"`{name}`", f"`{new}`")
    text = re.sub(r'load_backbone\(".*?"\)', 'load_backbone("<this folder>")', text)
    write_file(folder / "README.md", HEADER + text)
    return load_backbone(folder)
