"""A listener for end-to-end tests: decodes what a client got, and writes down what was said."""

from __future__ import annotations

import io
from typing import NamedTuple

import av
import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

from bench.recogniser import SAMPLE_RATE, Recogniser

_normalise = EnglishTextNormalizer()

Sound = np.ndarray[tuple[int], np.dtype[np.float32]]


class Recording(NamedTuple):
    """What can be told of a file without understanding it. `sound` is its samples from -1 to 1, at `sample_rate`."""

    sound: Sound
    sample_rate: int
    codec: str

    @property
    def seconds(self) -> float:
        return len(self.sound) / self.sample_rate

    @property
    def loudness_dbfs(self) -> float:
        """The root mean square of the whole, 0 for the loudest square wave; silence is -inf."""
        with np.errstate(divide="ignore"):
            return float(20 * np.log10(np.sqrt(np.mean(np.square(self.sound)))))

    def longest_silence_seconds(self, below_dbfs: float = -60.0) -> float:
        """Return the length of the longest stretch in which no 10 ms are louder than that."""
        step = self.sample_rate // 100
        frames = self.sound[: len(self.sound) // step * step].reshape(-1, step)
        loud = np.flatnonzero(np.abs(frames).max(axis=1) > 10 ** (below_dbfs / 20))
        edges = np.concatenate([[-1], loud, [len(frames)]])
        return float(np.diff(edges).max() - 1) / 100


def record(audio: bytes, *, pcm_rate: int | None = None) -> Recording:
    """Decode a file of any format; `pcm_rate` says that it is s16le samples without a header, at that rate.

    Raises:
        av.error.FFmpegError: it is none, or broken.
    """
    if pcm_rate is not None:
        samples = np.frombuffer(audio, "<i2").astype(np.float32) / 32768
        return Recording(samples, pcm_rate, "pcm_s16le")
    with av.open(io.BytesIO(audio)) as container:
        stream = container.streams.audio[0]
        return Recording(_decoded(container, stream.rate), stream.rate, stream.codec_context.name)


class Ears:
    """The recogniser of `tts-bench quality`, for files of any format."""

    def __init__(self) -> None:
        self._recogniser = Recogniser()

    def hear(self, audio: bytes, *, pcm_rate: int | None = None) -> str:
        """Return the words in a file of any format; silence and noise have none. See `record` for `pcm_rate`."""
        if pcm_rate is not None:
            return self._recogniser.hear(_resampled(record(audio, pcm_rate=pcm_rate)))
        with av.open(io.BytesIO(audio)) as container:
            return self._recogniser.hear(_decoded(container, SAMPLE_RATE))


def word_error_rate(reference: str, heard: str) -> float:
    """Return the share of the reference's words that were heard wrong, not at all, or too many; 0 is perfect."""
    return float(jiwer.wer(_normalise(reference), _normalise(heard)))


def _decoded(container: av.container.InputContainer, sample_rate: int) -> Sound:
    resampler = av.AudioResampler(format="flt", layout="mono", rate=sample_rate)
    frames = [piece for frame in (*container.decode(audio=0), None) for piece in resampler.resample(frame)]
    return np.concatenate([np.zeros(0, np.float32), *(frame.to_ndarray()[0] for frame in frames)])


def _resampled(recording: Recording) -> Sound:
    frame = av.AudioFrame.from_ndarray(recording.sound[None], format="flt", layout="mono")
    frame.sample_rate = recording.sample_rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    frames = [piece for given in (frame, None) for piece in resampler.resample(given)]
    return np.concatenate([piece.to_ndarray()[0] for piece in frames])
