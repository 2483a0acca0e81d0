"""Callbacks that watch a run and never change its training."""
