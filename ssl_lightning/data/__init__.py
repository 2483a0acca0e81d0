"""Data pairings: the images that pretrain and the labelled splits that judge, one file each."""
