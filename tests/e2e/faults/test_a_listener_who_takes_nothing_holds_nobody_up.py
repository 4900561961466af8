"""A client that does not read: its audio waits within bounds, no worker waits for it, and in the end it is cut off."""

import asyncio
import json
import socket
from urllib.parse import urlsplit

import pytest

from tests.e2e.cluster import Cluster, until
from worker.models.tone import decode

pytestmark = pytest.mark.e2e

# Some 16 MB of audio: more than all socket buffers between here and there.
LONG = "Nobody takes this audio, so it has to wait somewhere, but never on a worker. " * 65


async def deaf_client(cluster: Cluster) -> socket.socket:
    """Send a request and read nothing of the answer."""
    address = urlsplit(cluster.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((address.hostname, address.port))
    body = json.dumps({"text": LONG, "format": "pcm"}).encode()
    head = f"POST /v1/tts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


async def test_its_workers_are_free_and_it_is_cut_off_in_the_end(cluster: Cluster):
    await cluster.start_gateway("--reader-timeout", "1", "--look-ahead", "2")
    await cluster.start_workers(2, "--slots", "1")
    deaf = [await deaf_client(cluster) for _ in range(3)]
    try:
        # All the slots of the fleet would be taken, if deaf listeners held any.
        answer = await cluster.speak("Somebody else is served meanwhile.", format="pcm")
        assert decode(answer.body) == "Somebody else is served meanwhile."

        async def cut_off() -> bool:
            return await cluster.metric("tts_requests_total", outcome="cancelled") == len(deaf)

        await until(cut_off, "the deaf listeners to be cut off")
        assert "error=slow_reader" in cluster.gateway.log_text()
        await cluster.wait_idle()
        assert await cluster.metric("tts_requests_in_progress") == 0
    finally:
        for connection in deaf:
            connection.close()
    await asyncio.sleep(0)
