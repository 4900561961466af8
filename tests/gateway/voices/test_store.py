"""Uploaded voices on a real disk: what is there after every kind of end, and what two at a time come to."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.voices import store as store_module
from gateway.voices.catalogue import Warned, handle
from gateway.voices.clip import Clip
from gateway.voices.directory import DirectoryInUse
from gateway.voices.store import VoiceStore, checked_name
from wire.errors import ErrorCode, TtsError


def reserved(name: str) -> str | None:
    return "a voice of model 'tone'" if handle(name) == "alto" else None


@contextmanager
def opened(path: Path) -> Iterator[VoiceStore]:
    store = VoiceStore(path)
    store.open()
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VoiceStore]:
    with opened(tmp_path) as made:
        yield made


def decoded(store: VoiceStore, content: str) -> Clip:
    """Return a clip as the decoder leaves it; what is in it is not the store's business."""
    assert store._path is not None
    path = store._path / "incoming" / f"{secrets.token_hex(4)}.wav"
    data = content.encode() * 1_000
    path.write_bytes(data)
    return Clip(path, hashlib.sha256(data).hexdigest(), len(data), 6.0, (Warned("quiet", "It is quiet."),))


async def upload(store: VoiceStore, name: str, content: str = "one") -> str:
    return (await store.add(name, decoded(store, content), reserved=reserved)).voice.id


async def nothing() -> AsyncIterator[bytes]:
    yield b""


async def refusal(waiting: object) -> TtsError:
    with pytest.raises(TtsError) as caught:
        await waiting  # type: ignore[misc]
    return caught.value


def files(path: Path) -> list[str]:
    """All that is kept, the lock apart."""
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != "lock")


async def test_a_voice_is_found_by_its_id_and_by_its_name_in_any_case(store: VoiceStore) -> None:
    id_ = await upload(store, "  Anna  Müller ")
    assert id_ == "anna-muller"
    assert {"anna-muller", "anna müller"} == set(store.by_handle)
    assert store.by_handle["anna müller"].name == "Anna Müller"
    assert store.get("anna müller") is None


async def test_everything_is_there_after_a_restart(store: VoiceStore, tmp_path: Path) -> None:
    for number in range(3):
        await upload(store, f"voice {number}", f"clip {number}")
    before = store.voices()
    store.close()
    with opened(tmp_path) as again:
        assert again.voices() == before
        for voice in before:
            path = again.clip(voice.clip)
            assert path is not None
            assert path.stat().st_size == voice.clip_bytes


async def test_the_id_stays_and_the_name_changes(store: VoiceStore, tmp_path: Path) -> None:
    await upload(store, "Anna")
    renamed = await store.rename("anna", "Bella", reserved=reserved)
    assert (renamed.id, renamed.name) == ("anna", "Bella")
    assert set(store.by_handle) == {"anna", "bella"}
    store.close()
    with opened(tmp_path) as again:
        assert set(again.by_handle) == {"anna", "bella"}


async def test_a_deleted_voice_leaves_nothing_behind(store: VoiceStore, tmp_path: Path) -> None:
    await upload(store, "Anna")
    assert store.prepared is not None
    await store.prepared.put(store.voices()[0].clip, "tone-1", b"prepared")
    assert len(files(tmp_path)) == 3
    await store.delete("anna")
    assert files(tmp_path) == []
    assert (await refusal(store.delete("anna"))).code is ErrorCode.VOICE_NOT_FOUND


async def test_a_clip_that_two_voices_share_goes_with_the_second(store: VoiceStore, tmp_path: Path) -> None:
    await upload(store, "Anna")
    await upload(store, "Bella")
    assert len(files(tmp_path / "clips")) == 1
    await store.delete("anna")
    assert len(files(tmp_path / "clips")) == 1
    await store.delete("bella")
    assert files(tmp_path) == []


async def test_a_request_that_runs_keeps_the_clip_of_a_deleted_voice(store: VoiceStore, tmp_path: Path) -> None:
    await upload(store, "Anna")
    sha256 = store.voices()[0].clip
    with store.holding(sha256), store.holding(sha256):
        await store.delete("anna")
        assert store.voices() == []
        assert store.clip(sha256) is not None
        assert files(tmp_path / "clips") == [f"{sha256}.wav"]
    assert store.clip(sha256) is None
    assert files(tmp_path) == []


async def test_a_clip_that_comes_back_while_it_is_held_stays(store: VoiceStore, tmp_path: Path) -> None:
    await upload(store, "Anna")
    sha256 = store.voices()[0].clip
    with store.holding(sha256):
        await store.delete("anna")
        await upload(store, "Bella")
    assert files(tmp_path / "clips") == [f"{sha256}.wav"]


async def test_of_twenty_uploads_of_one_name_one_is_stored(store: VoiceStore, tmp_path: Path) -> None:
    results = await asyncio.gather(
        *(upload(store, "Anna", f"clip {number}") for number in range(20)), return_exceptions=True
    )
    assert [result for result in results if not isinstance(result, TtsError)] == ["anna"]
    assert {error.code for error in results if isinstance(error, TtsError)} == {ErrorCode.VOICE_CONFLICT}
    assert [len(files(tmp_path / folder)) for folder in ("voices", "clips")] == [1, 1]


async def test_the_same_clip_again_is_the_voice_that_is_there(store: VoiceStore) -> None:
    async def again() -> bool:
        return (await store.add("anna", decoded(store, "one"), reserved=reserved)).is_new

    assert sorted(await asyncio.gather(*(again() for _ in range(5)))) == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("name", "stored_under"),
    [
        ("Anna", "anna"),
        ("Dr. O'Neill-Smith, Jr. (2)", "dr-o-neill-smith-jr-2"),
        ("你好", "voice"),
        ("Ελένη", "voice"),
        ("x" * 64, "x" * 56),
        ("Alto!", "alto-2"),
        ("snake_case_9", "snake_case_9"),
    ],
)
async def test_an_id_is_made_of_the_name(store: VoiceStore, name: str, stored_under: str) -> None:
    assert await upload(store, name) == stored_under


