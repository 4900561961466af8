"""What `tts-gateway` does without a command: flags and environment to a configuration, then serve until a signal."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import signal
import sys
from collections.abc import Sequence

from gateway.app import Gateway
from gateway.config import Config, ConfigError, add_options, read_config
from gateway.keys import KeysError
from gateway.voices.directory import DirectoryInUse
from host.systemd import Systemd, listeners
from wire.logs import set_up_logging
from wire.tracing import NoTracing, Tracer, open_tracer

log = logging.getLogger("gateway")


def run(arguments: Sequence[str], epilog: str) -> None:
    """Serve; exits 0 after an ordered stop, 1 when it cannot listen, 2 for an impossible option.

    `epilog` ends the help.
    """
    parser = argparse.ArgumentParser(
        prog="tts-gateway",
        description="One text-to-speech service out of many workers.",
        epilog=epilog,
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
