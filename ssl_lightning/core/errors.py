"""The error that ends a command with one line."""

from hydra.errors import CompactHydraException

from ssl_lightning.core.untrusted import printable


class RunError(CompactHydraException):
    """A run that did not finish. Hydra prints it without a traceback: the message is all.

    Names in it may come from a file of anyone: what a terminal would obey is shown, not sent.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
