"""Messages of the first process about values that the data reduce."""

from __future__ import annotations

import logging

from pytorch_lightning.utilities import rank_zero_only

log = logging.getLogger(__name__)


@rank_zero_only
def say(message: str) -> None:
    """Log a message in the first process, as a warning so that Python shows it without any setup."""
    log.warning(message)


def reduced(key: str, given: object, used: object, reason: str) -> str:
    """Return the sentence for a value that the data reduce.

    >>> reduced("data.max_labels", 400, 320, "there are 320 labelled images")
    'data.max_labels is 400; 320 is used, since there are 320 labelled images'
    """
    return f"{key} is {given}; {used} is used, since {reason}"
