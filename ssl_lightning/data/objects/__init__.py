"""Images that a user has as Python objects, which a config cannot hold."""
