"""Benchmarks of speed, as ratios within one run: `python bench.py`."""
