import gc
import io
import struct
import subprocess
import sys
import wave
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import psutil
import pytest

from gateway.encoder import AudioFormat, StreamEncoder, encode_whole

RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]
LOSSLESS = [AudioFormat.WAV, AudioFormat.FLAC]
LOSSY = [AudioFormat.MP3, AudioFormat.OPUS, AudioFormat.AAC]
# What a stream of them has more than it was given: encoder delay and the padding of the last frame.
PADDING_SECONDS = {AudioFormat.MP3: 0.110, AudioFormat.AAC: 0.110}
SECONDS = 1.7

Samples = np.ndarray[tuple[int], np.dtype[np.int16]]


def hum(sample_rate: int, seconds: float = SECONDS) -> Samples:
    """Noise without its highs: every part of it is different, so that a shift or a gap shows."""
    noise = np.random.default_rng(7).normal(size=round(sample_rate * seconds))
    window = max(1, sample_rate // 2000)
    smooth = np.convolve(noise, np.ones(window) / window, "same")
    return (smooth / np.abs(smooth).max() * 20_000).astype("<i2")


def decode(data: bytes) -> tuple[int, Samples]:
    """Return the sample rate and the samples of a file, as far as it goes."""
    with av.open(io.BytesIO(data)) as container:
        rate = container.streams.audio[0].rate
        resampler = av.AudioResampler(format="s16", layout="mono")
        frames = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
        return rate, np.concatenate([frame.to_ndarray()[0] for frame in frames] or [np.zeros(0, np.int16)])


def streamed(pcm: bytes, format_: AudioFormat, sample_rate: int, samples_a_feed: int) -> list[bytes]:
    step = 2 * samples_a_feed
    with StreamEncoder(format_, sample_rate) as encoder:
        return [*(encoder.feed(pcm[i : i + step]) for i in range(0, len(pcm), step)), encoder.finish()]


def at_rate(samples: Samples, rate: int, other: int) -> Samples:
    places = np.arange(0, len(samples), rate / other)
    return np.interp(places, np.arange(len(samples)), samples)


def likeness(one: Samples, other: Samples) -> float:
    length = min(len(one), len(other))
    return float(np.corrcoef(one[:length], other[:length])[0, 1])


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("format_", LOSSLESS)
@pytest.mark.parametrize("samples_a_feed", [480, 100_000])
def test_wav_and_flac_give_back_every_sample(format_: AudioFormat, sample_rate: int, samples_a_feed: int):
    samples = hum(sample_rate)
    rate, heard = decode(b"".join(streamed(samples.tobytes(), format_, sample_rate, samples_a_feed)))
    assert rate == sample_rate
    assert np.array_equal(heard, samples)
    rate, heard = decode(encode_whole(samples.tobytes(), format_, sample_rate))
    assert rate == sample_rate
    assert np.array_equal(heard, samples)


def test_pcm_at_24_khz_is_what_came_in():
    pcm = hum(24_000).tobytes()
    assert b"".join(streamed(pcm, AudioFormat.PCM, 24_000, 777)) == pcm
    assert encode_whole(pcm, AudioFormat.PCM, 24_000) == pcm


@pytest.mark.parametrize("sample_rate", [rate for rate in RATES if rate != 24_000])
def test_pcm_is_24_khz_whatever_came_in(sample_rate: int):
    samples = hum(sample_rate)
    expected = at_rate(samples, sample_rate, 24_000)
    for data in (
        b"".join(streamed(samples.tobytes(), AudioFormat.PCM, sample_rate, 480)),
        encode_whole(samples.tobytes(), AudioFormat.PCM, sample_rate),
    ):
        heard = np.frombuffer(data, "<i2")
        assert abs(len(heard) - SECONDS * 24_000) <= 24
        assert likeness(heard, expected) > 0.97


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("format_", LOSSY)
def test_a_stream_of_any_rate_lasts_as_long_as_its_samples(format_: AudioFormat, sample_rate: int):
    rate, heard = decode(b"".join(streamed(hum(sample_rate).tobytes(), format_, sample_rate, sample_rate // 50)))
    padding = PADDING_SECONDS.get(format_, 0)
    assert -0.001 <= len(heard) / rate - SECONDS <= padding + 0.001


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("format_", [AudioFormat.MP3, AudioFormat.OPUS])
def test_a_whole_mp3_or_opus_file_is_exact_in_time(format_: AudioFormat, sample_rate: int):
    data = encode_whole(hum(sample_rate).tobytes(), format_, sample_rate)
    rate, heard = decode(data)
    assert len(heard) / rate == pytest.approx(SECONDS, abs=0.001)
    expected = at_rate(hum(sample_rate), sample_rate, rate)
    assert likeness(heard, expected) > 0.9  # a shift by a millisecond would leave nothing of it
    with av.open(io.BytesIO(data)) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(SECONDS, abs=0.01)


def test_a_whole_flac_file_says_how_long_it_is():
    with av.open(io.BytesIO(encode_whole(hum(24_000).tobytes(), AudioFormat.FLAC, 24_000))) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(SECONDS)


@pytest.mark.parametrize("format_", LOSSY)
def test_one_encoder_runs_through_the_whole_stream(format_: AudioFormat):
    # How the samples are cut into feeds leaves no trace: no gap, no click, no second header.
    pcm = hum(24_000).tobytes()
    _, at_once = decode(b"".join(streamed(pcm, format_, 24_000, 10**6)))
    _, in_pieces = decode(b"".join(streamed(pcm, format_, 24_000, 777)))
    assert np.array_equal(at_once, in_pieces)


@pytest.mark.parametrize("format_", AudioFormat)
def test_feeds_of_one_sample_make_a_file_too(format_: AudioFormat):
    pcm = hum(24_000, 0.1).tobytes()
    data = b"".join(streamed(pcm, format_, 24_000, 1))
    if format_ is AudioFormat.PCM:
        assert data == pcm
    else:
        rate, heard = decode(data)
        assert 0.1 <= len(heard) / rate <= 0.1 + PADDING_SECONDS.get(format_, 0)


@pytest.mark.parametrize("format_", AudioFormat)
def test_silence_stays_silent(format_: AudioFormat):
    data = encode_whole(bytes(48_000), format_, 24_000)
    heard = np.frombuffer(data, "<i2") if format_ is AudioFormat.PCM else decode(data)[1]
    assert len(heard) >= 24_000
    assert np.abs(heard).max() <= 1


@pytest.mark.parametrize("format_", AudioFormat)
def test_the_first_tenth_of_a_second_brings_the_first_bytes(format_: AudioFormat):
    first, *_ = streamed(hum(24_000).tobytes(), format_, 24_000, 2400)
    assert first


@pytest.mark.parametrize("sample_rate", [8_000, 24_000, 44_100])
@pytest.mark.parametrize("format_", [*LOSSLESS, *LOSSY])
def test_no_more_than_200_ms_of_sound_is_held_back(format_: AudioFormat, sample_rate: int):
    step = sample_rate // 50
    *outputs, _last = streamed(hum(sample_rate).tobytes(), format_, sample_rate, step)
    for number in range(13, len(outputs), 6):
        rate, heard = decode(b"".join(outputs[:number]))
        assert number * step / sample_rate - len(heard) / rate <= 0.200


@pytest.mark.parametrize("format_", LOSSY)
def test_an_unfinished_stream_is_shorter_than_a_finished_one(format_: AudioFormat):
    *outputs, last = streamed(hum(24_000).tobytes(), format_, 24_000, 2400)
    assert last
    assert len(decode(b"".join(outputs))[1]) < len(decode(b"".join([*outputs, last]))[1])


def test_the_first_write_of_a_wav_stream_has_the_whole_header_of_unknown_length():
    first, *_ = streamed(b"\1\0", AudioFormat.WAV, 22_050, 1)
    assert len(first) == 44 + 2
    assert first[:4] + first[8:16] == b"RIFFWAVEfmt "
    assert struct.unpack_from("<HHIIHH", first, 20) == (1, 1, 22_050, 44_100, 2, 16)
    assert struct.unpack_from("<I", first, 4) == struct.unpack_from("<I", first, 40) == (0xFFFFFFFF,)
    with wave.open(io.BytesIO(first)) as reader:  # as clients do with the first chunk
        assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (22_050, 1, 2)


def test_a_whole_wav_file_has_its_true_sizes():
    data = encode_whole(bytes(1000), AudioFormat.WAV, 24_000)
    assert struct.unpack_from("<I", data, 4) == (len(data) - 8,)
    with wave.open(io.BytesIO(data)) as reader:
        assert reader.getnframes() == 500


@pytest.mark.parametrize("format_", AudioFormat)
def test_a_stream_without_a_sample_ends_all_the_same(format_: AudioFormat):
    with StreamEncoder(format_, 22_050) as encoder:
        data = encoder.feed(b"") + encoder.finish()
    assert len(data) == 44 if format_ is AudioFormat.WAV else len(data) < 200
    assert len(encode_whole(b"", AudioFormat.WAV, 22_050)) == 44
    encode_whole(b"", format_, 22_050)


@pytest.mark.parametrize("format_", AudioFormat)
def test_half_a_sample_is_refused(format_: AudioFormat):
    with StreamEncoder(format_, 24_000) as encoder, pytest.raises(ValueError, match="3 bytes"):
        encoder.feed(b"abc")
    with pytest.raises(ValueError, match="3 bytes"):
        encode_whole(b"abc", format_, 24_000)


@pytest.mark.parametrize("format_", AudioFormat)
def test_an_encoder_is_closed_once_and_for_all(format_: AudioFormat):
    encoder = StreamEncoder(format_, 24_000)
    encoder.feed(bytes(4800))
    encoder.close()
    encoder.close()
    with pytest.raises(ValueError, match="closed"):
        encoder.feed(b"\0\0")
    with pytest.raises(ValueError, match="closed"):
        encoder.finish()


@pytest.mark.parametrize("format_", AudioFormat)
def test_nothing_follows_the_finish(format_: AudioFormat):
    with StreamEncoder(format_, 24_000) as encoder:
        encoder.feed(bytes(4800))
        encoder.finish()
        with pytest.raises(ValueError, match="finished"):
            encoder.feed(b"\0\0")


@pytest.mark.parametrize("format_", LOSSY)
def test_a_close_from_another_thread_waits_for_the_feed(format_: AudioFormat):
    # Without the wait, the codec is freed under the feed and the process dies: only a process can tell.
    code = (
        "import threading; from gateway.encoder import AudioFormat, StreamEncoder\n"
        "pcm = bytes(480_000)\n"
        "for _ in range(8):\n"
        f"    encoder = StreamEncoder(AudioFormat({format_.value!r}), 24_000); encoder.feed(bytes(4800))\n"
        "    feeding = threading.Thread(target=encoder.feed, args=(pcm,)); feeding.start()\n"
        "    encoder.close(); feeding.join()\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("format_", LOSSY)
def test_encoders_in_many_threads_do_not_disturb_each_other(format_: AudioFormat):
    pcm = hum(24_000).tobytes()
    alone = streamed(pcm, format_, 24_000, 2400)
    with ThreadPoolExecutor(8) as threads:
        together = [threads.submit(streamed, pcm, format_, 24_000, 2400) for _ in range(16)]
    expected = decode(b"".join(alone))[1]
    assert all(np.array_equal(decode(b"".join(future.result()))[1], expected) for future in together)


def test_closed_encoders_leave_no_memory_behind():
    # AAC is the one that leaks when it is only dropped: 30 kB each time.
    def open_and_close(times: int) -> None:
        for _ in range(times):
            with StreamEncoder(AudioFormat.AAC, 24_000) as encoder:
                encoder.feed(bytes(48_000))

    open_and_close(20)
    gc.collect()
    before = psutil.Process().memory_info().rss
    open_and_close(300)
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 3_000_000


def test_only_formats_that_cost_nothing_run_on_the_event_loop():
    assert {format_ for format_ in AudioFormat if format_.is_cheap} == {AudioFormat.WAV, AudioFormat.PCM}


@pytest.mark.parametrize(
    ("format_", "content_type"),
    [
        ("wav", "audio/wav"),
        ("mp3", "audio/mpeg"),
        ("opus", "audio/ogg; codecs=opus"),
        ("flac", "audio/flac"),
        ("aac", "audio/aac"),
        ("pcm", "audio/pcm"),
    ],
)
def test_content_types_are_those_that_clients_know(format_: str, content_type: str):
    assert AudioFormat(format_).content_type == content_type


def test_encoding_loads_neither_numpy_nor_torch():
    code = (
        "import sys; from gateway.encoder import AudioFormat, StreamEncoder, encode_whole\n"
        "for format_ in AudioFormat:\n"
        "    for rate in (22_050, 24_000):\n"
        "        encode_whole(bytes(4800), format_, rate)\n"
        "        with StreamEncoder(format_, rate) as encoder: encoder.feed(bytes(4800)); encoder.finish()\n"
        "print({'numpy', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
