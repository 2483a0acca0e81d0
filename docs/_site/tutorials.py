"""Run the tutorials and write their pages: `python docs/_site/tutorials.py first_run`; without a name, all.

A tutorial is a script in jupytext's percent format. Cells marked `[markdown]` are text, cells marked
`language="bash"` are shell lines behind `# `, and all others are Python. Jupytext turns it into a notebook.
The page has the cells, with what they printed and the figures of matplotlib that they left open.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs/tutorials"
CHECKOUT = (
    "ssl_lightning",
    "conf",
    "tests",
    "docs/results",
)  # a tutorial runs in a copy of these and of *.py
CELL = re.compile(r"^# %%(.*)\n", re.MULTILINE)
OUTPUT = re.compile(r"```\{\.text \.output\}\n(.*?)\n```\n\n", re.DOTALL)
PICTURE = re.compile(r"!\[[^\]]*\]\((\w+-\d+\.png)\)\n\n")
CODE = re.compile(rf"```(python|bash)\n(.*?)\n```\n\n({OUTPUT.pattern})?((?:{PICTURE.pattern})*)", re.DOTALL)
DPI = 100


@dataclass(frozen=True)
class Cell:
    """One cell of a tutorial.

    Args:
        kind: Text, Python or shell lines.
        source: Its lines, without the marks of comments.
    """

    kind: Literal["markdown", "python", "bash"]
    source: str


@dataclass(frozen=True)
class Output:
    """Text that a cell printed, and the pictures of its figures as PNG."""

    printed: str = ""
    pictures: tuple[bytes, ...] = ()


def cells(text: str) -> Iterator[Cell]:
    """Yield the cells of a script; lines before the first one are left out.

    >>> [cell] = cells('# %% [markdown]\\n# A title\\n')
    >>> cell
    Cell(kind='markdown', source='A title')
    """
    _, *parts = CELL.split(text)
    for mark, body in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in mark:
            yield Cell("markdown", uncommented(body))
        elif 'language="bash"' in mark:
            yield Cell("bash", uncommented(body))
        else:
            yield Cell("python", body.strip("\n"))


def uncommented(body: str) -> str:
    return re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE)


def page(name: str, parts: Sequence[Cell], outputs: Sequence[Output] = ()) -> str:
    """Return a tutorial as Markdown; without outputs, only its cells."""
    lines, pictures = [f"<!-- Written by docs/_site/tutorials.py from {name}.py -->\n\n"], 0
    for cell, output in zip(parts, outputs or [Output()] * len(parts), strict=True):
        if cell.kind == "markdown":
            lines.append(f"{cell.source}\n\n")
        else:
            lines.append(f"```{cell.kind}\n{cell.source}\n```\n\n")
        if output.printed:
            lines.append(f"```{{.text .output}}\n{output.printed}\n```\n\n")
        for _ in output.pictures:
            pictures += 1
            lines.append(f"![Figure {pictures} of this page]({name}-{pictures}.png)\n\n")
    return "".join(lines).rstrip("\n") + "\n"


def without_outputs(stored: str) -> str:
    """Return a stored page as `page` writes it without outputs."""
    return PICTURE.sub("", OUTPUT.sub("", stored + "\n")).rstrip("\n") + "\n"


def stored_outputs(parts: Sequence[Cell], stored: str, folder: Path) -> list[Output]:
    """Return the outputs of a stored page whose code is the same.

    Raises:
        ValueError: The code differs.
    """
    found = list(CODE.finditer(stored + "\n"))
    code = [(cell.kind, cell.source) for cell in parts if cell.kind != "markdown"]
    if [(match[1], match[2]) for match in found] != code:
        raise ValueError("the code differs from the stored page; run the tutorial, without --text")
    named = [[match[1] for match in PICTURE.finditer(each[5])] for each in found]
    pictures = [tuple((folder / name).read_bytes() for name in names) for names in named]
    outputs = iter([Output(each[4] or "", shown) for each, shown in zip(found, pictures, strict=True)])
    return [Output() if cell.kind == "markdown" else next(outputs) for cell in parts]


def run(parts: Sequence[Cell], folder: Path) -> list[Output]:
    """Run the cells in a folder: Python in one namespace, each group of shell lines in a bash of its own.

    Raises:
        RuntimeError: A shell line failed; the error holds what it printed.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        outputs = []
        for cell in parts:
            if cell.kind == "bash":
                outputs.append(Output(tidy(run_shell(cell.source, folder), folder)))
            elif cell.kind == "python":
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(compile(cell.source, "<cell>", "exec"), namespace)
                outputs.append(Output(tidy(printed.getvalue(), folder), figures()))
            else:
                outputs.append(Output())
    return outputs


def run_shell(source: str, folder: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", source],
        cwd=folder, env=os.environ | {"PATH": path, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{source}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def tidy(printed: str, folder: Path) -> str:
    """Remove the place of the folder, spaces at line ends, and empty lines around the text."""
    lines = printed.replace(f"{folder}/", "").splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def figures() -> tuple[bytes, ...]:
    """Return the open figures of matplotlib, and close them."""
    from matplotlib import pyplot

    pictures = []
    for number in pyplot.get_fignums():
        with io.BytesIO() as file:
            pyplot.figure(number).savefig(file, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
            pictures.append(file.getvalue())
    pyplot.close("all")
    return tuple(pictures)


def copy_checkout(folder: Path) -> None:
    for name in CHECKOUT:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md"):
        shutil.copy(path, folder)


def write(name: str, out: Path, *, text: bool = False) -> None:
    """Run a tutorial in a fresh copy of the checkout, and write its page and its pictures.

    Args:
        name: Name of the tutorial.
        out: Folder of the pages.
        text: Only the text changed: take the outputs of the stored page.
    """
    parts = list(cells((TUTORIALS / f"{name}.py").read_text()))
    if text:
        outputs = stored_outputs(parts, (out / f"{name}.md").read_text(), out)
        (out / f"{name}.md").write_text(page(name, parts, outputs))
        return
    with tempfile.TemporaryDirectory(prefix="tutorial_") as place:
        folder = Path(place).resolve()
        copy_checkout(folder)
        outputs = run(parts, folder)
    for old in out.glob(f"{name}-*.png"):
        old.unlink()
    pictures = [picture for output in outputs for picture in output.pictures]
    for number, picture in enumerate(pictures, start=1):
        (out / f"{name}-{number}.png").write_bytes(picture)
    (out / f"{name}.md").write_text(page(name, parts, outputs))


def main() -> None:
    names = sorted(path.stem for path in TUTORIALS.glob("*.py"))
    parser = argparse.ArgumentParser(description="Run the tutorials and write their pages.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--out", type=Path, default=TUTORIALS, help="folder of the pages")
    parser.add_argument("--text", action="store_true", help="run nothing; only the text changed")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names):
        parser.error(f"no tutorial {', '.join(sorted(unknown))}; allowed are {', '.join(names)}")
    os.environ["MPLBACKEND"] = "agg"
    for name in given.names or names:
        write(name, given.out.resolve(), text=given.text)


if __name__ == "__main__":
    main()
