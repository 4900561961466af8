"""Voices of one's own, with real processes: uploaded once, spoken by every worker, kept through whatever happens."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from gateway.encoder import AudioFormat
from tests.clips import clip, encoded, endless_opus, in_format, tone, wav
from tests.e2e.cluster import Answer, Cluster, free_port, until
from worker.models.tone import decode, heard_pitch_hz

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

COMPUTED = 'tts_worker_voices_total{source="computed"}'
LONG = " ".join(
    f"This is sentence {number} of a text that is spread over every worker there is." for number in range(30)
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("voices")
    async with Cluster(folder) as made:
        await made.start_gateway("--data-directory", str(folder / "data"))
        await made.start_workers(3, "--tone-prepare-seconds", "0.3")
        yield made


async def upload(cluster: Cluster, name: Any, audio: bytes | None, path: str = "/v1/voices") -> Answer:
    form = aiohttp.FormData(default_to_multipart=True)
    if audio is not None:
        form.add_field("audio_sample", io.BytesIO(audio), filename="../../clip.wav", content_type="audio/wav")
    if name is not None:
        form.add_field("name", name)
    return await ask(cluster, "POST", path, data=form)


async def ask(cluster: Cluster, method: str, path: str, **arguments: Any) -> Answer:
    async with cluster.session.request(method, cluster.url + path, **arguments) as response:
        return Answer(response.status, response.headers, await response.read())


async def count(cluster: Cluster, series: str) -> float:
    """Return the sum of a series over all workers."""
    total = 0.0
    for worker in await cluster.listed():
        async with cluster.session.get(f"http://{worker['address']}/metrics") as response:
            total += float(re.findall(rf"^{re.escape(series)} (\S+)", await response.text(), re.MULTILINE)[0])
    return total


async def spoke(cluster: Cluster) -> set[str]:
    """Return the workers that have spoken at least one segment."""
    return {worker["id"] for worker in await cluster.listed() if worker["segments_spoken"]}


# -- the journey


async def test_one_upload_is_spoken_by_every_worker_and_computed_once(fleet: Cluster):
    uploaded = await upload(fleet, "Anna Müller", clip(440))
    assert uploaded.status == 201, uploaded.body
    assert uploaded.headers["Location"] == "/v1/voices/anna-muller"
    voice = uploaded.json()
    assert (voice["id"], voice["name"], voice["models"], voice["seconds"]) == (
        "anna-muller",
        "Anna Müller",
        ["tone"],
        6,
    )
    assert (await ask(fleet, "GET", "/v1/voices/anna-muller")).json() == voice
    before = await count(fleet, COMPUTED)

    # All three ask for the voice in the same moment.
    answer = await fleet.speak(LONG, voice="anna-muller", format="pcm")
    assert answer.headers["X-TTS-Voice"] == "anna-muller"
    assert "".join(decode(answer.body).split()) == "".join(LONG.split())
    assert heard_pitch_hz(answer.body) == 440
    assert len(await spoke(fleet)) == 3
    assert await count(fleet, COMPUTED) == before + 1

    own = await fleet.speak("My own voice again.", format="pcm")
    assert heard_pitch_hz(own.body) == 900
    assert (await ask(fleet, "DELETE", "/v1/voices/anna-muller")).json() == {
        "id": "anna-muller",
        "object": "audio.voice.deleted",
        "deleted": True,
    }
    gone = await fleet.speak("Hello.", voice="anna-muller")
    assert (gone.status, gone.error["code"], gone.error["param"]) == (404, "voice_not_found", "voice")
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/audio")]:
        answer = await ask(fleet, method, f"/v1/voices/anna-muller{path}")
        assert (answer.status, answer.error["code"]) == (404, "voice_not_found")


async def test_openais_own_client_uploads_speaks_and_deletes(fleet: Cluster):
    async with (
        openai.DefaultAsyncHttpxClient(trust_env=False) as http,
        openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key="none", max_retries=0, http_client=http) as client,
    ):
        sample = ("me.flac", in_format(tone(6.0, hz=330), AudioFormat.FLAC), "audio/flac")
        voice = await client.audio.voices.create(name="My voice", consent="cons_1", audio_sample=sample)
        assert (voice.id, voice.name, voice.object, voice.type) == (
            "my-voice",
            "My voice",
            "audio.voice",
            "audio_sample",
        )
        for spoken_as in (voice.id, voice.name, {"id": voice.id}):
            speech = await client.audio.speech.create(
                model="tts-1",
                voice=spoken_as,  # type: ignore[arg-type]
                input=LONG,
                response_format="pcm",
            )
            assert heard_pitch_hz(speech.content) == 330
        listed: Any = await client.get("/audio/voices", cast_to=object)
        assert {"id": "my-voice", "name": "My voice"} in listed["voices"]
        deleted = await client.audio.voices.delete(voice.id)
        assert (deleted.id, deleted.deleted, deleted.object) == ("my-voice", True, "audio.voice.deleted")
        with pytest.raises(openai.NotFoundError) as caught:
            await client.audio.speech.create(model="tts-1", voice=voice.id, input="Hello.")
        assert (caught.value.code, caught.value.param) == ("voice_not_found", "voice")
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            await client.audio.voices.create(name="N", consent="c", audio_sample=("a.mp3", b"not audio", "audio/mpeg"))
        assert (refused.value.code, refused.value.param) == ("unusable_clip", "audio_sample")


async def test_a_voice_is_renamed_listed_and_heard(fleet: Cluster):
    await upload(fleet, "First name", clip(500))
    renamed = await ask(fleet, "PATCH", "/v1/voices/first-name", json={"name": "Second name"})
    assert (renamed.status, renamed.json()["id"], renamed.json()["name"]) == (200, "first-name", "Second name")
    for name in ("first-name", "Second name", "second  NAME"):
        assert heard_pitch_hz((await fleet.speak("Hello.", voice=name, format="pcm")).body) == 500
    [row] = [row for row in (await ask(fleet, "GET", "/v1/voices")).json()["voices"] if row["uploaded"]]
    assert row["name"] == "Second name"
    heard = await ask(fleet, "GET", "/v1/voices/first-name/audio")
    assert (heard.headers["Content-Type"], heard.body) == ("audio/wav", clip(500))
    part = await ask(fleet, "GET", "/v1/voices/first-name/audio", headers={"Range": "bytes=0-3"})
    assert (part.status, part.body) == (206, b"RIFF")
    assert (await ask(fleet, "DELETE", "/v1/audio/voices/first-name")).status == 200


@pytest.mark.parametrize("path", ["/v1/voices", "/v1/audio/voices"])
async def test_of_twenty_uploads_of_one_name_at_once_one_is_kept(fleet: Cluster, path: str):
    answers = await asyncio.gather(*(upload(fleet, "Racer", clip(300 + number, 1.5), path) for number in range(20)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 19
    assert {answer.error["code"] for answer in answers if answer.status == 409} == {"voice_conflict"}
    [won] = [300 + number for number, answer in enumerate(answers) if answer.status == 201]
    assert heard_pitch_hz((await fleet.speak("Hello.", voice="racer", format="pcm")).body) == won
    again = await asyncio.gather(*(upload(fleet, "racer", clip(won, 1.5), path) for _ in range(5)))
    assert {answer.status for answer in again} == {200}
    assert (await ask(fleet, "DELETE", "/v1/voices/racer")).status == 200


async def test_a_request_that_runs_keeps_the_voice_that_is_deleted(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway("--data-directory", str(tmp_path / "data"))
        await cluster.start_workers(1, "--slots", "1", "--tone-realtime-factor", "0.05")
        await upload(cluster, "Anna", clip(440))
        async with cluster.streaming(LONG, voice="anna", format="pcm") as response:
            heard = await response.content.readany()
            assert (await ask(cluster, "DELETE", "/v1/voices/anna")).status == 200
            assert (await cluster.speak("Hello.", voice="anna")).status == 404
            # A worker that comes now has to be given the clip all the same.
            await cluster.start_worker("--slots", "1")
            await cluster.wait_ready(2)
            heard += await response.content.read()
        assert "".join(decode(heard).split()) == "".join(LONG.split())
        assert heard_pitch_hz(heard) == 440
        assert len(await spoke(cluster)) == 2
        await cluster.wait_idle()

        async def nothing_is_left() -> bool:
            return not [
                file for room in ("clips", "voices", "prepared") for file in os.listdir(tmp_path / "data" / room)
            ]

        await until(nothing_is_left, "the clip to go with the last request")


async def test_the_time_for_a_new_voice_is_neither_a_hang_nor_a_slow_worker(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway("--data-directory", str(tmp_path / "data"), "--stall-timeout", "1")
        await cluster.start_workers(1, "--tone-prepare-seconds", "3")
        await upload(cluster, "Anna", clip(440))
        assert heard_pitch_hz((await cluster.speak("Hello.", voice="anna", format="pcm")).body) == 440
        assert await cluster.metric("tts_retries_total") == 0
        assert await cluster.metric("tts_ejections_total") == 0
        [worker] = await cluster.listed()
        assert worker["seconds_per_character"] < 0.02  # 1/60 is what a worker is expected to need

        async def warm() -> bool:
            return len((await cluster.listed())[0]["warm_voices"]) == 4

        await until(warm, "the worker to report the voice as warm")


async def test_a_worker_killed_mid_stream_is_not_heard_in_an_uploaded_voice(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway("--data-directory", str(tmp_path / "data"))
        await cluster.start_workers(2, "--tone-realtime-factor", "0.05")
        await upload(cluster, "Anna", clip(440))
        async with cluster.streaming(LONG, voice="anna", format="pcm", stream=True) as response:
            heard = await response.content.readany()
            await next(iter(cluster.workers.values())).kill()
            heard += await response.content.read()
        assert "".join(decode(heard).split()) == "".join(LONG.split())
        assert heard_pitch_hz(heard) == 440


async def test_a_model_without_cloning_says_so(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway("--data-directory", str(tmp_path / "data"))
        await cluster.start_worker(model="embedded")
        await cluster.wait_ready(1)
        voice = (await upload(cluster, "Anna", clip(440))).json()
        assert (voice["models"], voice["model"]) == ([], None)
        assert voice["unusable_with"] == [{"model": "embedded", "reason": "it has voices of its own only"}]
        answer = await cluster.speak("Hello.", voice="anna")
        assert (answer.status, answer.error["code"], answer.error["param"]) == (422, "invalid_value", "voice")
        assert "embedded" in answer.error["message"]
        await cluster.start_worker()
        await cluster.wait_ready(2)
        assert (await cluster.speak("Hello.", voice="anna")).headers["X-TTS-Model"] == "tone"
        named = await cluster.speak("Hello.", voice="anna", model="embedded")
        assert (named.status, "Ask for model tone" in named.error["message"]) == (422, True)


# -- through ends and full disks


async def test_voices_outlive_the_gateway_and_the_workers(tmp_path: Path):
    data = ("--data-directory", str(tmp_path / "data"))
    ports = {"public_port": free_port(), "internal_port": free_port()}
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway(*data, **ports)
        [worker] = await cluster.start_workers(1)
        voice = (await upload(cluster, "Anna", clip(440))).json()
        assert heard_pitch_hz((await cluster.speak("Hello.", voice="anna", format="pcm")).body) == 440
        assert await gateway.stop() == 0
        gateway = await cluster.start_gateway(*data, **ports)
        await cluster.wait_ready(1)
        assert (await ask(cluster, "GET", "/v1/voices/anna")).json() == voice
        await gateway.kill()
        await worker.kill()
        await cluster.start_gateway(*data, **ports)
        await cluster.start_worker()
        await cluster.wait_ready(1)
        assert heard_pitch_hz((await cluster.speak("Hello.", voice="anna", format="pcm")).body) == 440
        # The new worker got what the old one had computed.
        assert await count(cluster, COMPUTED) == 0


async def test_a_gateway_killed_in_the_middle_of_an_upload_loses_that_one_only(tmp_path: Path):
    data = tmp_path / "data"
    async with Cluster(tmp_path) as cluster:
        gateway = await cluster.start_gateway("--data-directory", str(data))
        await upload(cluster, "Anna", clip(440))
        kept = {room: os.listdir(data / room) for room in ("clips", "voices")}

        half_sent = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="audio_sample"; filename="a.wav"\r\n\r\n'
            yield clip(500, 20.0)[:500_000]
            half_sent.set()
            await asyncio.Event().wait()

        sending = asyncio.create_task(
            ask(
                cluster,
                "POST",
                "/v1/voices",
                data=slowly(),
                headers={"Content-Type": "multipart/form-data; boundary=x"},
            )
        )
        await half_sent.wait()
        await gateway.kill()
        await asyncio.gather(sending, return_exceptions=True)
        await cluster.start_gateway("--data-directory", str(data))
        rows = (await ask(cluster, "GET", "/v1/voices")).json()["voices"]
        assert [row["id"] for row in rows] == ["anna"]
        assert {room: os.listdir(data / room) for room in ("clips", "voices")} == kept
        assert os.listdir(data / "incoming") == []
        assert (await ask(cluster, "GET", "/v1/voices/anna/audio")).body == clip(440)


def within_a_small_disk(directory: Path, size: str) -> tuple[str, ...]:
    """Return a command that runs another with `directory` on a disk of its own."""
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    return (
        "unshare",
        *as_root,
        "--mount",
        "sh",
        "-c",
        f'mount -t tmpfs -o size={size} none {directory} && exec "$@"',
        "sh",
    )


async def test_a_full_disk_is_told_and_costs_nothing_that_was_there(tmp_path: Path):
    data = tmp_path / "data"
    data.mkdir()
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway("--data-directory", str(data), within=within_a_small_disk(data, "1536k"))
        await cluster.start_workers(1)
        assert (await upload(cluster, "Anna", clip(440))).status == 201
        for name, hz in (("Bella", 500), ("Clara", 600)):  # 290 kB each, and as much again while it is decoded
            answer = await upload(cluster, name, clip(hz))
            if answer.status != 201:
                break
        full = [await upload(cluster, f"Dora {seconds}", clip(700, seconds)) for seconds in (12.0, 18.0, 30.0)]
        for answer in full:
            assert (answer.status, answer.error["code"], answer.error["type"]) == (507, "storage_full", "server_error")
        assert (await ask(cluster, "GET", "/v1/voices/anna/audio")).body == clip(440)
        assert heard_pitch_hz((await cluster.speak("Hello.", voice="anna", format="pcm")).body) == 440
        assert "storage full" in (cluster.gateway.log_text() if cluster.gateway else "")
        # What is deleted makes room.
        for row in (await ask(cluster, "GET", "/v1/voices")).json()["voices"]:
            if row["uploaded"] and row["id"] != "anna":
                assert (await ask(cluster, "DELETE", f"/v1/voices/{row['id']}")).status == 200
        assert (await upload(cluster, "Emma", clip(800))).status == 201
        assert heard_pitch_hz((await cluster.speak("Hello.", voice="emma", format="pcm")).body) == 800


async def test_a_directory_in_use_is_refused_at_the_start(fleet: Cluster, tmp_path: Path):
    second = await fleet.start("second", "tts-gateway", "--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0",
                               "--data-directory", str(fleet.directory / "data"))  # fmt: skip
    assert await second.process.wait() == 1
    assert "in use by another gateway" in second.log_text()


async def test_without_a_directory_uploads_are_off_and_the_rest_goes_on(tmp_path: Path):
    async with Cluster(tmp_path) as cluster:
        await cluster.start_gateway()
        await cluster.start_workers(1)
        answer = await upload(cluster, "Anna", clip(440))
        assert (answer.status, answer.error["code"]) == (403, "uploads_off")
        assert "--data-directory" in answer.error["message"]
        assert (await cluster.speak("Hello.")).status == 200


# -- those who mean ill


ENDLESS_WAV = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 16, 1, 65_535, 48_000,
                          0xFFFFFFFF, 65_535, 8, b"data", 0xFFFFFFFF) + bytes(100_000)  # fmt: skip
HOSTILE = {
    "ten hours in a small opus file": endless_opus(2.0),
    "64 channels": wav(tone(2.0, channels=64)),
    "a header that promises four gigabytes": ENDLESS_WAV,
    "half a file": in_format(tone(6.0), AudioFormat.FLAC)[:20_000],
    "half an m4a file": encoded(tone(6.0), "mp4", "aac")[:20_000],
    "not audio": b"<html>" * 10_000,
    "a zip file": b"PK\x03\x04" + bytes(10_000),
    "a playlist of local files": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "silence": wav(tone(6.0, amplitude=0)),
    "nothing": b"",
}


@pytest.mark.parametrize("path", ["/v1/voices", "/v1/audio/voices"])
async def test_hostile_files_get_a_reason_and_nothing_else(fleet: Cluster, path: str):
    answers = await asyncio.gather(*(upload(fleet, "Mallory", audio, path) for audio in HOSTILE.values()))
    for name, answer in zip(HOSTILE, answers, strict=True):
        told = (answer.status, answer.error["code"], answer.error["param"])
        assert told == (422, "unusable_clip", "audio_sample"), name
    assert (await ask(fleet, "GET", "/v1/voices/mallory")).status == 404
    assert (await fleet.speak("Hello.")).status == 200


BAD_FORMS: list[tuple[Any, bytes | None, int, str, str]] = [
    ("../../etc/passwd", clip(), 422, "invalid_value", "name"),
    ("a\0b", clip(), 422, "invalid_value", "name"),
    ("x" * 65, clip(), 422, "invalid_value", "name"),
    ("x" * 10_000, clip(), 422, "invalid_value", "name"),
    ("", clip(), 422, "invalid_value", "name"),
    (None, clip(), 422, "invalid_value", "name"),
    ("Anna", None, 422, "invalid_value", "audio_sample"),
    ("alto", clip(), 409, "voice_conflict", "name"),
    ("Alloy", clip(), 409, "voice_conflict", "name"),
    ("Anna", bytes(33 << 20), 413, "body_too_large", "audio_sample"),
]


async def test_a_form_that_cannot_be_is_refused_by_its_field(fleet: Cluster):
    for name, audio, *told in BAD_FORMS:
        answer = await upload(fleet, name, audio)
        assert [answer.status, answer.error["code"], answer.error["param"]] == told, (name, answer.body)


FORM = "multipart/form-data; boundary=x"
RAW = [
    (b"", FORM, 400),
    (b"--x", FORM, 400),
    (b"--x\r\n\r\n", FORM, 400),
    (b"--x\r\nContent-Disposition: form-data; name=name\r\n\r\nAnna", FORM, 400),
    (b"--x\r\nContent-Disposition: form-data; name=name\r\n\r\n\xff\xfe\r\n--x--\r\n", FORM, 400),
    (b"--x\r\nContent-Type: multipart/mixed; boundary=y\r\n\r\n--y\r\n\r\n--y--\r\n--x--", FORM, 400),
    (b"--x--\r\n", FORM, 422),
    (b"anything", "multipart/form-data", 400),
    (b"name=Anna", "application/x-www-form-urlencoded", 415),
    (b'{"name": "Anna", "type": "prompt", "prompt": "deep"}', "application/json", 415),
    (b"RIFF", "audio/wav", 415),
    (b"--x\r\nContent-Disposition: form-data; name=type\r\n\r\nprompt\r\n--x--\r\n", FORM, 422),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(RAW)))
async def test_a_body_that_is_no_form_is_refused(fleet: Cluster, number: int):
    body, content_type, status = RAW[number]
    answer = await ask(fleet, "POST", "/v1/voices", data=body, headers={"Content-Type": content_type})
    assert answer.status == status, answer.body
    assert answer.error["message"]


IDS = ["..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%0ab", "a" * 300, "%ff", "voices", "nobody", "ANNA"]


@pytest.mark.parametrize("id_", IDS)
async def test_an_id_is_looked_up_and_never_a_path(fleet: Cluster, id_: str):
    from yarl import URL

    for method, path in [("GET", ""), ("DELETE", ""), ("PATCH", ""), ("GET", "/audio")]:
        url = URL(f"{fleet.url}/v1/voices/{id_}{path}", encoded=True)
        arguments: dict[str, Any] = {"json": {"name": "Anna"}} if method == "PATCH" else {}
        async with fleet.session.request(method, url, **arguments) as response:
            answer = Answer(response.status, response.headers, await response.read())
        assert answer.status in (400, 404, 405), (method, path, answer.status)
        assert answer.error["code"] in ("voice_not_found", "not_found", "method_not_allowed", "invalid_body")


async def test_a_voice_that_was_not_uploaded_cannot_be_changed(fleet: Cluster):
    for method, arguments in [("DELETE", {}), ("PATCH", {"json": {"name": "Mine"}})]:
        answer = await ask(fleet, method, "/v1/voices/alto", **arguments)
        assert (answer.status, answer.error["code"], answer.error["param"]) == (409, "voice_conflict", "id")


async def test_clips_are_for_workers_alone(fleet: Cluster):
    voice = (await upload(fleet, "Private", clip(880))).json()
    [sha256] = [name.removesuffix(".wav") for name in os.listdir(fleet.directory / "data" / "clips")]
    bearer = {"Authorization": f"Bearer {fleet.token}"}
    for path in (f"/internal/clips/{sha256}", f"/internal/prepared/tone-1/{sha256}"):
        async with fleet.session.get(fleet.internal_url + path) as response:
            assert response.status == 401
        async with fleet.session.get(fleet.internal_url + path.replace(sha256, "0" * 64), headers=bearer) as response:
            assert response.status == 404
        assert (await ask(fleet, "GET", path)).status == 404
    async with fleet.session.get(f"{fleet.internal_url}/internal/clips/{sha256}", headers=bearer) as response:
        assert await response.read() == clip(880)
    await ask(fleet, "DELETE", f"/v1/voices/{voice['id']}")


async def test_a_hung_up_upload_leaves_nothing(fleet: Cluster):
    async def broken() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="audio_sample"; filename="a.wav"\r\n\r\n' + clip()
        raise ConnectionResetError

    for _ in range(5):
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await ask(fleet, "POST", "/v1/voices", data=broken(),
                      headers={"Content-Type": "multipart/form-data; boundary=x"})  # fmt: skip

    async def nothing_is_left() -> bool:
        return os.listdir(fleet.directory / "data" / "incoming") == []

    await until(nothing_is_left, "the halves to go")


async def test_the_gateway_has_not_failed_once(fleet: Cluster):
    assert fleet.gateway is not None
    log = fleet.gateway.log_text()
    assert "Traceback" not in log
    assert fleet.gateway.is_running
    assert not [worker for worker in await fleet.listed() if worker["consecutive_failures"]]
    fleet.gateway.signal(signal.SIGTERM)
    assert await fleet.gateway.process.wait() == 0
