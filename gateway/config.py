"""Every option of the gateway: read once from flags and environment, refused when impossible, frozen."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    queue_timeout: float = 30.0
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the gateway's flags. Each has an environment variable, TTS_GATEWAY_ and its name in capitals."""
    default = Config()
    add = parser.add_argument
    add("--listen", metavar="HOST:PORT", help=f"public listener (default {default.listen})")
    add(
        "--internal-listen",
        metavar="HOST:PORT",
        help=f"control link, admin and metrics; not for the public (default {default.internal_listen})",
    )
    add("--worker-token-file", metavar="FILE", help="file with the token shared with the workers (or TTS_WORKER_TOKEN)")
    add("--policy", choices=[*map(str, Policy)], help=f"which free worker gets a segment (default {default.policy})")
    add(
        "--queue-order",
        choices=[*map(str, QueueOrder)],
        help=f"which segment goes first (default {default.queue_order})",
    )
    add(
        "--queue-timeout",
        type=float,
        help=f"seconds a request waits for its first slot (default {default.queue_timeout:g})",
    )
    add(
        "--queue-patience",
        type=float,
        help=f"seconds after which a request without a slot passes shorter ones (default {default.queue_patience:g})",
    )
    add(
        "--max-queue-seconds",
        type=float,
        help=f"seconds of work that may wait before requests are refused (default {default.max_queue_seconds:g})",
    )
    add("--segments", choices=["sentences", "whole"], help="how a text is cut (default sentences; whole: not at all)")
    add("--first-characters", type=int, help=f"longest first segment (default {default.first_characters})")
    add("--segment-characters", type=int, help=f"longest other segment (default {default.segment_characters})")
    add(
        "--look-ahead",
        type=int,
        help="segments of one request under way at once (default 0: twice as many as the fleet has slots)",
    )
    add("--max-characters", type=int, help=f"longest text of a request (default {default.max_characters})")
    add(
        "--max-tries",
        type=int,
        help=f"workers that may fail one segment before the request fails (default {default.max_tries})",
    )
    add(
        "--stall-timeout",
        type=float,
        help=f"shortest silence that counts as a hang; long segments get longer (default {default.stall_timeout:g})",
    )
    add("--request-timeout", type=float, help=f"seconds for a whole request (default {default.request_timeout:g})")
    add(
        "--reader-timeout",
        type=float,
        help=f"seconds that a listener may take nothing (default {default.reader_timeout:g})",
    )
    add(
        "--drain-timeout",
        type=float,
        help=f"seconds that requests may still take at a stop (default {default.drain_timeout:g})",
    )
    add("--default-model", help="model of requests that name none (default: the first by name)")
    add("--voice-alias", action="append", metavar="NAME=VOICE", help="another name for a voice; may be repeated")
    add(
        "--data-directory",
        metavar="DIR",
        help="where uploaded voices are kept, for one gateway (default: systemd's STATE_DIRECTORY; else none are)",
    )
    add("--log-level", choices=["debug", "info", "warning", "error"], help=f"(default {default.log_level})")
    add(
        "--keys-file",
        metavar="FILE",
        help="API keys, made by tts-gateway keys add; SIGHUP reads them anew (default: none; only callers on this "
        "machine are answered)",
    )
    add(
        "--trusted-proxies",
        metavar="NETWORK,...",
        help="proxies whose X-Forwarded-For is believed (default 127.0.0.0/8,::1/128)",
    )
    add(
        "--idle-timeout",
        type=float,
        help="seconds that a connection may take for a request's headers, or between requests; keep it above the "
        f"proxy's own (default {default.idle_timeout:g})",
    )
    add("--body-timeout", type=float, help=f"seconds for a request's body to arrive (default {default.body_timeout:g})")
    add(
        "--connections-per-address",
        type=int,
        help="connections that one address may hold, proxies and this machine apart; 0: any number (default "
        f"{default.connections_per_address})",
    )
    add(
        "--log-format",
        choices=logs.FORMATS,
        help=f"key=value pairs, or an object a line (default {default.log_format})",
    )
    add(
        "--trace-endpoint",
        metavar="URL",
        help="where spans go, by OTLP over HTTP, like http://127.0.0.1:4318; needs the extra `tracing` (default: "
        "OTEL_EXPORTER_OTLP_ENDPOINT, or nowhere)",
    )
    add("--uvloop", action="store_true", default=None, help="run on uvloop (extra `uvloop`; measured: no gain)")


