"""Audio between the workers and the listener: nothing lost, nothing doubled, pauses exact."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.assembler import Flushed, Script, SegmentAudio, joined, silence
from gateway.plan import Item, Pause, Speak

SECOND = 48_000  # bytes, at 24 kHz


async def read(audio: SegmentAudio) -> list[bytes]:
    return [chunk async for chunk in audio.chunks()]


async def test_what_was_written_is_read():
    audio = SegmentAudio()
    for piece in (b"ab", b"cd", b"efgh"):
        audio.write(piece)
    assert audio.samples == 4
    audio.finish()
    assert await read(audio) == [b"abcdefgh"]
    assert audio.samples == 4


async def test_a_segment_without_audio_ends_at_once():
    audio = SegmentAudio()
    audio.finish()
    assert await read(audio) == []


async def test_the_reader_waits_for_the_writer_and_gets_each_piece_as_it_comes():
    audio = SegmentAudio()
    chunks = audio.chunks()
    for piece in (b"ab", b"cd"):
        waiting = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        assert not waiting.done()
        audio.write(piece)
        assert await waiting == piece
    end = asyncio.ensure_future(anext(chunks, None))
    await asyncio.sleep(0)
    assert not end.done()
    audio.finish()
    assert await end is None


async def test_what_gathered_comes_in_pieces_of_at_most_a_second():
    audio = SegmentAudio()
    for n in range(50):
        audio.write(bytes([n]) * (SECOND // 20))
    audio.finish()
    chunks = await read(audio)
    assert [len(chunk) for chunk in chunks] == [SECOND, SECOND, SECOND // 2]
    assert b"".join(chunks) == b"".join(bytes([n]) * (SECOND // 20) for n in range(50))


async def test_a_piece_that_is_larger_stays_whole():
    audio = SegmentAudio()
    audio.write(bytes(3 * SECOND))
    audio.write(b"ab")
    audio.finish()
    assert [len(chunk) for chunk in await read(audio)] == [3 * SECOND, 2]


async def test_an_error_is_heard_of_at_once_and_before_what_is_left():
    audio = SegmentAudio()
    waiting = asyncio.ensure_future(read(audio))
    await asyncio.sleep(0)
    audio.fail(ValueError("cut"))
    with pytest.raises(ValueError, match="cut"):
        await waiting
    audio = SegmentAudio()
    audio.write(b"ab")
    audio.fail(ValueError("cut"))
    with pytest.raises(ValueError, match="cut"):
        await read(audio)


@pytest.mark.parametrize("seed", range(40))
async def test_however_it_is_written_and_read_it_is_the_same_audio(seed: int):
    chance = random.Random(seed)
    pieces = [chance.randbytes(2 * chance.randrange(SECOND)) for _ in range(chance.randrange(30))]
    audio = SegmentAudio()

    async def write() -> None:
        for piece in pieces:
            audio.write(piece)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        audio.finish()

    writing = asyncio.create_task(write())
    heard = b"".join(await read(audio))
    await writing
    is_the_same = heard == b"".join(pieces)  # not in the assert: a diff of megabytes takes minutes to print
    assert is_the_same


def written(items: Sequence[Item | Flushed]) -> Script:
    script = Script()
    script.add(items)
    script.end()
    return script


async def test_a_script_is_read_while_it_is_written_and_says_when_it_is_waited_for():
    script, audios = Script(), [SegmentAudio()]
    speech = joined(script, audios, 24_000, lambda index: None)
    waiting = asyncio.ensure_future(anext(speech))
    await asyncio.sleep(0)
    assert script.is_awaited
    script.add([Speak("a", 0), Flushed()])
    assert await waiting == Speak("a", 0)
    assert not script.is_awaited
    audios[0].write(b"ab")
    audios[0].finish()
    assert [await anext(speech), await anext(speech)] == [b"ab", Flushed()]
    script.end()
    assert await anext(speech, None) is None


async def test_a_script_that_fails_ends_the_reading_at_once_though_there_is_more():
    script = written([Pause(1.0), Pause(1.0)])
    script.fail(RuntimeError("as staged"))
    with pytest.raises(RuntimeError):
        await anext(joined(script, [], 24_000, lambda index: None))


async def test_segments_are_joined_in_the_order_of_the_text_whoever_ends_first():
    items = [Speak("a", 0), Pause(0.001), Speak("b", 1), Speak("c", 2)]
    audios = [SegmentAudio() for _ in range(3)]
    delivered: list[int] = []
    for index in (2, 0, 1):
        audios[index].write(bytes([index + 1]) * 4)
        audios[index].finish()
    parts = [part async for part in joined(written(items), audios, 24_000, delivered.append)]
    heard = b"".join(part for part in parts if isinstance(part, bytes))
    assert [part for part in parts if isinstance(part, Speak)] == [items[0], *items[2:]]
    assert heard == b"\x01" * 4 + bytes(48) + b"\x02" * 4 + b"\x03" * 4
    assert delivered == [0, 1, 2]


async def test_a_segment_counts_as_delivered_when_its_last_audio_was_taken():
    audios = [SegmentAudio(), SegmentAudio()]
    delivered: list[int] = []
    items = [Speak("a", 0), Speak("b", 1)]
    speech = joined(written(items), audios, 24_000, delivered.append)
    audios[0].write(b"ab")
    assert [await anext(speech), await anext(speech)] == [items[0], b"ab"]
    assert delivered == []
    audios[0].finish()
    audios[1].write(b"cd")
    assert [await anext(speech), await anext(speech)] == [items[1], b"cd"]
    assert delivered == [0]
    audios[1].finish()
    assert await anext(speech, None) is None
    assert delivered == [0, 1]


@given(st.floats(0, 10), st.sampled_from([8_000, 22_050, 24_000, 44_100, 48_000]))
def test_silence_is_exact_to_the_sample_and_comes_in_pieces(seconds: float, rate: int):
    pieces = silence(seconds, rate)
    assert sum(map(len, pieces)) == 2 * round(seconds * rate)
    assert not any(any(piece) for piece in pieces)
    assert all(0 < len(piece) <= rate for piece in pieces)
