"""Write `elpv-dataset` (photographs of solar cells) as folders for `compare.py`: python elpv_folders.py OUT

The package comes from PyPI (CC BY-NC-SA 4.0). A quarter of the photographs is the test, 5 % are labelled,
and the rest has no labels. The class is the probability of a defect.
"""

import shutil
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

GRADES = {0: "sound", 1: "maybe_sound", 2: "maybe_defective", 3: "defective"}  # thirds of the probability


def main(out: Path) -> None:
    package = find_spec("elpv_dataset")
    if package is None or package.origin is None:
        sys.exit("elpv-dataset is not installed; run: pip install elpv-dataset")
    source = Path(package.origin).parent / "data"
    grades = defaultdict(list)
    for line in (source / "labels.csv").read_text().splitlines():
        name, probability, _ = line.split()
        grades[GRADES[round(3 * float(probability))]].append(source / name)
    draws = np.random.default_rng(0)
    for grade, files in grades.items():
        draws.shuffle(files)
        test, labelled = round(0.25 * len(files)), round(0.05 * len(files))
        places = [f"test/{grade}"] * test + [f"labelled/{grade}"] * labelled
        places += ["photos"] * (len(files) - len(places))
        for file, place in zip(files, places, strict=True):
            (out / place).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, out / place / file.name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
