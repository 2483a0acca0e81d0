"""Seeds, atomic files, image shapes, CPU facts, errors and stop signals; imports no other room."""
