"""The error that ends a command with one line."""

from hydra.errors import CompactHydraException


class RunError(CompactHydraException):
    """A run that did not finish. Hydra prints it without a traceback: the message is all."""
