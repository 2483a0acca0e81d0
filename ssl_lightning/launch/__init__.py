"""Commands and their process, which starts, watches and ends the ranks; imports no torch."""
