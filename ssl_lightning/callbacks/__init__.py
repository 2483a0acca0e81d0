"""What watches a run and never changes it."""
