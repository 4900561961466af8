"""The command `tts-worker`: flags and environment to a configuration, then run until a signal."""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from host.systemd import Systemd
from worker.app import Worker, build_model
from worker.config import Config, ConfigError
from worker.logs import configure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker; return 0 after an orderly stop, 1 after a failure, 2 for a configuration that cannot be."""
    try:
        config = Config.from_environment(sys.argv[1:] if arguments is None else arguments, os.environ)
        loop_factory = _loop_factory(config)
    except ConfigError as error:
        print(f"tts-worker: {error}", file=sys.stderr)
        return 2
    configure(config.log_level)
    # systemd ends a worker that hangs by SIGABRT: its log then tells in which line of which thread.
    faulthandler.enable()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_run(config))
    except OSError as error:
        print(f"tts-worker: cannot listen on {config.host}:{config.port}: {error}", file=sys.stderr)
        return 1


async def _run(config: Config) -> int:
    worker = Worker(config, build_model(config), Systemd())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.request_stop)
    await worker.start()
    return await worker.wait_stopped()


def _loop_factory(config: Config) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if not config.uvloop:
        return None
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        raise ConfigError(
            "--uvloop is set, but uvloop is not installed: pip install 'chatterbox-gateway[uvloop]'."
        ) from None
    return factory


if __name__ == "__main__":
    sys.exit(main())
