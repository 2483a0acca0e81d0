"""Add the page of config keys to the site, a hook of mkdocs."""

from __future__ import annotations

import sys
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from config_page import ROOT, page

PAGE = "config.md"


def on_files(files: Files, config: object) -> Files:
    package = griffe.load("ssl_lightning", search_paths=[str(ROOT)])
    content = page(lambda target, key: annotation_of(target, key, package))
    files.append(File.generated(config, PAGE, content=content))
    return files


def annotation_of(target: str, key: str, package: griffe.Object) -> str:
    """Return the annotation of a keyword of the constructor that a config names; empty if unknown."""
    if not target.startswith("ssl_lightning."):
        return ""
    found = package[target.removeprefix("ssl_lightning.")]
    for each in (found, *(found.mro() if found.is_class else ())):
        if key in each.parameters:
            return str(each.parameters[key].annotation or "")
    return ""