async def test_two_names_with_one_id_get_two(store: VoiceStore) -> None:
    assert await upload(store, "你好") == "voice"
    assert await upload(store, "再见") == "voice-2"


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "../../etc/passwd",
        "..",
        "a/b",
        "a\\b",
        "a\0b",
        "a\x1b[2J",
        "<b>",
        "x" * 65,
        "😀",
        "-",
        5,
        None,
        "\ud800",
    ],
)
def test_a_name_is_letters_and_little_else(name: object) -> None:
    with pytest.raises(TtsError) as caught:
        checked_name(name)
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_VALUE, "name")


@pytest.mark.parametrize("name", ["alto", "ALTO", "anna", " ANNA "])
async def test_a_name_that_means_something_already_is_refused(store: VoiceStore, name: str) -> None:
    await upload(store, "Anna")
    error = await refusal(upload(store, name, "another"))
    assert (error.code, error.param) == (ErrorCode.VOICE_CONFLICT, "name")
    await upload(store, "Bella", "another")
    assert (await refusal(store.rename("bella", name, reserved=reserved))).code is ErrorCode.VOICE_CONFLICT


async def test_there_is_an_end_to_the_number_of_voices(store: VoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_VOICES", 1)
    await upload(store, "Anna")
    assert (await refusal(upload(store, "Bella"))).code is ErrorCode.VOICE_CONFLICT


async def test_without_a_directory_nothing_can_be_uploaded() -> None:
    store = VoiceStore(None)
    store.open()
    with pytest.raises(TtsError) as caught:
        async with store.receive(nothing()):
            pass
    assert caught.value.code is ErrorCode.UPLOADS_OFF
    assert store.voices() == []
    store.close()


def test_a_directory_has_one_gateway(store: VoiceStore, tmp_path: Path) -> None:
    with pytest.raises(DirectoryInUse, match="in use by another gateway"), opened(tmp_path):
        pass


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DirectoryInUse, match=r"--data-directory .*file/voices: Not a directory"):
        VoiceStore(tmp_path / "file" / "voices").open()


# -- what a crash leaves


async def test_what_a_killed_upload_left_is_cleared_away(store: VoiceStore, tmp_path: Path) -> None:
    await upload(store, "Anna")
    store.close()
    kept = files(tmp_path)
    (tmp_path / "incoming" / "clip-half.wav").write_bytes(b"RIFF")
    (tmp_path / "incoming" / "half.json").write_text('{"id": "be')
    (tmp_path / "clips" / f"{'0' * 64}.wav").write_bytes(b"a clip whose voice was never stored")
    (tmp_path / "prepared" / "draft-half").write_bytes(b"half")
    with opened(tmp_path) as again:
        assert [voice.id for voice in again.voices()] == ["anna"]
        assert files(tmp_path) == kept


@pytest.mark.parametrize(
    "record",
    [
        "",
        "{}",
        '{"id": "bella"',
        "[]",
        '{"id": "../x", "name": "x", "clip": "", "clip_bytes": 1, "seconds": 1, "created_at": 1, "warnings": []}',
    ],
)
async def test_a_record_that_cannot_be_read_costs_no_other_voice_and_no_clip(
    store: VoiceStore, tmp_path: Path, record: str
) -> None:
    await upload(store, "Anna")
    await upload(store, "Bella", "another")
    [bella] = [path for path in (tmp_path / "voices").iterdir() if "bella" in path.read_text()]
    store.close()
    whole = bella.read_text()
    bella.write_text(record)
    with opened(tmp_path) as again:
        assert [voice.id for voice in again.voices()] == ["anna"]
        assert bella.read_text() == record
    bella.write_text(whole)
    with opened(tmp_path) as mended:
        assert {voice.id for voice in mended.voices()} == {"anna", "bella"}


async def test_a_clip_that_is_cut_off_is_no_voice(store: VoiceStore, tmp_path: Path) -> None:
    await upload(store, "Anna")
    store.close()
    [path] = (tmp_path / "clips").iterdir()
    os.truncate(path, 100)
    with opened(tmp_path) as again:
        assert again.voices() == []


async def test_a_copy_of_a_record_is_not_a_second_voice(store: VoiceStore, tmp_path: Path) -> None:
    await upload(store, "Anna")
    store.close()
    [record] = (tmp_path / "voices").iterdir()
    shutil.copy(record, tmp_path / "voices" / "copy.json")
    with opened(tmp_path) as again:
        assert len(again.voices()) == 1


async def test_a_caller_who_leaves_in_the_middle_leaves_disk_and_books_in_step(
    store: VoiceStore, tmp_path: Path
) -> None:
    for turns in range(12):
        name = f"voice {turns}"
        clip = decoded(store, name)
        adding = asyncio.create_task(store.add(name, clip, reserved=reserved))
        for _ in range(turns):
            await asyncio.sleep(0)
        adding.cancel()
        await asyncio.gather(adding, return_exceptions=True)
        clip.path.unlink(missing_ok=True)  # as the end of `receive` does
        # The lock is free when the change has come to its end.
        async with store._lock:
            pass
    on_disk = {json.loads(path.read_text())["id"] for path in (tmp_path / "voices").iterdir()}
    assert on_disk == {voice.id for voice in store.voices()}
    assert {path.stem for path in (tmp_path / "clips").iterdir()} == {voice.clip for voice in store.voices()}
    assert list((tmp_path / "incoming").iterdir()) == []
