"""The sound carries the mark, whole or in chunks; a worker that cannot put it on does not get ready."""

import os
import subprocess
import sys

import numpy as np
import perth
import pytest
import torch

from tests.chatterbox.conftest import Checkpoints, Models
from tests.chatterbox.speaking import clip, samples, segment, speak
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
    marker = Marker(enabled=True, device=torch.device("cpu"))
    for count in (SHORTEST_SAMPLES, 1200, 48_000):
        [pcm] = marker.mark([torch.zeros(count)])
        assert pcm.result() == bytes(2 * count)
    marker.close()


@pytest.mark.parametrize(("seconds", "pitch"), [(2.0, 120.0), (2.0, 220.0), (0.3, 120.0), (0.16, 150.0)])
def test_ours_is_the_mark_of_upstream(seconds: float, pitch: float) -> None:
    perths, marker = perth.PerthImplicitWatermarker(), Marker(enabled=True, device=torch.device("cpu"))
    sound = clip(pitch, seconds).samples
    theirs = perths.apply_watermark(sound, sample_rate=24_000)
    [pcm] = marker.mark([torch.from_numpy(sound)])
    # As a GPU is given it: beside others, with silence behind.
    together = marker._finished_on_device([torch.zeros(960), torch.from_numpy(sound)], 5)
    assert (together.shape[0], together[0].abs().max(), together[2:].abs().max()) == (6, 0, 0)
    sure = [strength(to_pcm(torch.from_numpy(theirs)).numpy().tobytes()), strength(pcm.result())]
    sure.append(strength(together[1, : len(sound)].numpy().tobytes()))
    sizes = [np.linalg.norm(one - sound) / np.linalg.norm(sound) for one in (theirs, samples(pcm.result()))]
    # What is left is what upstream's resampling takes away, and the end of a piece, which is mirrored or silent.
    apart = [
        np.linalg.norm(samples(one) - theirs) / np.linalg.norm(sound)
        for one in (pcm.result(), together[1, : len(sound)].numpy().tobytes())
    ]
    sys.stdout.write(f"sure: {sure}, size of the mark: {sizes}, apart: {apart}\n")
    assert min(sure[1:]) > min(0.95, sure[0] - 0.05)
    assert apart[0] < 0.02
    # Below 2 kHz, where the mark is, upstream takes nothing away.
    ours, upstreams, plain = (np.fft.rfft(one)[: len(sound) // 12] for one in (samples(pcm.result()), theirs, sound))
    below = np.linalg.norm(ours - upstreams) / np.linalg.norm(upstreams - plain)
    sys.stdout.write(f"below 2 kHz: {below} of the mark\n")
    assert below < 0.02
    assert apart[1] < 0.04
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    marker.close()


def test_loud_samples_do_not_wrap_around() -> None:
    assert to_pcm(torch.tensor([1.24, -1.24])).tolist() == [32767, -32767]


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
