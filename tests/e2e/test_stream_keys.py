"""Text in pieces, for callers with keys: the same doors as for whole texts, asked for at every speech."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.browser import chromium
from tests.e2e.cluster import Cluster
from tests.e2e.talk import talking
from tests.e2e.test_keys import Fleet, add, keys
from worker.models.tone import decode

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

DOCUMENT = Path(__file__).parents[2] / "docs" / "stream.md"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("stream-keys")) as made:
        made.file = made.directory / "keys.json"
        made.key = {
            "ann": await add(made.file, "ann"),
            "bob": await add(made.file, "bob"),
            "one": await add(made.file, "one", "--concurrent", "1"),
            "few": await add(made.file, "few", "--characters-per-minute", "10"),
            "voices": await add(made.file, "voices", "--scope", "voices"),
        }
        await made.start_gateway("--keys-file", str(made.file))
        await made.start_workers(1)
        yield made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(
    ("name", "status"), [("", 401), ("unknown", 401), ("voices", 403), ("ann", 101)]
)  # fmt: skip
async def test_a_key_with_the_scope_opens_it_and_no_other(fleet: Fleet, name: str, status: int):
    headers = bearer(fleet.key.get(name, "tts_wrong")) if name else {}
    if status == 101:
        async with talking(fleet, headers=headers) as talk:
            await talk.start()
        return
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with talking(fleet, headers=headers):
            pass
    assert refused.value.status == status


async def test_a_key_that_is_revoked_begins_nothing_new_on_a_connection_that_it_opened(fleet: Fleet):
    async with talking(fleet, headers=bearer(fleet.key["bob"])) as talk:
        await talk.start()
        code, _, errors = await keys("revoke", "bob", "--keys-file", fleet.file)
        assert code == 0, errors
        await fleet.reload()
        await talk.say("What was begun is spoken.")
        await talk.tell("end")
        await talk.hear("done")
        assert decode(bytes(talk.audio)).replace(" ", "") == "Whatwasbegunisspoken."
        await talk.tell("start")
        assert (await talk.hear("error"))["error"]["code"] == "unauthorized"
    assert fleet.gateway is not None
    assert fleet.key["bob"] not in fleet.gateway.log_text()


async def test_an_open_speech_counts_as_one_of_those_that_a_key_may_have_at_once(fleet: Fleet):
    headers = bearer(fleet.key["one"])
    async with talking(fleet, headers=headers) as first, talking(fleet, headers=headers) as second:
        await first.start()
        await second.tell("start")
        failed = await second.hear("failed")
        assert (failed["error"]["code"], failed["error"]["param"]) == ("rate_limited", "concurrent")
        assert failed["retry_after_seconds"] > 0
        await first.tell("cancel")
        await first.hear("cancelled")
        await second.start()


async def test_characters_are_paid_for_as_they_come(fleet: Fleet):
    async with talking(fleet, headers=bearer(fleet.key["few"])) as talk:
        await talk.start()
        await talk.say("More than ten characters.")
        await talk.tell("end")
        await talk.hear("done")
        await talk.tell("start")
        failed = await talk.hear("failed")
        assert (failed["error"]["code"], failed["error"]["param"]) == ("rate_limited", "characters_per_minute")


async def test_a_browser_sends_its_key_as_a_subprotocol(fleet: Fleet):
    script = """([url, key]) => new Promise((resolve) => {
      const socket = new WebSocket(url, ["tts", "bearer." + key]);
      const told = [];
      let bytes = 0;
      socket.binaryType = "arraybuffer";
      socket.onopen = () => {
        socket.send(JSON.stringify({ type: "start", format: "pcm" }));
        socket.send(JSON.stringify({ type: "text", text: "From a page." }));
        socket.send(JSON.stringify({ type: "end" }));
      };
      socket.onmessage = ({ data }) => {
        if (typeof data !== "string") bytes += data.byteLength;
        else told.push(JSON.parse(data).type);
        if (told.at(-1) === "done") socket.close();
      };
      socket.onclose = () => resolve({ told, bytes, protocol: socket.protocol });
    })"""
    url = fleet.url.replace("http", "ws") + "/v1/tts/stream"
    async with chromium() as browser:
        page = await browser.new_page()
        await page.goto(fleet.url)
        heard = await page.evaluate(script, [url, fleet.key["ann"]])
        assert heard == {"told": ["started", "segment", "done"], "bytes": 12 * 3200, "protocol": "tts"}
        assert (await page.evaluate(script, [url, "tts_wrong"]))["told"] == []


async def test_the_example_of_the_page_runs_as_printed(tmp_path: Path):
    [example] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway()
        await cluster.start_workers(1)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", example.replace("http://127.0.0.1:8080", cluster.url)),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    assert b"'type': 'done'" in out
    assert decode((tmp_path / "hello.wav").read_bytes()[44:]).replace(" ", "") == "Hellothere.Thiscomesinpieces."
