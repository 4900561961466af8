"""PCM in, a file format out: one continuous encoder per response, or a whole file at once. Never loads numpy."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator
from enum import StrEnum
from fractions import Fraction
from types import TracebackType
from typing import NamedTuple, Protocol, Self, cast

import av
from av.audio.stream import AudioStream

PCM_SAMPLE_RATE = 24_000  # what clients assume of a pcm answer, which has no header to say so
_SAMPLE_BYTES = 2
_FALLBACK_RATE = 24_000  # for a codec that cannot have the stream's own
_UNKNOWN_SIZE = 0xFFFFFFFF
# A longer feed becomes several frames, so that a whole file is not in memory once more as one frame.
_LARGEST_FRAME_SAMPLES = 24_000


class AudioFormat(StrEnum):
    """The formats of the API, by the names that clients send."""

    WAV = "wav"
    MP3 = "mp3"
    OPUS = "opus"
    FLAC = "flac"
    AAC = "aac"
    PCM = "pcm"

    @property
    def content_type(self) -> str:
        return _CONTENT_TYPES[self]

    @property
    def is_cheap(self) -> bool:
        """Encoding it costs so little that it may run on the event loop; the others belong in an executor."""
        return self in (AudioFormat.WAV, AudioFormat.PCM)

    def sample_rate(self, spoken_hz: int) -> int:
        """Return the rate of a file of what was spoken at `spoken_hz`: that, where the format can have it."""
        if self is AudioFormat.PCM:
            return PCM_SAMPLE_RATE
        rates = None if self is AudioFormat.WAV else _CODECS[self].rates
        return spoken_hz if rates is None or spoken_hz in rates else _FALLBACK_RATE


_CONTENT_TYPES = {
    AudioFormat.WAV: "audio/wav",
    AudioFormat.MP3: "audio/mpeg",
    AudioFormat.OPUS: "audio/ogg; codecs=opus",
    AudioFormat.FLAC: "audio/flac",
    AudioFormat.AAC: "audio/aac",
    AudioFormat.PCM: "audio/pcm",
}


class _Codec(NamedTuple):
    """How FFmpeg makes a format. `rates` are those the codec takes, None for any."""

    container: str
    name: str
    sample_format: str
    bit_rate: int | None
    rates: tuple[int, ...] | None
    codec_options: dict[str, str]
    growing_options: dict[str, str]  # of the container, when it is sent while it is written


# Below 16 kHz, MPEG frames last so long that sound is held back for a quarter of a second: 24 kHz is used instead.
_MPEG_RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_CODECS = {
    AudioFormat.MP3: _Codec(
        container="mp3",
        name="libmp3lame",
        sample_format="s16p",
        bit_rate=64_000,
        rates=_MPEG_RATES,
        codec_options={"compression_level": "7"},  # half the CPU time of the default
        growing_options={"write_xing": "0", "id3v2_version": "0"},  # a Xing header cannot know the length yet
    ),
    AudioFormat.OPUS: _Codec(
        container="ogg",
        name="libopus",
        sample_format="s16",
        bit_rate=32_000,
        rates=_OPUS_RATES,
        # "voip" filters the lows away and takes three times the CPU time, for no word that a recogniser hears better.
        codec_options={"application": "audio", "compression_level": "5"},
        growing_options={"page_duration": "60000"},  # microseconds; by default a page comes every two seconds
    ),
    AudioFormat.FLAC: _Codec(
        container="flac",
        name="flac",
        sample_format="s16",
        bit_rate=None,
        rates=None,
        codec_options={},
        growing_options={"metadata_header_padding": "0"},  # by default 8 kB of zeros come before the sound
    ),
    AudioFormat.AAC: _Codec(
        container="adts",
        name="aac",
        sample_format="fltp",
        bit_rate=64_000,
        rates=_MPEG_RATES,
        codec_options={"aac_coder": "fast"},  # a fifth of the CPU time of the default
        growing_options={},
    ),
}


class StreamEncoder:
    """PCM s16le mono in, bytes of one file out while it grows. One per response; close it on every exit.

    The first bytes returned hold the complete header (44 bytes for WAV, of unknown length: 0xFFFFFFFF). The rate of
    the file is `sample_rate` where the format can have it; pcm is always 24 kHz.
    Meant for one thread at a time; if two meet all the same, the second waits.
    """

    def __init__(self, format_: AudioFormat, sample_rate: int) -> None:
        self._lock = threading.Lock()  # FFmpeg takes the process down when a close meets an encode
        self._is_open = True
        self._target = _target(format_, sample_rate, _Growing())

    def feed(self, pcm: bytes) -> bytes:
        """Return what can be sent after these samples; may be empty. Any whole number of samples is fine.

        Raises:
            ValueError: half a sample, or the encoder was finished or closed.
        """
        if len(pcm) % _SAMPLE_BYTES:
            raise ValueError(f"{len(pcm)} bytes are no whole number of 16-bit samples")
        with self._lock:
            self._check_open()
            return self._target.feed(pcm)

    def finish(self) -> bytes:
        """Return the last bytes; only with them is the file complete.

        Raises:
            ValueError: the encoder was finished or closed.
        """
        with self._lock:
            self._check_open()
            self._is_open = False
            return self._target.finish()

    def close(self) -> None:
        """Give the codec's memory back; any number of times. Waits for a `feed` that runs in another thread."""
        with self._lock:
            self._is_open = False
            self._target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._is_open:
            raise ValueError("the encoder is finished or closed")


