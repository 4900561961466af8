"""Keys as their owners meet them: no key, the wrong one, one for something else, one that has had its share."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from gateway import keys_command
from tests.e2e.cluster import BIN, Answer, Cluster, Running, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

SENTENCE = "It is one sentence and one segment, long enough for somebody to pull the plug while it is spoken."
LONG = " ".join([SENTENCE] * 8)
PACED = ("--tone-realtime-factor", "0.1")
STRANGER = "203.0.113.5"


async def keys(*arguments: str | Path) -> tuple[int, str, str]:
    """Run `tts-gateway keys …` in this process; return its exit code and what it printed on either stream."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = keys_command.run([str(argument) for argument in arguments])
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
    return code, out.getvalue(), errors.getvalue()


async def add(file: Path, name: str, *options: str) -> str:
    """Make a key with the command; return the key."""
    code, out, errors = await keys("add", "--name", name, *options, "--keys-file", file)
    assert code == 0, errors
    return out.strip()


class Fleet(Cluster):
    """A gateway with keys and two workers, whose segments take two thirds of a second."""

    file: Path
    key: dict[str, str]

    async def ask(
        self, method: str, path: str, key: str = "", *, internal: bool = False, body: Any = None, **headers: str
    ) -> Answer:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        url = (self.internal_url if internal else self.url) + path
        async with self.session.request(method, url, json=body, headers=headers) as response:
            return Answer(response.status, response.headers, await response.read())

    async def say(self, key: str = "", text: str = "Hello.", **headers: str) -> Answer:
        return await self.ask("POST", "/v1/tts", key, body={"text": text}, **headers)

    async def reload(self) -> None:
        """SIGHUP, and wait until the gateway has said what came of it."""
        assert self.gateway is not None
        gateway, before = self.gateway, _reports(self.gateway)
        gateway.signal(signal.SIGHUP)

        async def reported() -> bool:
            return _reports(gateway) > before

        await until(reported, "the gateway to read its keys anew")

    @contextlib.asynccontextmanager
    async def speaking(self, key: str, text: str = LONG) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request in mid-stream: its first audio has come."""
        async with self.session.post(
            f"{self.url}/v1/tts", json={"text": text, "format": "pcm"}, headers={"Authorization": f"Bearer {key}"}
        ) as response:
            assert response.status == 200
            await response.content.readexactly(100)
            yield response


def _reports(gateway: Running) -> int:
    return len(re.findall(r" keys: \d+ in | keys not reloaded", gateway.log_text()))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with Fleet(tmp_path_factory.mktemp("keys")) as made:
        made.file = made.directory / "keys.json"
        made.key = {
            "ann": await add(made.file, "ann"),
            "voices": await add(made.file, "voices", "--scope", "voices"),
            "admin": await add(made.file, "admin", "--scope", "admin"),
            "metrics": await add(made.file, "metrics", "--scope", "metrics"),
            "all": await add(made.file, "all", *(f"--scope={s}" for s in ("speak", "voices", "admin", "metrics"))),
        }
        await made.start_gateway("--keys-file", str(made.file), "--log-level", "debug")
        await made.start_workers(2, *PACED)
        yield made


# ── The command ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_is_shown_once_alone_on_standard_output(tmp_path: Path):
    file = tmp_path / "keys.json"
    process = await asyncio.create_subprocess_exec(
        *(str(BIN / "tts-gateway"), "keys", "add", "--name", "ann", "--keys-file", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin"},
    )
    out, errors = (printed.decode() for printed in await process.communicate())
    assert process.returncode == 0
    assert re.fullmatch(r"tts_[A-Za-z0-9_-]{43}\n", out)
    secret = out.strip()
    assert secret not in errors
    assert "shown this once" in errors
    assert "SIGHUP" in errors
    assert secret not in file.read_text()
    code, out, errors = await keys("list", "--keys-file", file)
    assert code == 0
    assert secret not in out + errors
    assert re.search(r"ann +speak +- +- +- +20\d\d-", out)


async def test_keys_are_listed_with_what_they_may_and_revoked_by_name_or_id(tmp_path: Path):
    file = tmp_path / "keys.json"
    limits = ("--characters-per-minute", "600", "--concurrent", "2", "--queued-seconds", "30")
    await add(file, "ann", *limits, "--scope", "speak", "--scope", "voices")
    await add(file, "bob")
    _, out, _ = await keys("list", "--keys-file", file)
    assert re.search(r"ann +speak,voices +600 +2 +30 ", out)
    id_ = re.search(r"^ *(\w+) +bob ", out, re.M)[1]
    for one, shown in (("ann", "(ann)"), (id_, "(bob)")):
        code, _, errors = await keys("revoke", one, "--keys-file", file)
        assert (code, shown in errors) == (0, True)
    _, out, _ = await keys("list", "--keys-file", file)
    assert "No key" in out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("revoke", "nobody"), 1, "There is no key 'nobody'"),
        (("add", "--name", "ann"), 1, "named 'ann' already"),
        (("add", "--name", "a\nb"), 1, "A name has 1 to 64"),
        (("add", "--name", "x", "--scope", "root"), 2, "invalid choice: 'root'"),
        (("add", "--name", "x", "--concurrent", "-1"), 2, "whole number from 0"),
        (("add", "--name", "x", "--characters-per-minute", "many"), 2, "whole number from 0"),
        (("add",), 2, "--name"),
        ((), 2, "command"),
    ],
)
async def test_a_wrong_command_says_why_and_changes_nothing(tmp_path: Path, arguments: tuple[str, ...], code, says):
    file = tmp_path / "keys.json"
    await add(file, "ann")
    before = file.read_bytes()
    got, out, errors = await keys(*arguments, *(("--keys-file", file) if arguments else ()))
    assert (got, out) == (code, "")
    assert says in errors
    assert file.read_bytes() == before


async def test_the_file_is_named_or_the_command_says_so(tmp_path: Path):
    code, _, errors = await keys("list")
    assert code == 2
    assert "--keys-file" in errors
    code, _, errors = await keys("list", "--keys-file", tmp_path / "none.json")
    assert code == 1
    assert "cannot be read: No such file" in errors


# ── Without keys: this machine only ──────────────────────────────────────────────────────────────────────────────────


async def test_without_keys_only_this_machine_is_answered_and_the_gateway_says_so(tmp_path: Path):
    async with Fleet(tmp_path) as it:
        gateway = await it.start_gateway()
        await it.start_workers(1)
        assert "none configured (--keys-file), so only callers on this machine are answered" in gateway.log_text()
        assert (await it.say()).status == 200
        assert (await it.say("any-key-at-all")).status == 200  # OpenAI's clients must send one
        assert (await it.say(X_Forwarded_For="127.0.0.1")).status == 200
        # A proxy on this machine forwards for somebody who is not.
        for path in ("/v1/voices", "/health", "/v1/models"):
            answer = await it.ask("GET", path, X_Forwarded_For=STRANGER)
            assert (answer.status, answer.error["code"]) == (401, "unauthorized")
            assert "tts-gateway keys add --name" in answer.error["message"]
        assert (await it.say("any", X_Forwarded_For=f"127.0.0.1, {STRANGER}")).status == 401
        assert (await it.ask("GET", "/readyz", X_Forwarded_For=STRANGER)).status == 200
        for path in ("/metrics", "/admin/workers"):
            assert (await it.ask("GET", path, internal=True, X_Forwarded_For=STRANGER)).status == 401


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "example.org:8080"])
async def test_a_public_listener_without_keys_does_not_start_and_names_the_command_that_mends_it(listen: str):
    process = await asyncio.create_subprocess_exec(
        str(BIN / "tts-gateway"), "--listen", listen, stderr=asyncio.subprocess.PIPE, env={"PATH": "/usr/bin:/bin"}
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert b"tts-gateway keys add --name NAME --keys-file FILE" in errors


async def test_a_public_listener_with_keys_starts(tmp_path: Path):
    file = tmp_path / "keys.json"
    secret = await add(file, "ann")
    async with Fleet(tmp_path) as it:
        gateway = await it.start(
            "gateway", "tts-gateway", "--listen", "0.0.0.0:0", "--internal-listen", "127.0.0.1:0", f"--keys-file={file}"
        )
        it.gateway = gateway

        async def listening() -> re.Match[str] | None:
            return re.search(r"listening public=0\.0\.0\.0:(\d+)", gateway.log_text())

        it.url = f"http://127.0.0.1:{(await until(listening, 'the gateway to listen'))[1]}"
        # Even this machine needs a key now.
        assert (await it.ask("GET", "/health")).status == 401
        assert (await it.ask("GET", "/health", secret)).status == 200


@pytest.mark.parametrize("content", [None, '{"keys": [{}]}'])
async def test_a_keys_file_that_is_none_stops_the_start(tmp_path: Path, content: str | None):
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    process = await asyncio.create_subprocess_exec(
        str(BIN / "tts-gateway"), f"--keys-file={file}", stderr=asyncio.subprocess.PIPE, env={"PATH": "/usr/bin:/bin"}
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert f"The keys file {file}".encode() in errors


# ── With keys ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_key_and_a_wrong_one_are_told_apart_and_refused(fleet: Fleet):
    for key, says in (("", "A key is missing"), ("tts_wrong", "not known here"), (fleet.key["ann"][:-1], "not known")):
        answer = await fleet.say(key)
        assert (answer.status, answer.error["code"], answer.error["type"]) == (
            401,
            "unauthorized",
            "authentication_error",
        )
        assert says in answer.error["message"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.headers["X-Request-Id"]
    refused = await fleet.metric("tts_rejected_total", reason="unauthorized")
    assert refused >= 3
    assert (await fleet.say(fleet.key["ann"])).status == 200


async def test_a_key_in_the_address_or_a_cookie_is_none(fleet: Fleet):
    key = fleet.key["ann"]
    for path in (f"/v1/voices?key={key}", f"/v1/voices?api_key={key}", f"/v1/voices?token={key}"):
        assert (await fleet.ask("GET", path)).status == 401
    assert (await fleet.ask("GET", "/v1/voices", Cookie=f"key={key}")).status == 401
    assert (await fleet.ask("GET", "/v1/voices", Authorization=f"Basic {key}")).status == 401


@pytest.mark.parametrize(
    ("method", "path", "opens"),
    [
        ("GET", "/v1/voices", {"ann", "voices", "all"}),
        ("GET", "/v1/audio/voices", {"ann", "voices", "all"}),
        ("GET", "/v1/models", {"ann", "all"}),
        ("GET", "/health", {"ann", "all"}),
        ("POST", "/v1/tts", {"ann", "all"}),
        ("POST", "/v1/audio/speech", {"ann", "all"}),
        ("GET", "/livez", {"", "ann", "voices", "admin", "metrics", "all"}),
        ("GET", "/readyz", {"", "ann", "voices", "admin", "metrics", "all"}),
        ("GET", "/openapi.json", {"", "ann", "voices", "admin", "metrics", "all"}),
    ],
)
async def test_each_key_opens_what_its_scope_says(fleet: Fleet, method: str, path: str, opens: set[str]):
    body = {"text": "Hello.", "input": "Hello."} if method == "POST" else None
    for name, key in {"": "", **fleet.key}.items():
        answer = await fleet.ask(method, path, key, body=body)
        assert answer.status == (200 if name in opens else 403 if name else 401), name
        if answer.status == 403:
            assert (answer.error["code"], answer.error["type"]) == ("forbidden", "permission_error")
            assert "needs one for" in answer.error["message"]


async def test_what_is_not_there_is_no_secret(fleet: Fleet):
    assert (await fleet.ask("GET", "/v1/nothing")).status == 404
    assert (await fleet.ask("GET", "/v1/tts")).status == 405


async def test_the_internal_listener_is_free_to_this_machine_and_by_key_to_others(fleet: Fleet):
    for path, opens in (("/metrics", {"metrics", "admin", "all"}), ("/admin/workers", {"admin", "all"})):
        assert (await fleet.ask("GET", path, internal=True)).status == 200
        for name, key in {"": "", **fleet.key}.items():
            answer = await fleet.ask("GET", path, key, internal=True, X_Forwarded_For=STRANGER)
            assert answer.status == (200 if name in opens else 403 if name else 401), (path, name)
    assert (await fleet.ask("GET", "/readyz", internal=True, X_Forwarded_For=STRANGER)).status == 200
    stranger = {"X_Forwarded_For": STRANGER}
    answer = await fleet.ask("POST", "/admin/workers/w0/drain", fleet.key["ann"], internal=True, **stranger)
    assert answer.status == 403
    assert [worker["state"] for worker in await fleet.listed()] == ["ready", "ready"]


async def test_a_web_page_cannot_steer_the_workers(fleet: Fleet):
    """A browser on this machine may be shown a page of anybody's; what that page sends carries its origin."""
    answer = await fleet.ask("POST", "/admin/workers/w0/drain", internal=True, Origin="https://evil.example")
    assert (answer.status, answer.error["code"]) == (403, "forbidden")
    assert [worker["state"] for worker in await fleet.listed()] == ["ready", "ready"]


