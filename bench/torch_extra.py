"""Refuses a sub-command that needs torch where it is not installed."""

from __future__ import annotations

import importlib.util

from bench.errors import OptionError


def need_torch(subcommand: str) -> None:
    """Return where torch and upstream's package are installed.

    Raises:
        OptionError: they are not; says what to install.
    """
    for name in ("torch", "chatterbox"):
        if importlib.util.find_spec(name) is None:
            raise OptionError(f"{subcommand} needs {name}: install 'chatterbox-gateway[bench,chatterbox]'")
