"""Pretext tasks and controls: one task, one file, one LightningModule."""