async def test_openais_client_shows_its_key_and_gets_its_own_errors(fleet: Fleet):
    import openai

    async def spoken(key: str) -> bytes:
        async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key=key, max_retries=0) as client:
            speech = await client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.")
            return speech.content

    assert len(await spoken(fleet.key["ann"])) > 1000
    with pytest.raises(openai.AuthenticationError, match="not known here"):
        await spoken("sk-wrong")
    with pytest.raises(openai.PermissionDeniedError, match="needs one for speak"):
        await spoken(fleet.key["metrics"])


async def test_a_request_counts_for_its_key_and_not_for_its_address(fleet: Fleet):
    assert fleet.gateway is not None
    gateway = fleet.gateway
    await fleet.say(fleet.key["ann"], X_Request_Id="by-key", X_Forwarded_For=STRANGER)
    await fleet.say(fleet.key["all"], X_Request_Id="by-other-key", X_Forwarded_For=STRANGER)

    async def callers() -> set[str]:  # a request's line follows its last byte
        found = re.findall(r"request_id=by-(?:other-)?key .*caller=(key:\w+)", gateway.log_text())
        return set(found) if len(found) == 2 else set()

    assert len(await until(callers, "both requests in the log")) == 2


# ── Limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_that_has_its_requests_is_refused_the_next_and_not_for_long(fleet: Fleet):
    key = await add(fleet.file, "one at once", "--concurrent", "1")
    await fleet.reload()
    async with fleet.speaking(key) as first:
        answer = await fleet.say(key)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (429, "rate_limited", "concurrent")
        assert answer.error["type"] == "rate_limit_error"
        assert int(answer.headers["Retry-After"]) >= 1
        assert (await fleet.say(fleet.key["ann"])).status == 200  # nobody else is
        await first.read()

    async def free() -> bool:
        return (await fleet.say(key)).status == 200

    await until(free, "the key to be good for another request")
    # Hanging up frees it as well.
    async with fleet.speaking(key) as second:
        second.close()
    await until(free, "the key to be good again after a hang-up")


