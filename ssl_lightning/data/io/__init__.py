"""Files in, tensors out: downloads, decoding, augmentation and the batch loader."""
