"""What a command may refuse before it starts."""

from __future__ import annotations


class OptionError(Exception):
    """An option cannot be used as given; the message names it. The command exits with 2."""
