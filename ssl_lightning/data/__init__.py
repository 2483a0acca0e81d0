"""Data sets, one file each: pretraining images, and labelled splits for the probes."""
