"""The cache of what workers computed: one computes, the others wait; bounded, and gone with its clip."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.voices import prepared as prepared_module
from gateway.voices.prepared import PreparedVoices

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
FORMAT = "tone-1"


def first_letters(path: Path) -> str:
    """Return the first letter of every file there is."""
    return "".join(sorted(file.name[0] for file in path.iterdir()))


def cache(path: Path, **changes: object) -> PreparedVoices:
    return PreparedVoices(path, **{"is_wanted": lambda _: True} | changes)  # type: ignore[arg-type]


async def test_who_asks_first_computes_and_the_others_get_it(tmp_path: Path) -> None:
    voices = cache(tmp_path)
    assert await voices.get(A, FORMAT) is None
    waiting = [asyncio.create_task(voices.get(A, FORMAT)) for _ in range(5)]
    await asyncio.sleep(0)
    await voices.put(A, FORMAT, b"the voice")
    assert await asyncio.gather(*waiting) == [b"the voice"] * 5


async def test_one_at_a_time_tries_when_the_first_gives_up(tmp_path: Path) -> None:
    voices = cache(tmp_path)
    assert await voices.get(A, FORMAT) is None
    waiting = [asyncio.create_task(voices.get(A, FORMAT)) for _ in range(3)]
    await asyncio.sleep(0)
    voices.give_up(A, FORMAT)
    done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result() for task in done] == [None]
    assert len(pending) == 2
    await voices.put(A, FORMAT, b"the voice")
    assert await asyncio.gather(*pending) == [b"the voice"] * 2


async def test_who_never_answers_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_module, "CLAIM_SECONDS", 0.05)
    voices = cache(tmp_path)
    assert await voices.get(A, FORMAT) is None
    assert await voices.get(A, FORMAT) is None


async def test_formats_and_clips_are_apart(tmp_path: Path) -> None:
    voices = cache(tmp_path)
    await voices.put(A, FORMAT, b"one")
    await voices.put(A, "tone-2", b"two")
    await voices.put(B, FORMAT, b"three")
    assert await voices.get(A, FORMAT) == b"one"
    assert await voices.get(A, "tone-2") == b"two"
    voices.forget(A)
    assert await voices.get(A, "tone-2") is None
    assert await voices.get(B, FORMAT) == b"three"


async def test_it_is_there_after_a_restart_but_for_clips_that_are_gone(tmp_path: Path) -> None:
    voices = cache(tmp_path)
    await voices.put(A, FORMAT, b"one")
    await voices.put(B, FORMAT, b"two")
    again = cache(tmp_path, is_wanted=lambda sha256: sha256 == A)
    assert await again.get(A, FORMAT) == b"one"
    assert await again.get(B, FORMAT) is None
    assert first_letters(tmp_path) == "a"


async def test_what_was_damaged_on_disk_is_computed_again(tmp_path: Path) -> None:
    voices = cache(tmp_path)
    await voices.put(A, FORMAT, b"the voice")
    path = tmp_path / f"{A}.{FORMAT}"
    path.write_bytes(path.read_bytes()[:-1])
    assert await voices.get(A, FORMAT) is None
    await voices.put(A, FORMAT, b"the voice")
    assert await voices.get(A, FORMAT) == b"the voice"


async def test_the_least_lately_used_goes_when_there_is_too_much(tmp_path: Path) -> None:
    voices = cache(tmp_path, cache_bytes=2 * (1_000 + 32))
    await voices.put(A, FORMAT, bytes(1_000))
    await voices.put(B, FORMAT, bytes(1_000))
    await voices.get(A, FORMAT)
    await voices.put(C, FORMAT, bytes(1_000))
    assert first_letters(tmp_path) == "ac"
    assert await voices.get(B, FORMAT) is None


async def test_the_voice_of_a_clip_that_went_meanwhile_is_not_kept(tmp_path: Path) -> None:
    voices = cache(tmp_path, is_wanted=lambda _: False)
    await voices.put(A, FORMAT, b"the voice")
    assert first_letters(tmp_path) == ""
