"""The table at the end of a run."""

from rich.console import Console

from ssl_lightning.report.summary import summary_table


def record(stage: str, trained: bool, value: float, heldout: float, metric: str = "top1") -> dict:
    return {
        "probe": "knn",
        "branch": "backbone",
        "stage": stage,
        "trained": trained,
        "metric": metric,
        "value": value,
        "protocol": {"k": 20, "heldout": heldout},
    }


def shown(records: list[dict]) -> list[str]:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary_table(records))
    names = ("trunk ", "stage1 ", "stage2 ")
    return [line for line in console.export_text().splitlines() if line.strip().startswith(names)]


def test_figures_gain_and_the_stage_chosen_on_heldout_images() -> None:
    rows = [
        record("stage1", False, 0.40, 0.42),
        record("stage2", False, 0.45, 0.41),
        record("stage1", True, 0.505, 0.5),
        record("stage2", True, 0.495, 0.6),
        record("stage1", True, 0.99, 0.99, metric="top5"),
    ]
    head, first, second = shown(rows)
    assert "knn k=20" in head
    assert "40.0* → 50.5  +10.5" in first
    assert "45.0  → 49.5*  +4.5" in second


def test_a_control_has_one_figure_and_no_gain() -> None:
    _, line = shown([record("stage1", False, 0.4, 0.4)])
    assert "40.0*" in line
    assert "→" not in line


def test_figures_of_masks_and_boxes_say_what_they_are() -> None:
    rows = []
    for metric, value in (("coco_map", 0.2), ("ap50", 0.4), ("voc07_ap50", 0.5)):
        row = record("stage2", True, value, value, metric)
        rows.append(row | {"probe": "detection", "protocol": {"heldout": value}})
    head, line = shown(rows)
    assert [part.strip() for part in head.split("detection ")[1:]] == ["COCO mAP", "AP50", "VOC07 AP50"]
    assert line.split()[1:] == ["20.0*", "40.0*", "50.0*"]
