"""Tests of README and docs: length, sentences, links and anchors, versions."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import ssl_lightning

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```.*?^```\n", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
INCLUDED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}  # pages of the site
GENERATED = {"config.md", "api.md"}  # their anchors are made by `make docs`, which checks them
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/tutorials").glob("*.md")])


def prose(text: str) -> str:
    """Return the sentences of a page: no code, tables, headings, comments, pictures or addresses."""
    text = re.sub(r"<!--.*?-->", "", FENCE.sub("", text), flags=re.DOTALL)
    kept = ["" if line.startswith(("    ", "|", "#", "![")) else line for line in text.splitlines()]
    return re.sub(r"\]\([^)]*\)", "]", "\n".join(kept))


def sentences(text: str) -> list[list[str]]:
    """Return the words of each sentence; a list item, a colon at a line end and an empty line end one."""
    parts = re.split(r"(?<=[.!?])\**\s|\n- |:\n|\n\s*\n", prose(text))
    return [words for part in parts if (words := re.findall(r"\w[\w.=/'-]*", part))]


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), flags=re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", heading) for heading in plain}


def links(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield file and anchor of each link of a page to another page, a picture or itself."""
    for address in LINK.findall(FENCE.sub("", path.read_text())):
        if "://" not in address:
            name, _, anchor = address.partition("#")
            place = (path.parent / name).resolve() if name else path
            yield ROOT / INCLUDED.get(place.name, place) if place.parent == ROOT / "docs" else place, anchor


def test_the_readme_is_short() -> None:
    figures = re.compile(r"^\|.*±.*\|\n", re.MULTILINE)  # rows of the table of results
    assert len(figures.sub("", README).split()) <= 1500
    assert len(README.splitlines()) <= 200


def test_the_sentences_of_the_readme_are_short() -> None:
    lengths = [len(words) for words in sentences(README)]
    assert len(lengths) > 30
    assert sum(lengths) / len(lengths) < 20
    assert max(lengths) <= 30, max(sentences(README), key=len)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for file, anchor in links(path):
        assert file.exists() or file.name in GENERATED, f"{file} does not exist"
        if anchor and file.suffix == ".md" and file.name not in GENERATED:
            assert anchor in anchors(file), f"{file.name} has no #{anchor}"


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = set(re.findall(r": ([\w/]+\.md)$", text, flags=re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES if path.parent != ROOT}
    assert named == pages | {"config.md"}


def test_the_version_is_the_same_everywhere() -> None:
    version = ssl_lightning.__version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    released = f"## {version} - {citation['date-released']}"
    assert released in (ROOT / "CHANGELOG.md").read_text()
