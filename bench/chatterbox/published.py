"""Upstream's own engine, as it is: loaded by its own `from_local`, decoding by its own loop, one request at a time."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chatterbox.models.s3gen.flow_matching as flow_module
import chatterbox.models.t3.t3 as t3_module
import torch
from chatterbox.tts import ChatterboxTTS
from chatterbox.tts_turbo import ChatterboxTurboTTS

from bench.chatterbox.device import finish
from bench.chatterbox.making import is_tiny
from worker.models.chatterbox.family import START_SPEECH, Family
from worker.models.chatterbox.shapes import tiny_shapes

# What upstream's `generate` hands to its loop.
_SAMPLING = {"temperature": 0.8, "cfg_weight": 0.5, "repetition_penalty": 1.2, "min_p": 0.05, "top_p": 1.0}


@dataclass(frozen=True, slots=True)
class Spoken:
    """One utterance: samples at 24 kHz (float32, -1 to 1), and seconds, in all and by stage."""

    samples: Any
    seconds: float
    stages: dict[str, float]


class Published:
    """Upstream's class with a checkpoint. Speaks with the checkpoint's own voice."""

    def __init__(self, directory: Path, family: Family, device: str, *, watermark: bool = True) -> None:
        kind = ChatterboxTurboTTS if family.is_turbo else ChatterboxTTS
        with tiny_shapes() if is_tiny(directory) else contextlib.nullcontext(), _quiet():
            self.tts: Any = kind.from_local(directory, device)
        self._family = family
        self._device = device
        self._stages: dict[str, float] = {}
        for stage, owner, name in (
            ("decode", self.tts.t3, "inference_turbo" if family.is_turbo else "inference"),
            ("vocode", self.tts.s3gen, "inference"),
            ("watermark", self.tts.watermarker, "apply_watermark"),
        ):
            setattr(owner, name, self._timed(stage, getattr(owner, name)))
        if not watermark:
            self.tts.watermarker.apply_watermark = lambda samples, **_: samples

    def speak(self, text: str, clip: Path | None = None) -> Spoken:
        """Speak one text by upstream's `generate`, alone; with the voice of the recording in `clip` if there is one."""
        self._stages = {}
        finish(self._device)
        began = time.perf_counter()
        with _as_published():
            samples = self.tts.generate(text, audio_prompt_path=clip)
        return Spoken(samples[0].float().numpy(), time.perf_counter() - began, dict(self._stages))

    def decode(self, ids: Any, steps: int, observe: Callable[[int], None] = lambda _step: None) -> list[float]:
        """Run upstream's loop over a text's ids, and return the instant at which each step began.

        `observe` is called with the step's number then. Fewer instants come back where the model ended.
        """
        instants: list[float] = []

        def watched(items: Iterable[int], **_options: Any) -> Iterator[int]:
            for number, item in enumerate(items):
                instants.append(time.perf_counter())
                observe(number)
                yield item

        self._run_loop(ids, steps, watched)
        return instants

    def greedy(self, ids: Any, most: int) -> list[int]:
        """Return the ids of sound that upstream's loop draws greedily."""
        found = self._run_loop(ids, most, _unwatched, top_p=0.0)
        return [int(token) for token in found if int(token) < START_SPEECH]

    def _run_loop(self, ids: Any, steps: int, progress: Any, **options: float) -> Any:
        t3, cond = self.tts.t3, self.tts.conds.t3
        with _as_published(progress), torch.inference_mode():
            if self._family.is_turbo:
                return t3.inference_turbo(cond, ids[None].to(self._device), max_gen_len=steps, **options)[0]
            pair = torch.stack([ids, ids]).to(self._device)
            return t3.inference(t3_cond=cond, text_tokens=pair, max_new_tokens=steps, **_SAMPLING | options)[0]

    def _timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*positional: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = work(*positional, **named)
            finish(self._device)
            self._stages[stage] = self._stages.get(stage, 0.0) + time.perf_counter() - began
            return result

        return run


def _unwatched(items: Iterable[Any], **_options: Any) -> Iterable[Any]:
    return items


@contextlib.contextmanager
def _as_published(progress: Any = _unwatched) -> Iterator[None]:
    """Compute in upstream's precision, and put `progress` where upstream draws a bar a step.

    Upstream sets no precision, so it has torch's: float32 for matrices. Ours sets another for the whole process.
    """
    matrices, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    bars = t3_module.tqdm, flow_module.tqdm
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    t3_module.tqdm, flow_module.tqdm = progress, _unwatched
    try:
        with _quiet():
            yield
    finally:
        torch.set_float32_matmul_precision(matrices)
        torch.backends.cudnn.allow_tf32 = convolutions
        t3_module.tqdm, flow_module.tqdm = bars


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Keep what upstream prints off a table's console."""
    return contextlib.redirect_stdout(io.StringIO())
