"""`tts-gateway`: without a command it serves until told to stop; with one it steers a gateway that runs."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import signal
import sys

from deploy import units
from gateway import commands, keys_command
from gateway.app import Gateway
from gateway.config import Config, ConfigError, add_options, read_config
from gateway.keys import KeysError
from gateway.voices.directory import DirectoryInUse
from host.systemd import Systemd, listeners
from wire.logs import set_up_logging
from wire.tracing import NoTracing, Tracer, open_tracer

log = logging.getLogger("gateway")

DOCTOR = "doctor"


def main(arguments: list[str] | None = None) -> None:
    """Serve; exits 0 after an ordered stop, 1 when it cannot listen, 2 for an impossible option. Or run a command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in commands.NAMES:
        sys.exit(commands.run(arguments))
    if arguments and arguments[0] == keys_command.NAME:
        sys.exit(keys_command.run(arguments[1:]))
    if arguments and arguments[0] == DOCTOR:
        from gateway.doctor import command

        sys.exit(command.run(arguments[1:]))
    if arguments and arguments[0] in units.NAMES:
        sys.exit(units.run(arguments))
    parser = argparse.ArgumentParser(
        prog="tts-gateway",
        description="One text-to-speech service out of many workers.",
        epilog=f"Commands for a gateway that runs: {', '.join(commands.NAMES)}; for its API keys: {keys_command.NAME}; "
        f"for this machine: {', '.join((DOCTOR, *units.NAMES))}. See tts-gateway COMMAND --help.",
    )
    add_options(parser)
    try:
        config = read_config(parser.parse_args(arguments))
    except ConfigError as error:
        parser.error(str(error))
    set_up_logging(config.log_level, config.log_format)
    # systemd ends a gateway that hangs by SIGABRT: its log then tells in which line.
    faulthandler.enable()
    try:
        tracer = open_tracer("tts-gateway", str(config.listen), config.trace_endpoint)
    except NoTracing as error:
        parser.error(f"--trace-endpoint: {error}")
    try:
        if config.uvloop:
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(config, tracer))
        else:
            asyncio.run(_serve(config, tracer))
    except ModuleNotFoundError as error:
        parser.error(f"--uvloop: {error}; install chatterbox-gateway[uvloop]")
    except DirectoryInUse as error:
        print(f"tts-gateway: {error}", file=sys.stderr)
        sys.exit(1)
    except KeysError as error:
        parser.error(f"--keys-file: {error}")
    except OSError as error:
        print(f"tts-gateway: cannot listen: {error.strerror or error}. Is another gateway running?", file=sys.stderr)
        sys.exit(1)
    finally:
        tracer.close()


async def _serve(config: Config, tracer: Tracer) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gateway = Gateway(config, Systemd(), listeners(), tracer)
    loop.add_signal_handler(signal.SIGHUP, gateway.reload_keys)
    async with gateway.running():
        log.info("listening public=%s internal=%s", gateway.addresses["public"], gateway.addresses["internal"])
        await stop.wait()
        log.info("stopping: no new requests; those running may take %g s", config.drain_timeout)
        # A second signal does not wait: what runs is cut off, and looks cut off.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, sys.exit, 130)
    log.info("stopped")


if __name__ == "__main__":
    main()
