"""Every option of the gateway: read once from flags and environment, refused when impossible, frozen."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gateway.address import Network, is_loopback
from gateway.balancer import Policy
from gateway.queue import QueueOrder
from wire import logs


class ConfigError(Exception):
    """An option that cannot be; the message names it and says what it may be."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


@dataclass(frozen=True, slots=True)
class Config:
    """The gateway's options. Times in seconds, lengths in characters."""

    listen: Address = Address("127.0.0.1", 8080)
    internal_listen: Address = Address("127.0.0.1", 8081)
    worker_token: str = field(default="", repr=False)
    policy: Policy = Policy.LEAST_CONNECTIONS
    queue_order: QueueOrder = QueueOrder.SHORTEST_FIRST
    queue_timeout: float = 60.0  # above the patience, so that who waits long gets his turn before he is refused
    queue_patience: float = 30.0
    max_queue_seconds: float = 300.0
    whole: bool = False
    first_characters: int = 100
    segment_characters: int = 250
    look_ahead: int = 0
    max_characters: int = 50_000
    max_tries: int = 4
    stall_timeout: float = 5.0
    request_timeout: float = 600.0
    reader_timeout: float = 300.0
    drain_timeout: float = 60.0
    default_model: str | None = None
    voice_aliases: tuple[tuple[str, str], ...] = ()
    data_directory: Path | None = None
    log_level: str = "info"
    log_format: str = "text"
    trace_endpoint: str = ""
    uvloop: bool = False
    keys_file: Path | None = None
    trusted_proxies: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
    idle_timeout: float = 75.0
    body_timeout: float = 30.0
    connections_per_address: int = 256


_DEFAULTS = Config()


class Option(NamedTuple):
    """One flag, its environment variable (TTS_GATEWAY_ and the name in capitals) and the field of Config that it fills.
    `help` shows the default where it has braces. With `low` and `high` it is a number between them, whole where the
    default is."""

    name: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    low: float | None = None
    high: float = 0.0

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


OPTIONS = (
    Option("listen", "public listener (default {})", "HOST:PORT"),
    Option("internal_listen", "control link, admin and metrics; not for the public (default {})", "HOST:PORT"),
    Option("worker_token_file", "file with the token shared with the workers (or TTS_WORKER_TOKEN)", "FILE"),
    Option("policy", "which free worker gets a segment (default {})", choices=tuple(map(str, Policy))),
    Option("queue_order", "which segment goes first (default {})", choices=tuple(map(str, QueueOrder))),
    Option("queue_timeout", "seconds a request waits for its first slot (default {})", low=0, high=3600),
    Option(
        "queue_patience", "seconds after which a request without a slot passes shorter ones (default {})",
        low=0, high=3600,
    ),
    Option(
        "max_queue_seconds", "seconds of work that may wait before requests are refused (default {})",
        low=0, high=86400,
    ),
    Option(
        "segments", "how a text is cut (default sentences; whole: not at all)", choices=("sentences", "whole")
    ),
    Option("first_characters", "longest first segment (default {})", low=20, high=8192),
    Option("segment_characters", "longest other segment (default {})", low=20, high=8192),
    Option(
        "look_ahead", "segments of one request under way at once (default 0: twice as many as the fleet has slots)",
        low=0, high=4096,
    ),
    Option("max_characters", "longest text of a request (default {})", low=1, high=500_000),
    Option(
        "max_tries", "workers that may fail one segment before the request fails (default {})", low=1, high=100
    ),
    Option(
        "stall_timeout", "shortest silence that counts as a hang; long segments get longer (default {})",
        low=0.1, high=600,
    ),
    Option("request_timeout", "seconds for a whole request (default {})", low=1, high=86400),
    Option("reader_timeout", "seconds that a listener may take nothing (default {})", low=1, high=86400),
    Option("drain_timeout", "seconds that requests may still take at a stop (default {})", low=0, high=3600),
    Option("default_model", "model of requests that name none (default: the first by name)"),
    Option("voice_alias", "another name for a voice; may be repeated", "NAME=VOICE"),
    Option(
        "data_directory",
        "where uploaded voices are kept, for one gateway (default: systemd's STATE_DIRECTORY; else none are)", "DIR",
    ),
    Option("log_level", "(default {})", choices=("debug", "info", "warning", "error")),
    Option(
        "keys_file",
        "API keys, made by tts-gateway keys add; SIGHUP reads them anew (default: none; only callers on this machine "
        "are answered)",
        "FILE",
    ),
    Option(
        "trusted_proxies", "proxies whose X-Forwarded-For is believed (default 127.0.0.0/8,::1/128)", "NETWORK,..."
    ),
    Option(
        "idle_timeout",
        "seconds that a connection may take for a request's headers, or between requests; keep it above the proxy's "
        "own (default {})",
        low=1, high=3600,
    ),
    Option("body_timeout", "seconds for a request's body to arrive (default {})", low=0.1, high=3600),
    Option(
        "connections_per_address",
        "connections that one address may hold, proxies and this machine apart; 0: any number (default {})",
        low=0, high=1_000_000,
    ),
    Option("log_format", "key=value pairs, or an object a line (default {})", choices=tuple(logs.FORMATS)),
    Option(
        "trace_endpoint",
        "where spans go, by OTLP over HTTP, like http://127.0.0.1:4318; needs the extra `tracing` (default: "
        "OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere)",
        "URL",
    ),
    Option("uvloop", "run on uvloop (extra `uvloop`; measured: no gain)"),
)  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the gateway's flags."""
    for option in OPTIONS:
        default = getattr(_DEFAULTS, option.name, None)
        shown = f"{default:g}" if isinstance(default, float) else default
        settings: dict[str, Any] = {"help": option.help.format(shown)}
        match option.name, default:
            case "voice_alias", _:
                settings |= {"action": "append", "metavar": option.metavar}
            case _, bool():
                settings |= {"action": "store_true", "default": None}
            case _, int() | float() if option.low is not None:
                settings |= {"type": type(default)}
            case _:
                settings |= {"choices": option.choices, "metavar": option.metavar}
        parser.add_argument(option.flag, **settings)


