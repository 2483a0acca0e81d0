"""Downstream evaluations: one probe, one file. All feature probes share one encode pass."""
