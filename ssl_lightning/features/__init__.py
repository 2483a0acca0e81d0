"""Features of a frozen backbone."""
