"""Seeds, atomic files, image shapes, CPU facts, errors, stop signals; imports nothing of the project."""
