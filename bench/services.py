"""The services that the policies are: which processes each is made of, and how they are started."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from bench.errors import OptionError
from bench.fleet import HOST, Fleet, Gateway, free_port
from bench.scenario import Scenario, Work

# Debian puts servers where a plain user's path does not look.
_SERVER_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

# A plain server has no patience of its own to lose: what waits there waits until it is served or its client leaves.
PATIENT = ("--queue-timeout", "3600", "--request-timeout", "3600", "--max-queue-seconds", "86400")
# With the line inside a worker, silence says nothing: a request may be behind others there.
NEVER_STALLED = ("--stall-timeout", "600")
_WHOLE = ("--segments", "whole", "--queue-order", "fcfs", *PATIENT, *NEVER_STALLED)
# A server whose model is broken answers every request with an error, at once.
_FAILS_AT_ONCE = ("--max-tries", "1", "--queue-timeout", "0.02")
# Far more than ever wait: what comes is handed on to a worker and waits there.
_SLOTS_OF_A_LINE = "64"

_OUR_WORKER = ("worker",)
# Defaults of tts-gateway.
_TIMES = (("--queue-patience", 30.0), ("--queue-timeout", 60.0), ("--stall-timeout", 5.0), ("--request-timeout", 600.0))


class Started(NamedTuple):
    """A service that takes requests at `url`, and its gateways, by which its workers can be found."""

    url: str
    gateways: tuple[Gateway, ...]


@dataclass(frozen=True, slots=True)
class Setting:
    """What a service is started with, the same for all of them."""

    scenario: Scenario
    work: Work
    workers: int

    def worker_options(self, number: int) -> tuple[str, ...]:
        """Return the options of one worker; the last one is the odd one, where there is one."""
        odd = self.scenario.odd_worker_options(self.work)
        return odd if odd is not None and number == self.workers - 1 else self.work.tone_options()

    def is_odd(self, number: int) -> bool:
        return number == self.workers - 1 and self.scenario.odd_worker_options(self.work) is not None

    @property
    def whole_text_worker(self) -> tuple[str, ...]:
        return ("bench.whole_text", str(self.work.piece_characters))


class Service(Protocol):
    """One way to run a fleet."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...

    def check(self) -> None:
        """Raise OptionError when it cannot be started on this machine."""
        ...

    async def start(self, fleet: Fleet, directory: Path, setting: Setting) -> Started:
        """Start its processes; returns when all workers are ready."""
        ...


@dataclass(frozen=True, slots=True)
class Nginx:
    """What people run today: nginx `least_conn` in front of one server a GPU, each first come, first served."""

    name: str = "nginx"
    title: str = "nginx least_conn, whole texts"

    def check(self) -> None:
        find_nginx()

    async def start(self, fleet: Fleet, directory: Path, setting: Setting) -> Started:
        servers = []
        for number in range(setting.workers):
            fails = setting.is_odd(number) and setting.scenario is Scenario.FAILING
            server = await fleet.start_gateway(f"server-{number}", *_WHOLE, *(_FAILS_AT_ONCE if fails else ()))
            options = ("--slots", "1", *setting.worker_options(number))
            await fleet.start_worker(f"worker-{number}", server, *options, module=setting.whole_text_worker)
            servers.append(server)
        for server in servers:
            await fleet.wait_ready(server, 1)
        port = free_port()
        config = directory / "nginx.conf"
        config.write_text(nginx_config(port, [server.url.removeprefix("http://") for server in servers]))
        await fleet.start("nginx", find_nginx(), "-p", f"{directory}/", "-c", str(config), "-e", "stderr")
        await fleet.wait_listening(port)
        return Started(f"http://{HOST}:{port}", tuple(servers))


@dataclass(frozen=True, slots=True)
class OneGateway:
    """Our gateway in front of all workers. `takes_whole_texts` means workers that do. `is_scaled`: the gateway's times
    are as many times shorter than its defaults as the work is: they are to it what the defaults are to real GPUs."""

    name: str
    title: str
    gateway_options: tuple[str, ...] = ()
    worker_options: tuple[str, ...] = ("--slots", "1")
    takes_whole_texts: bool = False
    is_scaled: bool = False

    def check(self) -> None:
        pass

    async def start(self, fleet: Fleet, directory: Path, setting: Setting) -> Started:
        times = scaled_times(setting.work.compression) if self.is_scaled else ()
        gateway = await fleet.start_gateway("gateway", *times, *self.gateway_options)
        module = setting.whole_text_worker if self.takes_whole_texts else _OUR_WORKER
        for number in range(setting.workers):
            options = (*self.worker_options, *setting.worker_options(number))
            await fleet.start_worker(f"worker-{number}", gateway, *options, module=module)
        await fleet.wait_ready(gateway, setting.workers)
        return Started(gateway.url, (gateway,))


DEFAULT = OneGateway("default", "tts-gateway as it comes")
BASELINES: tuple[Service, ...] = (
    Nginx(),
    OneGateway(
        "least-connections",
        "least connections, whole texts, a line in each worker",
        (*_WHOLE, "--policy", "least-connections"),
        ("--slots", _SLOTS_OF_A_LINE, "--batch", "1"),
        takes_whole_texts=True,
    ),
)
SERVICES: tuple[Service, ...] = (*BASELINES, DEFAULT)
ON_DEMAND: tuple[Service, ...] = (OneGateway("scaled", "tts-gateway with its own times scaled too", is_scaled=True),)


def variant(name: str, gateway_options: Sequence[str]) -> OneGateway:
    """Return the default gateway with other options."""
    return OneGateway(name, f"tts-gateway {' '.join(gateway_options)}", tuple(gateway_options))


def scaled_times(compression: float) -> tuple[str, ...]:
    """Return the gateway's times that have to do with waiting, as many times shorter than it has them by default."""
    return tuple(word for flag, seconds in _TIMES for word in (flag, f"{max(seconds / compression, 0.1):g}"))


def find_nginx() -> str:
    """Return where nginx is.

    Raises:
        OptionError: it is not installed.
    """
    found = shutil.which("nginx") or shutil.which("nginx", path=":".join(_SERVER_FOLDERS))
    if found is None:
        raise OptionError(
            "nginx is not installed (Debian: apt-get install nginx-light); --policy-names can leave it out"
        )
    return found


def nginx_config(port: int, servers: Sequence[str]) -> str:
    """Return the configuration of an nginx that runs in the foreground, from a prefix of its own."""
    upstream = "\n".join(f"        server {server};" for server in servers)
    return f"""\
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_buffer_size 1m;
    client_body_temp_path temp_body;
    proxy_temp_path temp_proxy;
    fastcgi_temp_path temp_fastcgi;
    uwsgi_temp_path temp_uwsgi;
    scgi_temp_path temp_scgi;
    upstream speech {{
        least_conn;
{upstream}
        keepalive 64;
    }}
    server {{
        listen {HOST}:{port};
        location / {{
            proxy_pass http://speech;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_connect_timeout 60s;
            proxy_send_timeout 3600s;
            proxy_read_timeout 3600s;
            send_timeout 3600s;
        }}
    }}
}}
"""
