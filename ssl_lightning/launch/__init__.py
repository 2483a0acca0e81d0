"""The process of a command: it starts, watches and ends the ranks; imports no torch."""
