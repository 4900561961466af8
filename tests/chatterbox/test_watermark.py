"""The sound carries the mark, whole or in chunks; a worker that cannot put it on does not get ready."""

import os
import subprocess
import sys

import numpy as np
import perth
import pytest

from tests.chatterbox.conftest import Checkpoints, Models
from tests.chatterbox.speaking import samples, segment, speak
from worker.models.chatterbox.watermark import SHORTEST_SAMPLES, Marker, to_pcm


def strength(pcm: bytes) -> float:
    """Return how surely the mark is there: near 1 where it is, far below where it is not."""
    found = perth.PerthImplicitWatermarker().get_watermark(
        samples(pcm).astype(np.float32), sample_rate=24_000, round=False
    )
    return float(np.mean(found))


@pytest.mark.parametrize("stream", ["segments", "chunk"])
def test_the_mark_is_found(stream: str, loaded: Models) -> None:
    model = loaded("chatterbox", stream="chunk") if stream == "chunk" else loaded("chatterbox")
    assert strength(speak(model, [segment("chatterbox")])[0]) > 0.9


def test_without_it_no_mark_is_found(loaded: Models) -> None:
    assert strength(speak(loaded("chatterbox", watermark=False), [segment("chatterbox")])[0]) < 0.9


def test_the_shortest_piece_and_silence_keep_their_length() -> None:
    marker = Marker(enabled=True)
    for count in (SHORTEST_SAMPLES, 1200, 48_000):
        assert len(marker.mark(np.zeros(count, np.float32)).result()) == 2 * count
    marker.close()


def test_loud_samples_do_not_wrap_around() -> None:
    assert np.frombuffer(to_pcm(np.array([1.24, -1.24], np.float32)), "<i2").tolist() == [32767, -32767]


def test_a_worker_without_its_watermark_does_not_get_ready(checkpoint: Checkpoints) -> None:
    # As where setuptools is too new: the package imports, and has None in the place of its marker.
    code = (
        "import sys; sys.modules['pkg_resources'] = None; import perth; assert perth.PerthImplicitWatermarker is None;"
        "from worker.config import ChatterboxOptions; from worker.models.chatterbox.model import ChatterboxModel;"
        f"ChatterboxModel(ChatterboxOptions(checkpoint={str(checkpoint('chatterbox'))!r}), 'chatterbox', 'cpu').load()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode != 0
    assert "WatermarkMissing: The watermark cannot be put on" in done.stderr
