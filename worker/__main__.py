"""The command `tts-worker`: flags and environment to a configuration, then run until a signal."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from host.systemd import Systemd
from wire.logs import set_up_logging
from wire.tracing import NoTracing, Tracer, open_tracer
from worker.app import Worker, build_model
from worker.config import CHATTERBOX_MODELS, Config
from worker.given import ConfigError

MAKE_TINY_CHECKPOINT = "make-tiny-checkpoint"
DOCTOR = "doctor"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker; return 0 after an orderly stop, 1 after a failure, 2 for a configuration that cannot be."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [MAKE_TINY_CHECKPOINT]:
        return _make_tiny_checkpoint(arguments[1:])
    if arguments[:1] == [DOCTOR]:
        from worker.doctor import command

        return command.run(arguments[1:])
    try:
        config = Config.from_environment(arguments, os.environ)
        loop_factory = _loop_factory(config)
        tracer = open_tracer("tts-worker", config.id, config.trace_endpoint)
    except (ConfigError, NoTracing) as error:
        print(f"tts-worker: {error}", file=sys.stderr)
        return 2
    set_up_logging(config.log_level, config.log_format)
    # systemd ends a worker that hangs by SIGABRT: its log then tells in which line of which thread.
    faulthandler.enable()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_run(config, tracer))
    except OSError as error:
        print(f"tts-worker: cannot listen on {config.host}:{config.port}: {error}", file=sys.stderr)
        return 1
    finally:
        tracer.close()


async def _run(config: Config, tracer: Tracer) -> int:
    worker = Worker(config, build_model(config), Systemd(), tracer)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.request_stop)
    await worker.start()
    return await worker.wait_stopped()


def _make_tiny_checkpoint(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"tts-worker {MAKE_TINY_CHECKPOINT}",
        description="Writes a Chatterbox checkpoint of random weights. It speaks noise, for tests and measurements.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", choices=CHATTERBOX_MODELS, default=CHATTERBOX_MODELS[0])
    parser.add_argument(
        "--size", choices=("tiny", "full"), default="tiny", help="full has the published model's shapes"
    )
    parser.add_argument(
        "--end-at", type=int, default=25, help="tokens of 40 ms that it speaks; Turbo counts the text in (default 25)"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    from worker.models.chatterbox.family import FAMILIES
    from worker.models.chatterbox.tiny import make

    make(given.directory, FAMILIES[given.model], size=given.size, end_at=given.end_at, seed=given.seed)
    for path in sorted(given.directory.iterdir()):
        print(f"{path.stat().st_size:>12}  {path}")
    return 0


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
