"""From results.json to what a person reads."""
