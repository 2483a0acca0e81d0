"""Speed, as ratios measured in one run: `python bench.py`."""
