"""The composition root: builds every object, owns the order of start-up and shutdown. Reaches for nothing global."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import random
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import aiohttp
from aiohttp import web

from gateway.admin import AdminRoutes
from gateway.api.access import Access
from gateway.api.answer import Answerer
from gateway.api.clips import ClipRoutes
from gateway.api.errors import errors_as_envelopes
from gateway.api.health import HealthRoutes
from gateway.api.live import LiveRoutes
from gateway.api.native import NativeRoutes
from gateway.api.openai import OpenAIRoutes
from gateway.api.openapi import OpenApiRoutes
from gateway.api.page import PageRoutes
from gateway.api.stream import StreamRoutes
from gateway.api.voices import VoiceRoutes
from gateway.config import Address, Config
from gateway.dispatch import CONNECT_SECONDS, Dispatcher
from gateway.door import LimitedRunner
from gateway.keys import Keyring, KeysError, read_keys
from gateway.live import Live
from gateway.metrics import Metrics
from gateway.observer import Observer
from gateway.pool import Pool
from gateway.quota import Quotas
from gateway.registry import Registry
from gateway.service import SpeechService
from gateway.speech import SpeechOptions
from gateway.voices.store import VoiceStore
from host.systemd import Systemd
from wire.tracing import NO_TRACER, Tracer

log = logging.getLogger("gateway")

# A text of the longest kind in \u escapes, and room to spare.
MAX_BODY_BYTES = 4 << 20
_BACKLOG = 1024  # connections that the kernel keeps while the loop is busy, or while systemd restarts the gateway
_LAG_INTERVAL_SECONDS = 0.25
# At a stop, connections that were kept alive may bring one more request for so long, or until half of the drain
# timeout is over while something runs.
_LINGER_SECONDS = 3.0
_STOP_MARGIN_SECONDS = 10.0  # what a stop may take besides the drain


class Gateway:
    """One gateway, running inside `async with`. Two of them fit in one process.

    Raises:
        KeysError: the keys file cannot be read.
    """

    def __init__(
        self,
        config: Config,
        systemd: Systemd | None = None,
        listeners: Mapping[str, Sequence[socket.socket]] | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """`listeners` are sockets that listen already, `public` or `internal`, and go before the addresses."""
        self.config = config
        self._systemd = systemd or Systemd({})
        self._listeners = listeners or {}
        self.metrics = Metrics()
        self.version = importlib.metadata.version("chatterbox-gateway")
        self.live = Live(self.version)
        self.observer = Observer(self.metrics, self.live, tracer)
        self.access = Access(
            _keyring(config), config.trusted_proxies, lambda code: self.metrics.rejected.labels(code).inc()
        )
        self.pool = Pool(
            policy=config.policy,
            order=config.queue_order,
            patience_seconds=config.queue_patience,
            max_queue_seconds=config.max_queue_seconds,
            observer=self.observer,
            random=random.Random(),
            clock=time.monotonic,
        )
        self.metrics.watch(self.pool)
        self.registry = Registry(
            self.pool,
            token=config.worker_token,
            gateway_id=secrets.token_hex(4),
            own_ports=lambda: [address.port for address in self.addresses.values()],
        )
        self.voices = VoiceStore(config.data_directory)
        self.addresses: dict[str, Address] = {}
        self._stopping = False
        self._requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Gateway]:
        """Listen on both addresses for the length of the block; leaving it drains and closes everything.

        Raises:
            OSError: an address cannot be listened on.
            DirectoryInUse: the data directory cannot be had.
        """
        async with contextlib.AsyncExitStack() as stack:
            self.voices.open()
            stack.callback(self.voices.close)
            # Closed in the reverse order: the threads last of all, when nothing can ask for an encoder any more.
            executor = stack.enter_context(ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="encoder"))
            session = await stack.enter_async_context(_session())
            public, internal = self._applications(session, executor)
            internal_runner = await self._listen(stack, internal, "internal", self.config.internal_listen)
            public_runner = await self._listen(stack, public, "public", self.config.listen)
            for watch in (self._watch_event_loop, self._tick, self._keep_systemd_told):
                stack.callback(asyncio.create_task(watch(), name=watch.__name__).cancel)
            self._systemd.ready()
            try:
                yield self
            finally:
                await self._drain(public_runner, internal_runner)

    def reload_keys(self) -> None:
        """Read the keys file anew. A file that cannot be read changes nothing. Requests under way go on."""
        try:
            self.access.keyring = _keyring(self.config)
        except KeysError as error:
            log.error("keys not reloaded, the old ones count: %s", error)

    async def _drain(self, public: web.AppRunner, internal: web.AppRunner) -> None:
        self._systemd.stopping(self.config.drain_timeout + _STOP_MARGIN_SECONDS)
        # Not ready: a balancer in front sends its next request elsewhere.
        self._stopping = True
        # Stop accepting. Connections that are open stay, so that what is being spoken is heard to its end.
        for site in list(public.sites):
            await site.stop()
        self.live.close()
        self._streams.close()
        # A client with a connection that was kept alive cannot know that. What it sends now is still spoken, and the
        # answer tells it to open another connection. Then those are closed on which nothing runs.
        assert public.server is not None
        began, patience = time.monotonic(), self.config.drain_timeout
        while public.server.connections and (waited := time.monotonic() - began) < patience / 2:
            if not self._requests and waited > _LINGER_SECONDS:
                break
            await asyncio.sleep(0.02)
        public.server.pre_shutdown()
        # Drain: running requests end by themselves. The links stay up meanwhile, and failover with them.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, patience - (time.monotonic() - began))):
                await self._idle.wait()
        if self._requests:
            log.warning("stopping with %d requests unfinished after %g s", self._requests, self.config.drain_timeout)
        # What is left is cut off: its connections close without the last chunk, its slots come back.
        await public.cleanup()
        # Workers learn that this gateway is gone and look for its next start; not here, where they would find the door
        # open for another moment.
        for site in list(internal.sites):
            await site.stop()
        await self.registry.close()
        await internal.cleanup()

    def _service(self, session: aiohttp.ClientSession) -> SpeechService:
        config = self.config
        dispatcher = Dispatcher(
            self.pool,
            session,
            self.observer,
            token=config.worker_token,
            max_tries=config.max_tries,
            stall_floor_seconds=config.stall_timeout,
            random=random.Random(),
        )
        options = SpeechOptions(
            queue_timeout_seconds=config.queue_timeout,
            request_timeout_seconds=config.request_timeout,
            first_characters=config.first_characters,
            max_characters=config.segment_characters,
            look_ahead=config.look_ahead,
            whole=config.whole,
        )
        return SpeechService(
            self.pool,
            dispatcher,
            options,
            default_model=config.default_model,
            aliases=dict(config.voice_aliases),
            voices=self.voices,
            quotas=Quotas(time.monotonic),
        )

    def _applications(
        self, session: aiohttp.ClientSession, executor: ThreadPoolExecutor
    ) -> tuple[web.Application, web.Application]:
        config = self.config
        service = self._service(session)
        answerer = Answerer(service, self.observer, executor, config.reader_timeout)
        self._streams = StreamRoutes(
            answerer, self.access.caller, config.max_characters, config.idle_timeout, lambda: self._stopping
        )
        health = HealthRoutes(self.pool, self.version, time.monotonic(), lambda: self._stopping)

        live = LiveRoutes(self.live, self.pool)

        public = web.Application(
            middlewares=[errors_as_envelopes, self.access.public, self._count_requests],
            client_max_size=MAX_BODY_BYTES,
            logger=log,
        )
        for routes in (
            NativeRoutes(answerer, config.max_characters, config.body_timeout),
            OpenAIRoutes(answerer, service, config.max_characters, config.body_timeout),
            self._streams,
            VoiceRoutes(service, self.voices),
            OpenApiRoutes(self.version),
            PageRoutes(),
            live,
            health,
        ):
            routes.add_to(public)
        public.on_response_prepare.append(self._close_when_stopping)
        internal = web.Application(
            middlewares=[errors_as_envelopes, self.access.internal], client_max_size=MAX_BODY_BYTES, logger=log
        )
        clips = ClipRoutes(self.voices, self.registry.authenticate)
        admin = AdminRoutes(self.pool, self.registry, self.metrics)
        for internal_routes in (admin, self.registry, clips, live, health):
            internal_routes.add_to(internal)
        return public, internal

    async def _listen(
        self, stack: contextlib.AsyncExitStack, app: web.Application, name: str, address: Address
    ) -> web.AppRunner:
        # By default aiohttp runs the handler of a caller who left to its end; ours must free the GPU instead.
        runner = LimitedRunner(
            app,
            connections_per_address=self.config.connections_per_address,
            proxies=self.config.trusted_proxies,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=1.0,
            # aiohttp starts this clock when a connection is made and stops it when a request's headers are whole.
            keepalive_timeout=self.config.idle_timeout,
            lingering_time=5.0,
            # A body is read as it comes or not at all: nothing of it is inflated in memory.
            auto_decompress=False,
        )
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        sites: list[web.BaseSite] = [
            web.SockSite(runner, listener, backlog=_BACKLOG) for listener in self._listeners.get(name, ())
        ]
        for site in sites or [web.TCPSite(runner, address.host, address.port, backlog=_BACKLOG)]:
            await site.start()
        host, port = runner.addresses[0][:2]
        self.addresses[name] = Address(host, port)
        return runner

    @web.middleware
    async def _count_requests(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        self._requests += 1
        self._idle.clear()
        try:
            return await handler(request)
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.live.tick()

    async def _close_when_stopping(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._stopping:
            response.headers["Connection"] = "close"
            response.force_close()

    async def _keep_systemd_told(self) -> None:
        """Beat as long as the event loop turns, and say in words how the service is."""
        while True:
            replicas = self.pool.replicas
            ready = sum(replica.can_speak for replica in replicas)
            self._systemd.status(
                f"{'stopping' if self._stopping else 'serving' if ready else 'no worker is ready'}: "
                f"{ready} of {len(replicas)} linked workers ready, {self._requests} requests open"
            )
            self._systemd.beat()
            await asyncio.sleep(self._systemd.beat_seconds)

    async def _watch_event_loop(self) -> None:
        while True:
            due = time.monotonic() + _LAG_INTERVAL_SECONDS
            await asyncio.sleep(_LAG_INTERVAL_SECONDS)
            self.metrics.event_loop_lag.observe(max(0.0, time.monotonic() - due))


def _keyring(config: Config) -> Keyring | None:
    """Return the keys that count, or None when no file of them is configured; says which of the two."""
    if config.keys_file is None:
        log.info("keys: none configured (--keys-file), so only callers on this machine are answered")
        return None
    keyring = Keyring(read_keys(config.keys_file))
    log.log(
        logging.INFO if len(keyring) else logging.WARNING,
        "keys: %d in %s%s",
        len(keyring),
        config.keys_file,
        "" if len(keyring) else "; nobody is answered until there is one",
    )
    return keyring


def _session() -> aiohttp.ClientSession:
    """The HTTP client towards workers: as many connections as there are slots, no total time limit (dispatch bounds
    silence), nothing taken from the environment's proxy settings."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
        trust_env=False,
        auto_decompress=False,
        # Workers are not asked to remember anything, and one that asks us to is none.
        cookie_jar=aiohttp.DummyCookieJar(),
    )
