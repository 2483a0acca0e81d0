"""Downstream evaluations: one probe, one file. Features are encoded once for all of them."""
