"""A program of its own: decodes an upload that nobody trusts, in a process with little memory, time and reach.

`python -m gateway.voices.decode FD < upload` writes the clip to the file descriptor FD as a WAV file of 24 kHz mono
s16le and prints one JSON object: what it found, or `{"unusable": why}`. gateway/voices/clip.py starts it.
"""

from __future__ import annotations

import array
import json
import os
import resource
import struct
import sys
from typing import Any, BinaryIO, NamedTuple

SAMPLE_RATE = 24_000  # what Chatterbox makes its conditionals from; nothing of a clip above 12 kHz is ever used
MAX_SECONDS = 120.0
MIN_SECONDS = 1.0
MAX_CHANNELS = 8
RATES_HZ = (8_000, 192_000)

_MEMORY_BYTES = 512 << 20
_CPU_SECONDS = 20
_SAMPLE_BYTES = 2
_HEADER_BYTES = 44
# Demuxers that read one file and nothing else; playlists, concatenations and devices would read further ones.
_FORMATS = "wav,w64,aiff,caf,flac,mp3,ogg,mov,mp4,m4a,matroska,webm,aac,amr"
_CODECS = ("pcm_", "adpcm_ms", "adpcm_ima_wav", "aac", "alac", "amr", "flac", "mp3", "opus", "libopus", "vorbis")

# Below these a window of 20 ms counts as silence, a whole clip as quiet; at full scale a sample counts as clipped.
_WINDOW = SAMPLE_RATE // 50
_SILENCE = 330  # -40 dBFS
_QUIET = 3_300  # -20 dBFS
_FULL_SCALE = 32_600
_CLIPPED_SHARE = 0.002
_SOUNDING_SHARE = 0.4
_NARROW_HZ = 16_000


class Unusable(Exception):
    """The upload is no clip that a voice could be made of; the message is for the person who sent it."""


class _Source(NamedTuple):
    """What the file says of itself."""

    rate: int
    told_seconds: float | None


def main() -> None:
    target = int(sys.argv[1])
    _give_up_rights()
    import av  # noqa: F401  # where it is broken, that is not the upload's fault either

    try:
        with os.fdopen(0, "rb") as upload, os.fdopen(target, "wb") as clip:
            report = decode(upload, clip)
    except Unusable as error:
        report = {"unusable": str(error)}
    except OSError as error:  # the clip could not be written: the disk is full, which is not the upload's fault
        report = {"errno": error.errno}
    except Exception as error:  # boundary: PyAV meets strange files in strange ways
        report = {"unusable": f"it cannot be decoded ({type(error).__name__})"}
    sys.stdout.write(json.dumps(report))


def decode(upload: BinaryIO, clip: BinaryIO) -> dict[str, Any]:
    """Write the clip and return its `seconds` and the `warnings` about it.

    Raises:
        Unusable: it is no audio, too short, too long, silent, or of a kind that is not taken.
    """
    _check_riff(upload)
    samples, source = _samples(upload)
    seconds = len(samples) / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        raise Unusable(f"it lasts {seconds:.2f} s; a voice needs at least {MIN_SECONDS:g} s, better 10 s")
    warnings = _warnings(samples, source)
    clip.write(_wav_header(len(samples)))
    samples.tofile(clip)
    return {"seconds": round(seconds, 3), "warnings": warnings}


def _check_riff(upload: BinaryIO) -> None:
    """FFmpeg takes half a WAV file for a whole one."""
    head = upload.read(8)
    size = upload.seek(0, os.SEEK_END)
    upload.seek(0)
    if head[:4] == b"RIFF" and len(head) == 8:
        (told,) = struct.unpack("<I", head[4:])
        # Of a file that was streamed while it was made, the size is unknown: all ones.
        if told < 0x7FFFFF00 and told + 8 > size + 1:
            raise Unusable(f"it breaks off: {size} bytes came of a WAV file of {told + 8}; send it again")


def _samples(upload: BinaryIO) -> tuple[array.array[int], _Source]:
    import av  # here, with the rights already given up

    samples = array.array("h")
    try:
        # A list of formats that FFmpeg itself heeds, and no protocol: what is read is this file and no other.
        container = av.open(upload, "r", options={"format_whitelist": _FORMATS, "protocol_whitelist": "none"})
        with container:
            if not container.streams.audio:
                raise Unusable("it holds no sound")
            stream = container.streams.audio[0]
            told = container.duration
            source = _Source(_check(stream), told / av.time_base if told else None)
            stream.codec_context.thread_count = 1
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            for frame in container.decode(stream):
                frame.pts = None
                for made in resampler.resample(frame):
                    _take(samples, made)
            for made in resampler.resample(None):
                _take(samples, made)
    # FFmpegError is what it finds wrong; the others are PyAV's, on files that contradict themselves.
    except (av.FFmpegError, ValueError, TypeError, OverflowError, RuntimeError, AssertionError) as error:
        if len(samples) < MIN_SECONDS * SAMPLE_RATE:
            raise Unusable(f"it cannot be decoded as audio ({type(error).__name__})") from None
        raise Unusable(f"it breaks off after {len(samples) / SAMPLE_RATE:.1f} s ({type(error).__name__})") from None
    return samples, source


