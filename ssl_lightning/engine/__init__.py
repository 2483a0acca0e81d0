"""Trainer, optimizers, sharding, CUDA graphs and determinism: running steps on hardware."""