def read_config(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration: a flag before its environment variable before the default.

    Raises:
        ConfigError: naming the option.
    """

    def given(name: str) -> str | None:
        flag = getattr(options, name, None)
        value = environment.get(f"TTS_GATEWAY_{name.upper()}") if flag is None else flag
        return None if value is None else str(value)

    numbers = {option.name: _number(option, given(option.name)) for option in OPTIONS if option.low is not None}
    chosen = {option.name: _choice(option, given(option.name)) for option in OPTIONS if option.choices is not None}
    keys_file = given("keys_file")
    config = Config(
        **numbers,
        listen=parse_address("--listen", given("listen") or str(_DEFAULTS.listen)),
        internal_listen=parse_address("--internal-listen", given("internal_listen") or str(_DEFAULTS.internal_listen)),
        worker_token=_token(given("worker_token_file"), environment),
        policy=Policy(chosen["policy"]),
        queue_order=QueueOrder(chosen["queue_order"]),
        whole=chosen["segments"] == "whole",
        default_model=given("default_model"),
        voice_aliases=_aliases(getattr(options, "voice_alias", None), environment.get("TTS_GATEWAY_VOICE_ALIAS")),
        data_directory=_data_directory(given("data_directory"), environment),
        log_level=chosen["log_level"],
        log_format=chosen["log_format"],
        trace_endpoint=given("trace_endpoint") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        uvloop=(given("uvloop") or "").lower() in ("1", "true", "yes"),
        keys_file=Path(keys_file) if keys_file else None,
        trusted_proxies=_networks(given("trusted_proxies"), _DEFAULTS.trusted_proxies),
    )
    if not config.worker_token and not config.internal_listen.is_loopback:
        raise ConfigError(
            f"--internal-listen {config.internal_listen} is reachable from other hosts and there is no worker token: "
            "anyone could register a worker. Set TTS_WORKER_TOKEN or --worker-token-file."
        )
    check_public(config, config.listen)
    return config


def check_public(config: Config, address: Address) -> None:
    """Refuse a public listener that strangers reach while there are no keys to tell them from others.

    Raises:
        ConfigError: with the command that mends it.
    """
    if config.keys_file is None and not address.is_loopback:
        raise ConfigError(
            f"--listen {address} is reachable from other hosts and there are no keys: anyone could use it. "
            "Make one with `tts-gateway keys add --name NAME --keys-file FILE` and start with --keys-file FILE, "
            "or listen on a loopback address."
        )


def parse_address(option: str, text: str) -> Address:
    """Return HOST:PORT or [IPV6]:PORT.

    Raises:
        ConfigError: naming the option.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ConfigError(f"{option} must be HOST:PORT with a port from 0 to 65535; it is {text!r}")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def _number(option: Option, text: str | None) -> Any:
    default = getattr(_DEFAULTS, option.name)
    assert option.low is not None
    try:
        value = float(default if text is None else text)
    except ValueError:
        raise ConfigError(f"{option.flag} must be a number, not {text!r}") from None
    if not option.low <= value <= option.high:
        raise ConfigError(f"{option.flag} must lie between {option.low:g} and {option.high:g}; it is {value:g}")
    if isinstance(default, int) and value != int(value):
        raise ConfigError(f"{option.flag} must be a whole number; it is {value:g}")
    return type(default)(value)


def _choice(option: Option, text: str | None) -> str:
    assert option.choices is not None
    value = text or str(getattr(_DEFAULTS, option.name, option.choices[0]))
    if value not in option.choices:
        raise ConfigError(f"{option.flag} must be one of {', '.join(option.choices)}; it is {value!r}")
    return value


def _token(file: str | None, environment: Mapping[str, str]) -> str:
    path = file or environment.get("TTS_WORKER_TOKEN_FILE")
    token = environment.get("TTS_WORKER_TOKEN", "").strip()
    if path is not None:
        try:
            token = Path(path).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--worker-token-file {path}: {getattr(error, 'strerror', error)}") from None
        if not token:
            raise ConfigError(f"--worker-token-file {path} is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("The worker token must be printable ASCII without spaces: it travels in an HTTP header.")
    return token


def _data_directory(given: str | None, environment: Mapping[str, str]) -> Path | None:
    # systemd names several in one variable, separated by colons.
    path = given or environment.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(path) if path else None


def _networks(text: str | None, default: tuple[Network, ...]) -> tuple[Network, ...]:
    if text is None:
        return default
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"--trusted-proxies must be networks such as 10.0.0.0/8: {error}") from None


def _aliases(flags: Sequence[str] | None, variable: str | None) -> tuple[tuple[str, str], ...]:
    pairs = flags if flags is not None else (variable or "").split(",")
    aliases = []
    for pair in filter(None, pairs):
        name, equals, voice = pair.partition("=")
        if not equals or not name or not voice:
            raise ConfigError(f"--voice-alias must be NAME=VOICE; it is {pair!r}")
        aliases.append((name, voice))
    return tuple(aliases)
