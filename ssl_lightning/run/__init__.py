"""One rank of a run."""
