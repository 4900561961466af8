"""Text that arrives in pieces over a WebSocket: heard once, in order, as it comes; and left at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.cluster import Cluster, until
from tests.e2e.ears import Ears, record, word_error_rate
from tests.e2e.talk import Talk, talking
from tests.e2e.texts import PARAGRAPH, SENTENCES
from worker.models.tone import SAMPLE_RATE, decode

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

TEXT = " ".join(SENTENCES)
# Ten times as fast as people speak: a segment takes two thirds of a second.
PACED = ("--tone-realtime-factor", "0.1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Two workers that every test leaves as it found them."""
    async with Cluster(tmp_path_factory.mktemp("stream")) as made:
        await made.start_gateway("--max-characters", "5000")
        await made.start_workers(2, "--slots", "2")
        yield made


def bare(text: str) -> str:
    return "".join(text.split())


def pieces_of(text: str, chance: random.Random) -> list[str]:
    """Cut a text anywhere, as a language model does."""
    cuts = sorted(chance.sample(range(1, len(text)), min(len(text) - 1, len(text) // 6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


# ── What is said is heard ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(4))
async def test_a_text_in_random_pieces_is_heard_once_and_in_order(fleet: Cluster, seed: int):
    async with talking(fleet) as talk:
        await talk.start()
        await talk.say(*pieces_of(TEXT, random.Random(seed)))
        await talk.tell("end")
        done = await talk.hear("done", "failed")
    assert done["type"] == "done"
    assert bare(decode(bytes(talk.audio))) == bare(TEXT)
    assert done["audio_seconds"] == pytest.approx(len(talk.audio) / 2 / SAMPLE_RATE, abs=0.001)
    assert done["characters"] == len(TEXT)
    segments = talk.all("segment")
    assert [segment["index"] for segment in segments] == list(range(len(segments)))
    assert bare("".join(segment["text"] for segment in segments)) == bare(TEXT)
    await fleet.wait_idle()


async def test_the_first_sentence_is_heard_while_the_text_goes_on(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.start(flush_after_seconds=60)
        await talk.say(SENTENCES[0], " ", SENTENCES[1][:2])
        segment = await talk.hear("segment")
        assert (segment["text"], segment["at_seconds"]) == (SENTENCES[0], 0.0)
        await talk.hear_audio(1000)
        await talk.say(SENTENCES[1][2:])
        await talk.tell("end")
        await talk.hear("done")
    assert bare(decode(bytes(talk.audio))) == bare(SENTENCES[0] + SENTENCES[1])


async def test_a_flush_says_what_is_there_and_tells_when_it_is_heard(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.start(flush_after_seconds=60)
        await talk.say("One moment ")
        await talk.tell("flush")
        flushed = await talk.hear("flushed")
        assert bare(decode(bytes(talk.audio))) == "Onemoment"
        assert flushed["audio_seconds"] == pytest.approx(len(talk.audio) / 2 / SAMPLE_RATE, abs=0.001)
        await talk.say("please.")
        await talk.tell("end")
        await talk.hear("done")
    assert bare(decode(bytes(talk.audio))) == "Onemomentplease."


async def test_who_pauses_is_heard_up_to_the_last_word_that_may_go_on(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.start(flush_after_seconds=0.05)
        await talk.say("This is not the whole sen")
        segment = await talk.hear("segment")
        assert segment["text"] == "This is not the whole"
        await talk.say("tence.")
        assert (await talk.hear("segment"))["text"] == "sentence."
        await talk.tell("end")
        await talk.hear("done")
    assert bare(decode(bytes(talk.audio))) == bare("This is not the whole sentence.")


async def test_one_connection_brings_many_speeches_each_with_its_own_id(fleet: Cluster):
    async with talking(fleet, headers={"X-Request-Id": "agent-7"}) as talk:
        ids = []
        for number, given in enumerate((None, "turn-2", None)):
            started = await talk.start(request_id=given, voice="bass", seed=5)
            assert (started["model"], started["voice"], started["seed"]) == ("tone", "bass", 5)
            assert (started["format"], started["sample_rate"]) == ("pcm", 24_000)
            await talk.say(SENTENCES[number])
            await talk.tell("end")
            done = await talk.hear("done")
            assert bare(decode(bytes(talk.audio))) == bare(SENTENCES[number])
            ids.append(done["request_id"])
    assert ids == ["agent-7.1", "turn-2", "agent-7.3"]
    assert fleet.gateway is not None
    for id_ in ids:
        [line] = [line for line in fleet.gateway.log_text().splitlines() if f"request_id={id_} " in line]
        assert "endpoint=/v1/tts/stream" in line
        assert "outcome=ok" in line


async def test_marks_and_pauses_are_no_words_wherever_the_text_was_cut(fleet: Cluster):
    text = "# Title\n\nThis is **very important**, see [the page](http://example.org/a). [pause:1s] Then `code` ends."
    async with talking(fleet) as talk:
        await talk.start()
        await talk.say(*text)
        await talk.tell("end")
        done = await talk.hear("done")
    said = bare("Title This is very important, see the page. Then code ends.")
    assert bare(decode(bytes(talk.audio))) == said
    assert done["audio_seconds"] == pytest.approx(
        1 + sum(len(segment["text"]) for segment in talk.all("segment")) / 15, abs=0.01
    )


async def test_a_character_that_was_cut_in_two_is_whole_again(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.start()
        await talk.socket.send_str('{"type": "text", "text": "A smile \\ud83d"}')
        await talk.socket.send_str('{"type": "text", "text": "\\ude00 for you."}')
        await talk.tell("end")
        await talk.hear("done")
    assert bare(decode(bytes(talk.audio))) == bare("A smile 😀 for you.")


async def test_a_speech_of_no_words_is_done_without_a_sound(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.start(format="mp3")
        await talk.say(" … ", "\n")
        await talk.tell("end")
        done = await talk.hear("done")
    assert (done["audio_seconds"], bytes(talk.audio)) == (0, b"")


@pytest.mark.parametrize("form", ["wav", "mp3", "opus", "flac", "aac"])
async def test_the_audio_is_one_file_of_the_format(fleet: Cluster, form: str):
    async with talking(fleet) as talk:
        started = await talk.start(format=form)
        await talk.say(PARAGRAPH)
        await talk.tell("end")
        done = await talk.hear("done")
    assert started["format"] == form
    assert record(bytes(talk.audio)).seconds == pytest.approx(done["audio_seconds"], abs=0.1)


# ── Interrupted ──────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.asynccontextmanager
async def paced(tmp_path_factory: pytest.TempPathFactory, *options: str) -> AsyncIterator[Cluster]:
    async with Cluster(tmp_path_factory.mktemp("paced")) as made:
        await made.start_gateway(*options)
        await made.start_workers(2, "--slots", "1", *PACED)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with paced(tmp_path_factory) as made:
        yield made


async def test_a_speech_that_is_cancelled_falls_silent_and_the_next_begins_clean(slow: Cluster):
    async with talking(slow) as talk:
        await talk.start(request_id="interrupted")
        await talk.say(TEXT)
        await talk.hear_audio(10_000)
        await talk.tell("cancel")
        assert (await talk.hear("cancelled"))["request_id"] == "interrupted"
        assert len(talk.audio) < len(TEXT) * 3200 / 2
        # The slots were back before the word was given.
        assert [worker["in_flight"] for worker in await slow.listed()] == [0, 0]
        await talk.start()
        await talk.say("Yes?")
        await talk.tell("end")
        await talk.hear("done")
        assert decode(bytes(talk.audio)) == "Yes?"
        await talk.tell("cancel")
        assert (await talk.hear("cancelled"))["request_id"] is None
    await slow.wait_idle()


async def test_a_worker_that_dies_under_a_speech_is_not_heard(tmp_path: pytest.TempPathFactory):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway()
        await cluster.start_workers(2, "--slots", "1", *PACED)
        async with talking(cluster) as talk:
            await talk.start()
            await talk.say(*pieces_of(PARAGRAPH, random.Random(1)))
            await talk.tell("end")
            await talk.hear_audio(5_000)
            busy = next(worker["id"] for worker in await cluster.listed() if worker["in_flight"])
            await cluster.workers[busy].kill()
            assert (await talk.hear("done", "failed"))["type"] == "done"
        assert bare(decode(bytes(talk.audio))) == bare(PARAGRAPH)
        assert await cluster.metric("tts_failovers_total") >= 1


async def stage(talk: Talk, where: str) -> None:
    if where == "connected":
        return
    await talk.start()
    if where == "started":
        return
    await talk.say("Half a sentence" if where == "half a sentence" else TEXT)
    if where == "speaking":
        await talk.hear_audio(1)
    elif where == "ended":
        await talk.tell("end")
        await talk.hear_audio(1)
    elif where == "cancelling":
        await talk.hear_audio(1)
        await talk.tell("cancel")


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize(
    "where", ["connected", "started", "half a sentence", "text sent", "speaking", "ended", "cancelling"]
)
async def test_who_leaves_at_any_stage_leaves_nothing_behind(slow: Cluster, where: str, how: str):
    async with aiohttp.ClientSession() as session, session.ws_connect(slow.url + "/v1/tts/stream") as ws:
        await stage(Talk(ws), where)
        if how == "abort":
            ws.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    await slow.wait_idle()

    async def told() -> bool:
        return await slow.metric("tts_requests_in_progress") == 0

    await until(told, "the request to end")
    # A task that nobody stopped is destroyed some day, which looks like a failure of ours.
    assert await slow.metric("tts_requests_total", outcome="failed") == 0
    live = await first_snapshot(slow)
    assert (live["traffic"]["requests_in_progress"], live["queue"]["segments"]) == (0, 0)


async def first_snapshot(cluster: Cluster) -> dict:
    async with cluster.session.get(cluster.url + "/v1/live") as response:
        while not (line := await response.content.readline()).startswith(b"data: "):
            pass
        return json.loads(line.removeprefix(b"data: "))


async def test_after_a_hundred_random_leavings_every_count_is_back(fleet: Cluster):
    chance = random.Random(7)
    cancelled = await fleet.metric("tts_cancelled_total")

    async def one() -> None:
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, AssertionError):
            async with asyncio.timeout(chance.random() * 0.5), talking(fleet) as talk:
                for _ in range(3):
                    await talk.start(format=chance.choice(["pcm", "mp3", "opus"]))
                    await talk.say(*pieces_of(TEXT[: chance.randint(10, len(TEXT))], chance))
                    await talk.tell(chance.choice(["end", "cancel", "flush"]))
                    await talk.hear("done", "cancelled", "flushed")

    for _ in range(10):
        await asyncio.gather(*(one() for _ in range(10)))
    await fleet.wait_idle()

    async def told() -> bool:
        return await fleet.metric("tts_requests_in_progress") == 0

    await until(told, "the requests to end")
    assert await fleet.metric("tts_cancelled_total") > cancelled
    assert "Traceback" not in fleet.gateway.log_text()


async def test_a_listener_who_takes_nothing_is_cut_off_and_holds_no_slot(tmp_path: pytest.TempPathFactory):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway("--reader-timeout", "1", "--look-ahead", "2")
        await cluster.start_workers(1, "--slots", "1")
        address = urlsplit(cluster.url)
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((address.hostname, address.port))
        try:
            deaf.sendall(handshake() + frame({"type": "start", "format": "pcm"}))
            # Some ten megabytes of audio: more than all the buffers between here and there.
            deaf.sendall(b"".join(frame({"type": "text", "text": TEXT}) for _ in range(8)))
            assert (await cluster.speak("Somebody else is served.", format="pcm")).status == 200

            async def cut_off() -> bool:
                return "error=slow_reader" in cluster.gateway.log_text()

            await until(cut_off, "the deaf listener to be cut off")
            await cluster.wait_idle()
            assert await cluster.metric("tts_requests_in_progress") == 0
        finally:
            deaf.close()


def handshake(**headers: str) -> bytes:
    fields = {
        "Host": "x", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **headers,
    }  # fmt: skip
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"GET /v1/tts/stream HTTP/1.1\r\n{lines}\r\n".encode()


def frame(message: object, opcode: int = 1) -> bytes:
    """Return a masked frame, the mask being zeros."""
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + data


# ── What cannot be ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("not json", "invalid_body", None),
        ("[1]", "invalid_body", None),
        ("[" * 100_000, "invalid_body", None),
        ('{"type": "speak"}', "invalid_value", "type"),
        ('{"text": "Hello."}', "invalid_value", "type"),
        ('{"type": ["start"]}', "invalid_value", "type"),
        ('{"type": "text", "text": "too early"}', "invalid_value", "type"),
        ('{"type": "flush"}', "invalid_value", "type"),
        ('{"type": "end"}', "invalid_value", "type"),
        ('{"type": "start", "format": "ogg"}', "invalid_value", "format"),
        ('{"type": "start", "speed": 9}', "invalid_value", "speed"),
        ('{"type": "start", "flush_after_seconds": 0}', "invalid_value", "flush_after_seconds"),
        ('{"type": "start", "request_id": "two words"}', "invalid_value", "request_id"),
    ],
)
async def test_a_message_that_cannot_be_is_refused_by_name_and_the_next_is_heeded(fleet, message, code, param):
    async with talking(fleet) as talk:
        await talk.socket.send_str(message)
        error = (await talk.hear("error"))["error"]
        assert (error["code"], error["param"]) == (code, param)
        await talk.start()
        await talk.say("Fine.")
        await talk.tell("end")
        await talk.hear("done")
    assert decode(bytes(talk.audio)) == "Fine."


@pytest.mark.parametrize(
    ("piece", "code"),
    [(7, "invalid_value"), (None, "invalid_value"), ("a bell \x07", "unspeakable_text"), ("x" * 5001, "text_too_long")],
)
async def test_a_piece_that_cannot_be_spoken_is_left_out_and_the_speech_goes_on(fleet: Cluster, piece, code: str):
    async with talking(fleet) as talk:
        await talk.start()
        await talk.say("Before. ")
        await talk.tell("text", text=piece)
        error = (await talk.hear("error"))["error"]
        assert (error["code"], error["param"]) == (code, "text")
        await talk.say("After.")
        await talk.tell("end")
        await talk.hear("done")
    assert bare(decode(bytes(talk.audio))) == "Before.After."


async def test_the_whole_text_is_bounded_not_only_its_pieces(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.start()
        await talk.say(*["word " * 100] * 10)
        await talk.tell("text", text="one more")
        assert (await talk.hear("error"))["error"]["code"] == "text_too_long"
        await talk.tell("cancel")
        await talk.hear("cancelled")


@pytest.mark.parametrize(
    ("fields", "code"), [({"voice": "nobody"}, "voice_not_found"), ({"model": "none"}, "model_not_found")]
)
async def test_a_start_that_nobody_can_speak_fails_and_says_so(fleet: Cluster, fields: dict[str, str], code: str):
    async with talking(fleet) as talk:
        await talk.tell("start", **fields)
        assert (await talk.hear("failed"))["error"]["code"] == code
        await talk.start()


async def test_what_becomes_unspeakable_only_as_a_whole_ends_the_speech(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.start()
        await talk.say("Wait. [pause:", "99s] Go on.")
        failed = await talk.hear("failed")
        assert (failed["error"]["code"], failed["error"]["param"]) == ("invalid_value", "text")
        await talk.start()


async def test_one_speech_at_a_time(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.start()
        await talk.tell("start")
        assert "under way" in (await talk.hear("error"))["error"]["message"]
        await talk.say("Hello.")
        await talk.tell("end")
        await talk.hear("done")


async def test_a_message_larger_than_may_be_ends_the_connection(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.start()
        await talk.tell("text", text="x" * 300_000)
        assert await talk.hear_close() == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
    await fleet.wait_idle()


async def test_binary_and_pings_are_answered(fleet: Cluster):
    async with talking(fleet) as talk:
        await talk.socket.send_bytes(b"\x00\xff")
        assert "JSON in text messages" in (await talk.hear("error"))["error"]["message"]
        await talk.socket.ping()
        await talk.start()


async def test_garbage_after_the_handshake_harms_nobody(fleet: Cluster):
    address = urlsplit(fleet.url)
    chance = random.Random(11)
    for _ in range(100):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(handshake())
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            kind = chance.randrange(4)
            if kind == 0:
                writer.write(chance.randbytes(chance.randint(1, 300)))
            elif kind == 1:  # well-framed garbage, of any opcode
                writer.write(frame(chance.randbytes(chance.randint(0, 125)), chance.randrange(16)))
            elif kind == 2:  # a good beginning, then a frame that is cut off
                writer.write(frame({"type": "start"}) + frame({"type": "text", "text": "Hello. Hello."})[:-3])
            else:  # bits flipped in good frames
                good = bytearray(frame({"type": "start", "format": "pcm"}) + frame({"type": "text", "text": TEXT}))
                for _ in range(5):
                    good[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
                writer.write(good)
            await writer.drain()
            if kind > 1:  # else there may be no answer
                await reader.read(chance.choice([1, 100]))
        writer.close()
    await fleet.wait_idle()

    async def told() -> bool:
        return await fleet.metric("tts_requests_in_progress") == 0

    await until(told, "the requests to end")
    assert "Traceback" not in fleet.gateway.log_text()
    assert (await fleet.speak("Still here.", format="pcm")).status == 200


async def test_what_is_no_websocket_is_told_so(fleet: Cluster):
    async with fleet.session.get(fleet.url + "/v1/tts/stream") as response:
        assert response.status == 400
        assert "is a WebSocket" in (await response.json())["error"]["message"]


async def test_a_page_of_another_site_may_not_use_this_machines_gateway(fleet: Cluster):
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with talking(fleet, headers={"Origin": "https://evil.example"}):
            pass
    assert refused.value.status == 403
    async with talking(fleet, headers={"Origin": fleet.url}) as talk:
        await talk.start()


# ── Limits ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_who_says_nothing_for_too_long_is_closed_and_an_open_speech_fails_first(tmp_path: pytest.TempPathFactory):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway("--idle-timeout", "1")
        await cluster.start_workers(1)
        async with talking(cluster) as talk:
            assert await talk.hear_close() == aiohttp.WSCloseCode.OK
        async with talking(cluster) as talk:
            await talk.start()
            failed = await talk.hear("failed")
            assert failed["error"]["code"] == "body_timeout"
            assert await talk.hear_close() == aiohttp.WSCloseCode.OK
        await cluster.wait_idle()


async def test_at_a_stop_a_speech_is_spoken_to_its_end_and_who_only_waits_is_sent_away(
    tmp_path: pytest.TempPathFactory,
):
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway()
        await cluster.start_workers(2, *PACED)
        async with talking(cluster) as talk, talking(cluster) as idle:
            await talk.start()
            await talk.say(PARAGRAPH)
            await talk.hear_audio(1)
            stopping = asyncio.create_task(gateway.stop())
            assert await idle.hear_close() == aiohttp.WSCloseCode.GOING_AWAY
            await talk.tell("end")
            await talk.hear("done")
            assert await talk.hear_close() == aiohttp.WSCloseCode.GOING_AWAY
            assert await stopping == 0
        assert bare(decode(bytes(talk.audio))) == bare(PARAGRAPH)


# ── Heard ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_recogniser_hears_what_a_language_model_would_have_written(
    tmp_path: pytest.TempPathFactory, ears: Ears
):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway()
        await cluster.start_workers(1, model="embedded")
        text = " ".join(SENTENCES[:5])
        async with talking(cluster) as talk:
            await talk.start(format="opus", seed=7)
            await talk.say(*re.findall(r"\s*\S+", text))
            await talk.tell("end")
            await talk.hear("done")
        heard = await asyncio.to_thread(ears.hear, bytes(talk.audio))
    assert word_error_rate(text, heard) <= 0.10, heard
