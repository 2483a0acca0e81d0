"""Model card of an exported backbone, MODEL_CARD.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_lightning.artifacts.records import SPECTRAL, Record, best_stage
from ssl_lightning.artifacts.results import Results
from ssl_lightning.artifacts.run_folder import MODEL_CARD
from ssl_lightning.core.atomic_files import write_file
from ssl_lightning.report.summary import column, headline, unequal_classes

CARD = """\
# {task} on {data}: {backbone}

A backbone pretrained by ssl-lightning. `backbone.safetensors` holds its weights, `backbone.json` how it is
built and fed.

    import ssl_lightning

    backbone = ssl_lightning.load_backbone("{folder}")  # (B, {channels}, H, W) -> list of stage maps

Images are {colour}, normalised with mean {mean} and std {std}; trained at {image_size} px.

## How it was made

| | |
|---|---|
| pretext task | {task} |
| pretraining data | {data} |
| labels that it has seen | {labels} |
| epochs, seed | {epochs}, {seed} |
| hardware, precision | {devices} process(es), {machine}, {precision} |
| code, torch | {git}, {torch} |
| command | `{command}` |

The whole config is `config.yaml`.

## How good it is

{figures}

Test figures (top-1 unless named), at the stage that did best on held-out images. Every figure of every stage,
with its protocol, is in `results.json`.
"""

COLOURS = {  # keys: the input colours in backbone.json
    "RGB": "RGB, floats in [0, 1]",
    "grey": "grey, floats in [0, 1]",
    "RGBX": "RGB with a fourth channel, floats in [0, 1]",
    "L": "the lightness L of CIE Lab, 0 to 100, in each channel "
    "(`ssl_lightning.ops.lab.rgb_to_lab(images)[:, :1]`)",
}


def write_model_card(folder: Path, results: Results, export: dict[str, Any]) -> None:
    """Write the card into the run folder.

    Args:
        folder: The run folder.
        results: Results of the run.
        export: Content of its backbone.json.
    """
    run, shown = results.run, export["input"]
    text = CARD.format(
        **{
            key: getattr(run, key)
            for key in (
                "task",
                "data",
                "labels",
                "backbone",
                "epochs",
                "seed",
                "devices",
                "machine",
                "precision",
                "command",
            )
        },
        folder=folder,
        channels=len(shown["mean"]),
        colour=COLOURS.get(shown["colour"], shown["colour"]),
        mean=_numbers(shown["mean"]),
        std=_numbers(shown["std"]),
        image_size=shown["image_size"],
        git=run.git or "not a git checkout",
        torch=run.versions.get("torch", "?"),
        figures=_figures(results.probes),
    )
    write_file(folder / MODEL_CARD, text)


def _figures(records: list[Record]) -> str:
    shown = [r for r in headline(records) if r.metric not in SPECTRAL]
    rows = ["| probe | branch | stage | untrained | trained |", "|---|---|---|---|---|"]
    for name, branch in dict.fromkeys((column(r), r.branch) for r in shown):
        of = [r for r in shown if (column(r), r.branch) == (name, branch)]
        best = {state: best_stage([r for r in of if r.trained == state]) for state in (False, True)}
        cells = ["-" if (r := best[state]) is None else f"{r.value:.1%}" for state in (False, True)]
        stage = next(r.stage for r in (best[True], best[False]) if r is not None)
        rows.append(f"| {name} | {branch} | {stage} | {cells[0]} | {cells[1]} |")
    rows += [f"\n{line}" for line in unequal_classes(records)]
    return "\n".join(rows) if shown else "It was not probed."


def _numbers(values: list[float]) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in values) + "]"
