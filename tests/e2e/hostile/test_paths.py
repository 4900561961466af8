"""Names that climb: nothing that a client sends becomes part of a path, and no answer tells a file from none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
import pytest_asyncio

from tests.e2e.cluster import Cluster
from tests.e2e.hostile.raw import exchange
from tests.e2e.hostile.test_smuggling import port_of

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

# After the holes of Chatterbox-TTS-Server (136, 147) and xtts-api-server (61), and the usual lists.
CLIMBS = [
    "../../etc/passwd", "../" * 12 + "etc/passwd", "/etc/passwd", "//etc/passwd", "....//....//etc/passwd",
    "..\\..\\etc", "..;/..;/etc/passwd", "%2e%2e%2fetc%2fpasswd", "%252e%252e%252fetc", "..%2f..%2fetc",
    "..%c0%af..%c0%afetc", "..%5c..", "file:///etc/passwd", "~/.ssh/id_rsa", "$HOME", "alto/../../etc/passwd",
    "alto/../alto", "./alto", "alto/.", "alto\x00.wav", "alto%00", "alto.wav", "alto ", " alto", "ALTO/..",
    "C:\\Windows\\win.ini", "\\\\host\\share", "proc/self/environ", "/proc/self/environ", "/dev/zero",
    "/dev/stdin", "..", ".", "...", "", "con", "aux.wav", "a" * 300, "\u2025/\u2025/etc", "\uff0e\uff0e/etc",
    "al\x00to", "`id`", "$(id)", "|id", ";id", "{{7*7}}", "${7*7}", "%s%n", "*", "?", "[a-z]",
]  # fmt: skip
SECRETS = (b"root:", b"BEGIN ", b"/root", b"/home", b"Traceback", b"Errno", b"No such file")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("paths")) as made:
        data = made.directory / "data"
        await made.start_gateway("--data-directory", str(data), "--queue-timeout", "2")
        await made.start_workers(1)
        yield made


@pytest.mark.parametrize(
    ("path", "field"),
    [("/v1/tts", "voice"), ("/v1/tts", "model"), ("/v1/audio/speech", "voice"), ("/v1/audio/speech", "model")],
)
async def test_a_name_that_climbs_is_an_unknown_name(fleet: Cluster, path: str, field: str):
    for climb in CLIMBS:
        answer = await fleet.post(path, {"text": "Hello.", "input": "Hello.", field: climb})
        if climb.strip() == "alto" and field == "voice":
            assert answer.status == 200  # blanks around a name are not part of it
            continue
        assert answer.status in (404, 422), (climb, answer)
        assert answer.error["code"] in ("voice_not_found", "model_not_found", "invalid_value"), climb
        assert not any(secret in answer.body for secret in SECRETS), climb


@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
@pytest.mark.parametrize("prefix", ["/v1/voices/", "/v1/models/", "/v1/audio/voices/", "/page/", "/"])
async def test_a_path_that_climbs_leads_nowhere(fleet: Cluster, method: str, prefix: str):
    """As bytes on the wire, since client libraries tidy a path up before they send it."""
    port = port_of(fleet.url)
    few = asyncio.Semaphore(8)

    async def one(climb: str, *, quoted: bool) -> None:
        target = prefix + (quote(climb, safe="") if quoted else quote(climb, safe="/.%;~\\$`|*?[]{}()"))
        body = json.dumps({"name": climb}).encode()
        head = (
            f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        async with few:
            raw = await exchange(port, head.encode() + body)
        harmless = method == "GET" and raw.statuses == [200]  # "", "." and "?" leave the list, or the page, itself
        assert harmless or (len(raw.statuses) == 1 and 400 <= raw.statuses[0] < 500), (target, raw)
        assert not any(secret in raw.data for secret in SECRETS), (target, raw)

    await asyncio.gather(*(one(climb, quoted=quoted) for climb in CLIMBS for quoted in (True, False)))
