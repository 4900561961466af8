"""`tts-gateway`: without a command it serves until told to stop; with one it steers a gateway that runs."""

from __future__ import annotations

import sys
from collections.abc import Callable

_STEERING = ("top", "status", "workers", "drain", "undrain", "load", "unload")
_MACHINE = ("doctor", "install-units", "uninstall-units")
_HELP = (
    f"Commands for a gateway that runs: {', '.join(_STEERING)}; for its API keys: keys; for this machine: "
    f"{', '.join(_MACHINE)}. See tts-gateway COMMAND --help."
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command that is named first, and exit with its code; without one, serve."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if run := _command(arguments[0] if arguments else ""):
        sys.exit(run(arguments))
    from gateway import serve

    serve.run(arguments, _HELP)


def _command(name: str) -> Callable[[list[str]], int] | None:
    """Return what runs a command, None for what is none. Only what it needs is imported: `keys` is for scripts."""
    if name == "keys":
        from gateway import keys_command

        return lambda arguments: keys_command.run(arguments[1:])
    if name == "doctor":
        from gateway.doctor import command

        return lambda arguments: command.run(arguments[1:])
    if name in _MACHINE:
        from deploy import units

        return units.run
    if name in _STEERING:
        from gateway import commands

        return commands.run
    return None


if __name__ == "__main__":
    main()
