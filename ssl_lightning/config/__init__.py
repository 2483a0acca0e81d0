"""Types of config values, and trust of configs from elsewhere; imports no torch."""