async def test_a_key_that_has_had_its_characters_is_told_when_to_come_back(fleet: Fleet):
    key = await add(fleet.file, "few words", "--characters-per-minute", "60")
    await fleet.reload()
    assert (await fleet.say(key, "a" * 30 + ". " + "b" * 90 + ".")).status == 200
    answer = await fleet.say(key)
    assert (answer.status, answer.error["code"]) == (429, "rate_limited")
    assert answer.error["param"] == "characters_per_minute"
    assert 30 <= int(answer.headers["Retry-After"]) <= 70
    # What was refused for the text's own sake cost nothing, and is still told so.
    assert (await fleet.say(fleet.key["ann"], "")).status == 422


async def test_a_key_may_queue_no_more_work_than_its_share(fleet: Fleet):
    key = await add(fleet.file, "short line", "--queued-seconds", "1")
    await fleet.reload()
    many = await asyncio.gather(*(fleet.say(key, LONG) for _ in range(12)))
    refused = [answer for answer in many if answer.status == 429]
    assert refused
    assert {answer.status for answer in many} == {200, 429}
    assert {answer.error["param"] for answer in refused} == {"queued_seconds"}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert (await fleet.say(fleet.key["ann"])).status == 200


# ── Reload ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_key_revoked_in_mid_stream_is_heard_to_its_end_and_opens_nothing_more(fleet: Fleet):
    key = await add(fleet.file, "soon gone")
    assert (await fleet.say(key)).status == 401  # until the gateway is told
    await fleet.reload()
    whole = await fleet.ask("POST", "/v1/tts", key, body={"text": LONG, "format": "pcm", "seed": 7})
    async with fleet.session.post(
        f"{fleet.url}/v1/tts",
        json={"text": LONG, "format": "pcm", "seed": 7},
        headers={"Authorization": f"Bearer {key}"},
    ) as response:
        heard = await response.content.readexactly(100)
        assert (await keys("revoke", "soon gone", "--keys-file", fleet.file))[0] == 0
        await fleet.reload()
        assert (await fleet.say(key)).status == 401
        assert not response.content.at_eof()
        heard += await response.read()
    assert heard == whole.body
    assert (await fleet.say(fleet.key["ann"])).status == 200


