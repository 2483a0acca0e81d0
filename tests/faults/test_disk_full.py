"""Full disk at each place where a file is written: a small tmpfs, filled at that moment."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults._data import Archive, pack, paint, served
from tests.faults._harness import (
    Command,
    Moment,
    State,
    Undisturbed,
    contents,
    differing,
    end_state,
    fill_at,
    finish,
    folder_of,
    leftovers,
    run,
    start,
    torn,
    train,
)
from tests.faults.test_runs import evaluation, probes_of, report

pytestmark = pytest.mark.slow
MB = 64  # a run with its pictures and checkpoints needs about 1, the archive and its content 8
PLACES = {  # moments of a run at which the disk becomes full
    "config": Moment("open", "..next-config.yaml.tmp.tmp", 1, 0),
    "first results": Moment("open", ".results.json.tmp", 1, 0),
    "first checkpoint": Moment("open", "checkpoints/.last.ckpt.tmp", 1, 0),
    "later checkpoint": Moment("open", "checkpoints/..next-last.ckpt.tmp.tmp", 4, 0),
    "best checkpoint": Moment("open", "checkpoints/.best.ckpt.tmp", 2, 0),
    "curves": Moment("open", "metrics.csv", 6, 0),
    "picture": Moment("open", ".panel.png.tmp", 2, 0),
    "kept picture": Moment("open", "panels/.epoch_0003.png.tmp", 1, 0),
    "weights": Moment("open", ".backbone.safetensors.tmp", 1, 0),
    "export's config": Moment("open", ".backbone.json.tmp", 1, 0),
    "model card": Moment("open", ".MODEL_CARD.md.tmp", 1, 0),
    "last results": Moment("open", ".results.json.tmp", 2, 0),
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a small file system."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MB}m", "tmpfs", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture(scope="module")
def archive() -> Iterator[Archive]:
    with served() as archive:
        yield archive


def fail_and_recover(
    command: Command, watch: Path, moment: Moment, disk: Path, state: Callable[[], State], expected: State
) -> str:
    """Fill the disk at a moment: one error line and no torn file; with room, the same command succeeds."""
    ballast = disk / "ballast"
    status, output = finish(start(command, disk, **fill_at(moment, ballast, watch)))
    assert ballast.exists(), f"the moment {moment} did not come:\n{output}"
    assert status != 0, output
    assert "Traceback" not in output
    assert "no space" in output.lower() or " free; " in output  # CacheSpaceError names the space needed
    assert output.count("error: ") == 1, output
    assert torn(watch) == []
    ballast.unlink()
    run(command, disk)
    assert torn(watch) == []
    assert leftovers(watch) == []
    assert differing(state(), expected) == []
    return output


@pytest.mark.parametrize("place", PLACES)
def test_a_run_on_a_full_disk_says_so_and_recovers(undisturbed: Undisturbed, place: str, disk: Path) -> None:
    folder = folder_of(disk, "run")
    output = fail_and_recover(
        train(disk, "run"), folder, PLACES[place], disk, lambda: end_state(folder), undisturbed.state
    )
    assert f"error: no space is left on the disk of {folder}" in output
    assert "Make room, then " in output


def test_an_evaluation_on_a_full_disk_leaves_the_results(undisturbed: Undisturbed, disk: Path) -> None:
    expected = shutil.copytree(undisturbed.folder, disk / "expected")
    run(evaluation(expected), disk)
    folder = shutil.copytree(undisturbed.folder, disk / "run")
    moment = Moment("open", ".results.json.tmp", 1, 0)
    output = fail_and_recover(
        evaluation(folder), folder, moment, disk, lambda: probes_of(folder), probes_of(expected)
    )
    assert f"error: no space is left on the disk of {folder}" in output
    assert "the same command again" in output


def test_a_report_on_a_full_disk_keeps_the_previous_one(undisturbed: Undisturbed, disk: Path) -> None:
    page = disk / "page"
    run(report(undisturbed.folder, page), disk)
    before = contents(page)
    for name in ("table.md", "report.html"):
        moment = Moment("open", f".{name}.tmp", 1, 0)
        command = report(undisturbed.folder, page)
        output = fail_and_recover(command, page, moment, disk, lambda: contents(page), before)
        assert f"error: no space is left on the disk of {page}" in output
        assert "out=" in output


@pytest.mark.parametrize(
    ("name", "what"), [("scratch/archive.tar.gz", "download"), ("out/second.npy", "unpacking")]
)
def test_a_full_cache_is_one_line_and_the_download_recovers(
    archive: Archive, disk: Path, tmp_path: Path, name: str, what: str
) -> None:
    run(archive.fetch(tmp_path / "other"), tmp_path)
    cache = disk / "cache"
    moment = Moment("open", f".set.tmp-*/{name}", 1, 0)
    output = fail_and_recover(
        archive.fetch(cache), cache, moment, disk, lambda: contents(cache), contents(tmp_path / "other")
    )
    assert f"no space is left in the cache {cache}" in output
    assert "data.root" in output


def test_a_pack_on_a_full_disk_says_what_it_needs(disk: Path, tmp_path: Path) -> None:
    images = paint(tmp_path / "images")
    run(pack(images, tmp_path / "other"), tmp_path)
    (name,) = contents(tmp_path / "other")
    cache = disk / "cache"
    output = fail_and_recover(
        pack(images, cache), cache, Moment("open", f".{name}.tmp", 1, 0), disk,
        lambda: contents(cache), contents(tmp_path / "other"),
    )  # fmt: skip
    assert f"data.cache needs about 19.2 MB in {cache}" in output
    assert "data.cache=false" in output
