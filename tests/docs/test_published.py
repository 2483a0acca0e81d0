"""The table of published and measured figures in docs/tasks.md repeats the benchmarks and the README."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
# of the columns of the page: the benchmark and the column of a published figure
PUBLISHED = [
    ("alexnet_imagenet_linear", "conv4"),
    ("alexnet_voc", "classification 2007"),
    ("alexnet_voc", "segmentation 2012"),
]


def cells(page: str, start: str) -> dict[str, list[str]]:
    """Return the cells of a Markdown table by the name in its first column."""
    table = (ROOT / page).read_text().partition(start)[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].replace(" ", "_").replace("super-", "super_"): row[1:] for row in rows}


def test_the_page_repeats_the_figures() -> None:
    shown = cells("docs/tasks.md", "\n| task | ImageNet")
    measured = cells("README.md", "\n| task | seeds")
    for number, (benchmark, column) in enumerate(PUBLISHED):
        text = (ROOT / f"conf/benchmark/{benchmark}.yaml").read_text()
        listed = yaml.safe_load(text)["benchmark"]["published"]
        found = {each["row"]: each["value"] for each in listed if each["column"] == column}
        assert {task: row[number] for task, row in shown.items()} == {
            task: str(found.get(task, "-")) for task in shown
        }
    for task, row in shown.items():
        assert measured[task][3].startswith(f"{row[3]} "), task