def read_config(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Config:
    """Return the configuration: a flag before its environment variable before the default.

    Raises:
        ConfigError: naming the option.
    """
    default = Config()

    def given(name: str) -> str | None:
        flag = getattr(options, name, None)
        value = environment.get(f"TTS_GATEWAY_{name.upper()}") if flag is None else flag
        return None if value is None else str(value)

    def number(name: str, fallback: float, low: float, high: float) -> float:
        text = given(name)
        try:
            value = fallback if text is None else float(text)
        except ValueError:
            raise ConfigError(f"{_flag(name)} must be a number, not {text!r}") from None
        if not low <= value <= high:
            raise ConfigError(f"{_flag(name)} must lie between {low:g} and {high:g}; it is {value:g}")
        return value

    def whole_number(name: str, fallback: int, low: int, high: int) -> int:
        value = number(name, fallback, low, high)
        if value != int(value):
            raise ConfigError(f"{_flag(name)} must be a whole number; it is {value:g}")
        return int(value)

    def choice(name: str, fallback: str, allowed: Sequence[str]) -> str:
        value = given(name) or fallback
        if value not in allowed:
            raise ConfigError(f"{_flag(name)} must be one of {', '.join(allowed)}; it is {value!r}")
        return value

    config = Config(
        listen=parse_address("--listen", given("listen") or str(default.listen)),
        internal_listen=parse_address("--internal-listen", given("internal_listen") or str(default.internal_listen)),
        worker_token=_token(given("worker_token_file"), environment),
        policy=Policy(choice("policy", default.policy, list(Policy))),
        queue_order=QueueOrder(choice("queue_order", default.queue_order, list(QueueOrder))),
        queue_timeout=number("queue_timeout", default.queue_timeout, 0, 3600),
        queue_patience=number("queue_patience", default.queue_patience, 0, 3600),
        max_queue_seconds=number("max_queue_seconds", default.max_queue_seconds, 0, 86400),
        whole=choice("segments", "sentences", ["sentences", "whole"]) == "whole",
        first_characters=whole_number("first_characters", default.first_characters, 20, 8192),
        segment_characters=whole_number("segment_characters", default.segment_characters, 20, 8192),
        look_ahead=whole_number("look_ahead", default.look_ahead, 0, 4096),
        max_characters=whole_number("max_characters", default.max_characters, 1, 500_000),
        max_tries=whole_number("max_tries", default.max_tries, 1, 100),
        stall_timeout=number("stall_timeout", default.stall_timeout, 0.1, 600),
        request_timeout=number("request_timeout", default.request_timeout, 1, 86400),
        reader_timeout=number("reader_timeout", default.reader_timeout, 1, 86400),
        drain_timeout=number("drain_timeout", default.drain_timeout, 0, 3600),
        default_model=given("default_model"),
        voice_aliases=_aliases(getattr(options, "voice_alias", None), environment.get("TTS_GATEWAY_VOICE_ALIAS")),
        data_directory=_data_directory(given("data_directory"), environment),
        log_level=choice("log_level", default.log_level, ["debug", "info", "warning", "error"]),
        log_format=choice("log_format", default.log_format, logs.FORMATS),
        trace_endpoint=given("trace_endpoint") or environment.get("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
        uvloop=(given("uvloop") or "").lower() in ("1", "true", "yes"),
        keys_file=Path(keys_file) if (keys_file := given("keys_file")) else None,
        trusted_proxies=_networks(given("trusted_proxies"), default.trusted_proxies),
        idle_timeout=number("idle_timeout", default.idle_timeout, 1, 3600),
        body_timeout=number("body_timeout", default.body_timeout, 0.1, 3600),
        connections_per_address=whole_number("connections_per_address", default.connections_per_address, 0, 1_000_000),
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


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


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
