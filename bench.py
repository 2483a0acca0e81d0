"""Measure speed as ratios in one run: `python bench.py --sections steps ops`; `--help` lists the options."""

import sys

from ssl_lightning.bench.__main__ import start

if __name__ == "__main__":
    sys.exit(start(sys.argv[1:]))