def _check(stream: Any) -> int:
    """Return the stream's sample rate.

    Raises:
        Unusable: the codec is not one for recordings, or the figures are not those of a recording.
    """
    context = stream.codec_context
    if not context.name.startswith(_CODECS):
        raise Unusable(f"its codec is {context.name}; send wav, mp3, flac, ogg, opus or m4a")
    channels, rate = context.layout.nb_channels, context.sample_rate
    if not 1 <= channels <= MAX_CHANNELS:
        raise Unusable(f"it has {channels} channels; at most {MAX_CHANNELS} are taken, best is one")
    if not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise Unusable(f"its sample rate is {rate} Hz; it must lie between {RATES_HZ[0]} and {RATES_HZ[1]}")
    return int(rate)


def _take(samples: array.array[int], frame: Any) -> None:
    # A plane may be larger than its samples.
    samples.frombytes(bytes(frame.planes[0])[: frame.samples * _SAMPLE_BYTES])
    if len(samples) > MAX_SECONDS * SAMPLE_RATE:
        raise Unusable(f"it lasts longer than {MAX_SECONDS:g} s; cut out the best 10 to 20 s")


def _warnings(samples: array.array[int], source: _Source) -> list[dict[str, str]]:
    """Return what is wrong with a clip that can be used all the same.

    Raises:
        Unusable: it is silent.
    """
    windows = [samples[start : start + _WINDOW] for start in range(0, len(samples), _WINDOW)]
    peaks = [max(max(window), -min(window)) for window in windows]
    sounding = sum(peak > _SILENCE for peak in peaks)
    if sounding * _WINDOW < MIN_SECONDS / 2 * SAMPLE_RATE:
        raise Unusable("it is silent, or nearly so: nothing of a voice can be heard in it")
    warnings = []
    clipped = sum(abs(sample) >= _FULL_SCALE for sample in samples) / len(samples)
    if clipped > _CLIPPED_SHARE:
        warnings.append(("clipped", f"{clipped:.1%} of it is clipped; the voice will sound harsh. Record it softer."))
    if max(peaks) < _QUIET:
        warnings.append(("quiet", "It is recorded very softly; noise will be heard in the voice. Record it louder."))
    if sounding < _SOUNDING_SHARE * len(peaks):
        share = 1 - sounding / len(peaks)
        warnings.append(("mostly_silent", f"{share:.0%} of it is silence. Cut that out: only speech makes a voice."))
    if source.rate < _NARROW_HZ:
        warnings.append(("narrow", f"It was recorded at {source.rate} Hz; the voice will sound dull, as by telephone."))
    if len(samples) < 5 * SAMPLE_RATE:
        warnings.append(("short", "It is shorter than 5 s. The voice will be more alike with 10 s of speech."))
    seconds = len(samples) / SAMPLE_RATE
    if source.told_seconds is not None and source.told_seconds > 1.1 * seconds + 0.5:
        # Not refused: of some mp3 files the length is no more than a guess from the first of their bit rates.
        told = f"It says that it lasts {source.told_seconds:.1f} s, and {seconds:.1f} s came. Was it sent whole?"
        warnings.append(("cut_off", told))
    return [{"code": code, "message": message} for code, message in warnings]


def _wav_header(samples: int) -> bytes:
    data = samples * _SAMPLE_BYTES
    byte_rate = SAMPLE_RATE * _SAMPLE_BYTES
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", _HEADER_BYTES - 8 + data, b"WAVE"),
        *(b"fmt ", 16, 1, 1, SAMPLE_RATE, byte_rate, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES),
        *(b"data", data),
    )


def _give_up_rights() -> None:
    """Bound what a fault in a decoder can cost. 120 s of sound take 150 MB of addresses and 1 s."""
    longest = _HEADER_BYTES + round(MAX_SECONDS * SAMPLE_RATE) * _SAMPLE_BYTES
    for limit, most in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_FSIZE, longest),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    os.nice(10)  # what is being spoken goes first


if __name__ == "__main__":
    main()
