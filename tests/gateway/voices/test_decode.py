"""Uploads become clips: every usual format, what is told about a poor one, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.encoder import AudioFormat
from gateway.voices.clip import MAX_UPLOAD_BYTES, Uploads
from gateway.voices.decode import MAX_SECONDS, Unusable, decode
from tests.clips import RATE, clip, encoded, endless_opus, in_format, tone, wav
from wire.errors import ErrorCode, TtsError

A_TONE = tone(6.0, hz=220)


def decoded(upload: bytes) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Decode in this process; return the report and the samples of the WAV file."""
    out = io.BytesIO()
    file = _Real(out)
    report = decode(io.BytesIO(upload), file)  # type: ignore[arg-type]
    with wave.open(io.BytesIO(out.getvalue())) as clip_:
        assert (clip_.getnchannels(), clip_.getsampwidth(), clip_.getframerate()) == (1, 2, RATE)
        return report, np.frombuffer(clip_.readframes(clip_.getnframes()), "<i2")


class _Real:
    """array.tofile wants no more than write."""

    def __init__(self, out: io.BytesIO) -> None:
        self._out = out

    def write(self, data: bytes) -> int:
        return self._out.write(data)


def pitch(samples: np.ndarray[Any, Any]) -> int:
    return int(np.abs(np.fft.rfft(samples[:RATE].astype(float))).argmax())


def codes(report: dict[str, Any]) -> set[str]:
    return {row["code"] for row in report["warnings"]}


def why(upload: bytes) -> str:
    with pytest.raises(Unusable) as caught:
        decoded(upload)
    return str(caught.value)


FORMATS = {
    **{str(form): in_format(A_TONE, form) for form in AudioFormat if form is not AudioFormat.PCM},
    "m4a": encoded(A_TONE, "mp4", "aac"),
    "alac": encoded(A_TONE, "ipod", "alac"),
    "webm": encoded(tone(6.0, rate=48_000), "webm", "libopus", 48_000),
    "wav, 24 bits": encoded(A_TONE, "wav", "pcm_s24le"),
    "wav, floats": encoded(A_TONE, "wav", "pcm_f32le"),
    "aiff": encoded(A_TONE, "aiff", "pcm_s16be"),
    "stereo": wav(tone(6.0, channels=2)),
    "six channels": wav(tone(6.0, channels=6)),
    "44.1 kHz": wav(tone(6.0, rate=44_100), 44_100),
    "192 kHz": wav(tone(6.0, rate=192_000), 192_000),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_usual_format_becomes_the_same_clip(name: str) -> None:
    report, samples = decoded(FORMATS[name])
    assert abs(report["seconds"] - 6.0) < 0.1
    assert abs(len(samples) / RATE - report["seconds"]) < 0.001
    assert pitch(samples) == 220
    assert codes(report) == set()


def test_a_clip_comes_out_as_it_went_in() -> None:
    _, samples = decoded(wav(A_TONE))
    assert np.array_equal(samples, A_TONE[0])


def test_what_our_own_gateway_streams_can_be_uploaded() -> None:
    streamed = bytearray(wav(A_TONE))
    streamed[4:8] = streamed[40:44] = b"\xff" * 4
    assert decoded(bytes(streamed))[0]["seconds"] == 6.0


WARNINGS = {
    "clipped": wav(np.clip(tone(6.0, amplitude=32_000).astype(int) * 3, -32_768, 32_767).astype(np.int16)),
    "quiet": wav(tone(6.0, amplitude=1_000)),
    "mostly_silent": wav(np.hstack([tone(2.0), tone(8.0, amplitude=0)])),
    "narrow": wav(tone(6.0, rate=8_000), 8_000),
    "short": wav(tone(4.0)),
    "cut_off": in_format(tone(12.0), AudioFormat.MP3)[:70_000],
}


@pytest.mark.parametrize("code", WARNINGS)
def test_a_poor_clip_is_taken_and_told_about(code: str) -> None:
    report, _ = decoded(WARNINGS[code])
    assert codes(report) == {code}
    assert all(row["message"].endswith((".", "?")) for row in report["warnings"])


REFUSED = {
    "not audio": (b"Hello, I am a text. " * 100, "cannot be decoded"),
    "an executable": (Path(sys.executable).read_bytes()[:200_000], "cannot be decoded"),
    "nothing but a header": (wav(A_TONE)[:44], "breaks off"),
    "half a wav file": (wav(A_TONE)[:150_000], "breaks off"),
    "half a flac file": (in_format(A_TONE, AudioFormat.FLAC)[:30_000], "breaks off"),
    "half an m4a file": (encoded(A_TONE, "mp4", "aac")[:20_000], "cannot be decoded"),
    "too short": (clip(seconds=0.9), "at least 1 s"),
    "too long": (wav(tone(MAX_SECONDS + 1)), "longer than 120 s"),
    "digital silence": (wav(tone(6.0, amplitude=0)), "silent"),
    "next to silence": (wav(tone(6.0, amplitude=200)), "silent"),
    "nine channels": (wav(tone(6.0, channels=9)), "9 channels"),
    "64 channels": (wav(tone(2.0, channels=64)), "channels"),
    "4 kHz": (wav(tone(6.0, rate=4_000), 4_000), "sample rate"),
    "a megahertz": (wav(tone(1.5, rate=1_000_000), 1_000_000), "sample rate"),
    "a playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/hostname\n", "cannot be decoded"),
    "a list of files": (b"ffconcat version 1.0\nfile '/etc/hostname'\n", "cannot be decoded"),
    "a script for a filter": (b"sine=frequency=220:duration=10", "cannot be decoded"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_voice_can_be_made_of_is_refused_with_the_reason(name: str) -> None:
    upload, reason = REFUSED[name]
    assert reason in why(upload)


def test_no_other_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would follow this list of files, and speak with somebody else's voice."""
    (tmp_path / "victim.wav").write_bytes(clip())
    monkeypatch.chdir(tmp_path)
    assert "cannot be decoded" in why(b"ffconcat version 1.0\nfile victim.wav\n")


def test_a_format_that_nobody_records_in_is_not_even_tried() -> None:
    assert "cannot be decoded" in why(encoded(A_TONE, "au", "pcm_s16be"))


@pytest.mark.parametrize("form", [form for form in AudioFormat if form is not AudioFormat.PCM])
def test_no_damage_to_a_file_gets_further_than_a_reason(form: AudioFormat) -> None:
    whole = bytearray(in_format(tone(2.0), form))
    random = np.random.default_rng(7)
    for _ in range(25):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 20):
            damaged[place] = random.integers(256)
        with contextlib.suppress(Unusable):
            decoded(bytes(damaged[: random.integers(1, len(whole))]))


# -- the process


def run(upload: bytes, folder: Path) -> tuple[int, dict[str, Any]]:
    """Run the decoder as clip.py does."""
    (folder / "upload").write_bytes(upload)
    with (folder / "upload").open("rb") as source, (folder / "clip").open("wb") as target:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "gateway.voices.decode", str(target.fileno())],
            stdin=source,
            stdout=subprocess.PIPE,
            pass_fds=(target.fileno(),),
            env={},
            timeout=60,
            check=False,
        )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}


