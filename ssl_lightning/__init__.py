"""Self-supervised pretraining by pretext tasks, probed honestly, on Lightning and Hydra."""

__version__ = "0.1.0"