def encode_whole(pcm: bytes, format_: AudioFormat, sample_rate: int) -> bytes:
    """Return a whole file, with its true size and duration in the header where the format has a place for them.

    Raises:
        ValueError: `pcm` ends with half a sample.
    """
    if len(pcm) % _SAMPLE_BYTES:
        raise ValueError(f"{len(pcm)} bytes are no whole number of 16-bit samples")
    if format_ is AudioFormat.WAV:
        return _wav_header(sample_rate, len(pcm)) + pcm
    file = io.BytesIO()
    target = _target(format_, sample_rate, file)
    try:
        data = target.feed(pcm) + target.finish()
    finally:
        target.close()
    return data or file.getvalue()


class _Growing:
    """A file that is sent while it is written. It has no `seek`, so that FFmpeg never goes back in it."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def write(self, data: bytes) -> int:
        self._buffer += data
        return len(data)

    def drain(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        return data


class _Target(Protocol):
    def feed(self, pcm: bytes) -> bytes: ...
    def finish(self) -> bytes: ...
    def close(self) -> None: ...


def _target(format_: AudioFormat, sample_rate: int, file: _Growing | io.BytesIO) -> _Target:
    if format_ is AudioFormat.WAV:
        return _Plain(_wav_header(sample_rate, None))
    if format_ is AudioFormat.PCM:
        return _Plain(b"") if sample_rate == PCM_SAMPLE_RATE else _Resampled(sample_rate)
    return _Muxed(_CODECS[format_], format_.sample_rate(sample_rate), sample_rate, file)


class _Plain:
    """The samples as they are, behind a header."""

    def __init__(self, header: bytes) -> None:
        self._header = header

    def feed(self, pcm: bytes) -> bytes:
        header, self._header = self._header, b""
        return header + pcm if header else pcm

    def finish(self) -> bytes:
        return self._header

    def close(self) -> None:
        pass


class _Resampled:
    """The samples at `PCM_SAMPLE_RATE`."""

    def __init__(self, sample_rate: int) -> None:
        self._frames = _Frames(sample_rate)
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=PCM_SAMPLE_RATE)

    def feed(self, pcm: bytes) -> bytes:
        return b"".join(self._bytes(frame) for frame in self._frames.of(pcm))

    def finish(self) -> bytes:
        return self._bytes(None) if self._frames.samples else b""

    def close(self) -> None:
        pass

    def _bytes(self, frame: av.AudioFrame | None) -> bytes:
        # A plane may be larger than its samples.
        made = self._resampler.resample(frame)
        return b"".join(bytes(piece.planes[0])[: piece.samples * _SAMPLE_BYTES] for piece in made)


class _Muxed:
    """The samples through a codec of FFmpeg's into a container, one encoder from the first sample to the last."""

    def __init__(self, codec: _Codec, rate: int, sample_rate: int, file: _Growing | io.BytesIO) -> None:
        self._file = file
        self._frames = _Frames(sample_rate)
        is_growing = isinstance(file, _Growing)
        options = codec.growing_options if is_growing else {}
        self._container = av.open(file, "w", format=codec.container, options=options)
        self._stream = cast(AudioStream, self._container.add_stream(codec.name, rate, options=codec.codec_options))
        self._stream.layout = "mono"
        self._stream.format = codec.sample_format
        if codec.bit_rate is not None:
            self._stream.bit_rate = codec.bit_rate

    def feed(self, pcm: bytes) -> bytes:
        for frame in self._frames.of(pcm):
            self._container.mux(self._stream.encode(frame))
        return self._drained()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._drained()

    def close(self) -> None:
        self._container.close()

    def _drained(self) -> bytes:
        return self._file.drain() if isinstance(self._file, _Growing) else b""


class _Frames:
    """FFmpeg's frames of a stream of samples, numbered on and on."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self.samples = 0

    def of(self, pcm: bytes) -> Iterator[av.AudioFrame]:
        for start in range(0, len(pcm), _LARGEST_FRAME_SAMPLES * _SAMPLE_BYTES):
            piece = pcm[start : start + _LARGEST_FRAME_SAMPLES * _SAMPLE_BYTES]
            frame = av.AudioFrame(format="s16", layout="mono", samples=len(piece) // _SAMPLE_BYTES)
            frame.planes[0].update(piece)  # from_ndarray would load numpy
            frame.sample_rate = self._sample_rate
            frame.time_base = Fraction(1, self._sample_rate)
            frame.pts = self.samples
            self.samples += frame.samples
            yield frame


def _wav_header(sample_rate: int, pcm_bytes: int | None) -> bytes:
    """Return the 44 bytes before the samples; None: of a length that is not known yet, which readers take for "to the
    end" where 0 would be an empty file."""
    size = _UNKNOWN_SIZE if pcm_bytes is None else pcm_bytes
    riff_size = _UNKNOWN_SIZE if pcm_bytes is None else 36 + pcm_bytes
    byte_rate = sample_rate * _SAMPLE_BYTES
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, byte_rate, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES)
    return struct.pack("<4sI4s", b"RIFF", riff_size, b"WAVE") + form + struct.pack("<4sI", b"data", size)
