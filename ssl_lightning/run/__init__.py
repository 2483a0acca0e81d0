"""Rank process of a run: build its parts, pretrain, probe, write results."""