async def test_a_broken_file_changes_nothing_and_is_told(fleet: Fleet):
    assert fleet.gateway is not None
    good = fleet.file.read_text()
    try:
        fleet.file.write_text(good[: len(good) // 2])
        await fleet.reload()
        assert "keys not reloaded, the old ones count: The keys file" in fleet.gateway.log_text()
        assert (await fleet.say(fleet.key["ann"])).status == 200
        assert (await fleet.say("tts_wrong")).status == 401
    finally:
        fleet.file.write_text(good)
    await fleet.reload()
    assert (await fleet.say(fleet.key["ann"])).status == 200


async def test_when_the_last_key_is_gone_nobody_is_answered(fleet: Fleet):
    good = fleet.file.read_text()
    try:
        fleet.file.write_text('{"keys": []}')
        await fleet.reload()
        assert (await fleet.say()).status == 401
        assert (await fleet.say(fleet.key["ann"])).status == 401
        assert (await fleet.ask("GET", "/readyz")).status == 200
    finally:
        fleet.file.write_text(good)
        await fleet.reload()


async def test_no_key_is_ever_in_a_log(fleet: Fleet):
    """Runs last: at debug, after right keys, wrong ones and ones in wrong places."""
    secrets = [*fleet.key.values(), "tts_wrong", "sk-wrong", fleet.token]
    logs = [fleet.gateway, *fleet.workers.values()]
    for running in logs:
        assert running is not None
        text = running.log_text()
        assert len(text) > 100
        for secret in secrets:
            assert secret not in text
    assert "Bearer" not in "".join(running.log_text() for running in logs if running)
