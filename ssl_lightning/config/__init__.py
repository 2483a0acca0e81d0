"""Types of config values, and checks of untrusted configs; imports no torch."""
