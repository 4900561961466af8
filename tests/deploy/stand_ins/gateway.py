"""Stands in for tts-gateway: takes links, lists the workers on them, is ready while one of them is. Speaks nothing."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal

from aiohttp import WSMsgType, web
from journal import note

from wire.link import LINK_PATH, Hello, Status, Welcome, encode, parse


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True)
    parser.add_argument("--internal-listen", required=True)
    parser.add_argument("--drain-timeout", required=True)
    parser.add_argument("--data-directory", required=True)
    options = parser.parse_args()
    token = os.environ["TTS_WORKER_TOKEN"]
    workers: dict[str, dict[str, str]] = {}
    links: set[web.WebSocketResponse] = set()

    async def link(request: web.Request) -> web.WebSocketResponse:
        if request.headers.get("Authorization") != f"Bearer {token}":
            raise web.HTTPUnauthorized
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        hello = parse(await socket.receive_str())
        assert isinstance(hello, Hello)
        links.add(socket)
        workers[hello.worker] = {"id": hello.worker, "state": hello.state, "address": f"127.0.0.1:{hello.port}"}
        await socket.send_str(encode(Welcome("stand-in")))
        try:
            async for message in socket:
                assert message.type is WSMsgType.TEXT
                if isinstance(status := parse(message.data), Status):
                    workers[hello.worker]["state"] = status.state
        finally:
            del workers[hello.worker]
            links.discard(socket)
        return socket

    async def list_workers(_: web.Request) -> web.Response:
        return web.json_response(list(workers.values()))

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(status=200 if any(row["state"] == "ready" for row in workers.values()) else 503)

    internal, public = web.Application(), web.Application()
    internal.router.add_get(LINK_PATH, link)
    internal.router.add_get("/admin/workers", list_workers)
    public.router.add_get("/readyz", readyz)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    runners = []
    for application, address in ((internal, options.internal_listen), (public, options.listen)):
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        await runner.setup()
        host, _, port = address.rpartition(":")
        await web.TCPSite(runner, host, int(port)).start()
        runners.append(runner)
    note("gateway", "began", os.getpid(), token)
    await stop.wait()
    note("gateway", "was-asked-to-stop", os.getpid())
    for socket in list(links):
        await socket.close()
    for runner in runners:
        await runner.cleanup()
    note("gateway", "ended", os.getpid())


if __name__ == "__main__":
    asyncio.run(main())
