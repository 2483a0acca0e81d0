"""Probe the backbone of a run or of a file: `python evaluate.py run=<run folder> probe=[linear,knn]`."""

import sys

from ssl_lightning.launch.commands import evaluate_main

if __name__ == "__main__":
    sys.exit(evaluate_main(sys.argv[1:]))