def test_ten_hours_in_a_small_file_cost_no_more_than_two_minutes_of_sound(tmp_path: Path) -> None:
    bomb = endless_opus(10)
    assert len(bomb) < 10 << 20
    code, report = run(bomb, tmp_path)
    assert (code, "longer than 120 s" in report["unusable"]) == (0, True)
    assert (tmp_path / "clip").stat().st_size == 0


def test_the_process_cannot_take_more_than_it_is_given(tmp_path: Path) -> None:
    """A WAV file with one sample of 192 kHz times a great many channels makes a decoder ask for memory."""
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0xFFFFFFFF, b"WAVE", b"fmt ", 16, 1, 65_535, 48_000,
                         0xFFFFFFFF, 65_535, 8, b"data", 0xFFFFFFFF)  # fmt: skip
    code, report = run(header + b"\0" * 1_000_000, tmp_path)
    assert code == 0
    assert "unusable" in report


def test_the_child_sees_the_limits(tmp_path: Path) -> None:
    program = (
        "import resource; from gateway.voices.decode import _give_up_rights; _give_up_rights();"
        "print(*[resource.getrlimit(l)[1] for l in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)])"
    )
    told = subprocess.check_output([sys.executable, "-I", "-c", program], text=True)
    memory, cpu, size = map(int, told.split())
    assert memory <= 1 << 30
    assert cpu <= 30
    assert size == 44 + 120 * RATE * 2


# -- spooling


async def pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def test_an_upload_becomes_a_clip_for_the_length_of_the_block(tmp_path: Path) -> None:
    async with Uploads(tmp_path).clip(pieces(clip())) as made:
        assert made.seconds == 6.0
        assert made.path.stat().st_size == made.bytes == 44 + 6 * RATE * 2
        assert os.listdir(tmp_path) == [made.path.name]
    assert os.listdir(tmp_path) == []


async def test_the_same_sound_has_the_same_hash_and_another_sound_another(tmp_path: Path) -> None:
    hashes = []
    for upload in (clip(), clip(), in_format(tone(6.0), AudioFormat.FLAC), clip(hz=221)):
        async with Uploads(tmp_path).clip(pieces(upload)) as made:
            hashes.append(made.sha256)
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


@pytest.mark.parametrize(
    ("upload", "code"),
    [
        (b"", ErrorCode.UNUSABLE_CLIP),
        (b"nonsense", ErrorCode.UNUSABLE_CLIP),
        (bytes(MAX_UPLOAD_BYTES + 1), ErrorCode.BODY_TOO_LARGE),
    ],
    ids=["empty", "nonsense", "too large"],
)
async def test_a_refused_upload_names_its_field_and_leaves_nothing(
    upload: bytes, code: ErrorCode, tmp_path: Path
) -> None:
    with pytest.raises(TtsError) as caught:
        async with Uploads(tmp_path).clip(pieces(upload)):
            pass
    assert (caught.value.code, caught.value.param) == (code, "audio_sample")
    assert os.listdir(tmp_path) == []
