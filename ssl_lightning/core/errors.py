"""Error that ends a command with one line."""

from hydra.errors import CompactHydraException

from ssl_lightning.core.untrusted import printable


class RunError(CompactHydraException):
    """Failure of a run; Hydra prints its message without a traceback.

    The message may quote untrusted files, so characters that a terminal would obey are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
