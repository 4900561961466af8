"""What the model must know of a voice: computed once from a recording, kept as bytes, ready on the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import librosa
import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from wire.errors import ErrorCode, TtsError
from worker.models.base import Clip
from worker.models.chatterbox.family import FRAMES_A_TOKEN, SAMPLE_RATE, SPEECH_IDS, TOKENS_A_SECOND, Family
from worker.models.chatterbox.upstream import Parts

_S3_RATE = 16_000
_REFERENCE_SECONDS = 10  # DEC_COND_LEN of tts.py
_TARGET_LUFS = -27.0  # norm_loudness of tts_turbo.py
_QUIETEST_PEAK = 1e-3
_PROMPT_SHAPES = {
    "speaker_emb": (1, 256),
    "t3_prompt": (1, None),
    "prompt_token": (1, None),
    "prompt_feat": (1, None, 80),
    "embedding": (1, 192),
}


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice on the device. `prefix` (1, n, hidden) is what the token stage hears first, without the emotion."""

    prefix: Tensor
    prompt_token: Tensor  # (1, p) int64
    prompt_feat: Tensor  # (1, 2p, 80) float32
    embedding: Tensor  # (1, 192) float32

    @property
    def bytes(self) -> int:
        tensors = (self.prefix, self.prompt_token, self.prompt_feat, self.embedding)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def prepare(clip: Clip, parts: Parts, family: Family) -> bytes:
    """Compute a voice from a recording as upstream's `prepare_conditionals` does; exaggeration is no part of it.

    Raises:
        TtsError: `unusable_clip` (param `voice`): too short for this model, or silent.
    """
    if clip.seconds <= family.shortest_clip_seconds:
        raise _unusable(
            f"has {clip.seconds:.1f} seconds, and {family.id} needs more than {family.shortest_clip_seconds:g}"
        )
    if not np.isfinite(clip.samples).all() or np.abs(clip.samples).max() < _QUIETEST_PEAK:
        raise _unusable("is silent")
    wav = _resampled(clip.samples.astype(np.float32), clip.sample_rate, SAMPLE_RATE)
    if family.is_turbo:
        wav = _levelled(wav)
    wav_16k = _resampled(wav, SAMPLE_RATE, _S3_RATE)
    s3gen = parts.s3gen
    with torch.inference_mode():
        reference = s3gen.embed_ref(wav[: _REFERENCE_SECONDS * SAMPLE_RATE], SAMPLE_RATE, device=s3gen.device)
        tokens, _ = s3gen.tokenizer.forward(
            [wav_16k[: family.prompt_seconds * _S3_RATE]], max_len=parts.t3.hp.speech_cond_prompt_len
        )
        speaker = torch.from_numpy(parts.voice_encoder.embeds_from_wavs([wav_16k], sample_rate=_S3_RATE))
    made = {
        "speaker_emb": speaker.mean(dim=0, keepdim=True).float(),
        "t3_prompt": torch.atleast_2d(tokens).int(),
        **_prompt(reference),
    }
    return save({name: tensor.cpu().contiguous() for name, tensor in made.items()})


def prepared_default(parts: Parts) -> bytes:
    """Return the checkpoint's own voice in the form of a prepared one."""
    builtin = parts.builtin_voice
    made = {
        "speaker_emb": builtin["t3"]["speaker_emb"].float().reshape(1, -1),
        "t3_prompt": torch.atleast_2d(builtin["t3"]["cond_prompt_speech_tokens"]).int(),
        **_prompt(builtin["gen"]),
    }
    return save({name: tensor.cpu().contiguous() for name, tensor in made.items()})


def _prompt(reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the flow hears first. A clip that ends within a token has a mel frame more than its tokens say."""
    tokens, mel = torch.atleast_2d(reference["prompt_token"]).int(), reference["prompt_feat"].float()
    whole = min(tokens.shape[1], mel.shape[1] // FRAMES_A_TOKEN)
    return {
        "prompt_token": tokens[:, :whole],
        "prompt_feat": mel[:, : whole * FRAMES_A_TOKEN],
        "embedding": reference["embedding"].float(),
    }


def on_device(prepared: bytes, parts: Parts, reference_seconds: int = _REFERENCE_SECONDS) -> Voice:
    """Bring a prepared voice to the devices and compute what every segment of it begins with.

    Of its recording the flow hears the first `reference_seconds`. What was prepared has all ten, so that workers with
    other settings can use it.

    Raises:
        TtsError: `unusable_clip` (param `voice`): not bytes that `prepare` made.
    """
    tensors = _checked(prepared)
    t3, device, sound_device = parts.t3, parts.device, parts.s3gen.device
    heard = reference_seconds * TOKENS_A_SECOND
    with torch.inference_mode():
        voice = Voice(
            prefix=_prefix(t3, tensors["speaker_emb"].to(device), tensors["t3_prompt"].long().to(device)),
            prompt_token=tensors["prompt_token"][:, :heard].long().to(sound_device),
            prompt_feat=tensors["prompt_feat"][:, : heard * FRAMES_A_TOKEN].to(sound_device),
            embedding=tensors["embedding"].to(sound_device),
        )
    if sound_device.type == "cuda":
        # The sound stage has a thread and a stream of its own, and may look at it at once.
        torch.cuda.current_stream(sound_device).synchronize()
    return voice


def _prefix(t3: torch.nn.Module, speaker: Tensor, prompt: Tensor) -> Tensor:
    """Run upstream's `prepare_conditioning` once. It keeps its result inside the object it was given, which is ours."""
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    cond = T3Cond(speaker_emb=speaker, cond_prompt_speech_tokens=prompt, emotion_adv=torch.zeros(1, 1, 1).to(speaker))
    prefix = t3.prepare_conditioning(cond)
    # The emotion is the last position, and the only one that exaggeration changes.
    return prefix[:, :-1] if t3.hp.emotion_adv else prefix


def _checked(prepared: bytes) -> dict[str, Tensor]:
    try:
        tensors = load(prepared)
        for name, shape in _PROMPT_SHAPES.items():
            actual = tuple(tensors[name].shape)
            if len(actual) != len(shape) or any(
                want not in (None, is_) for want, is_ in zip(shape, actual, strict=True)
            ):
                raise ValueError(f"{name} has the shape {actual}")
        for name in ("t3_prompt", "prompt_token"):
            # Looked up in tables of that size: beyond them is a fault of the device, not an exception.
            if tensors[name].numel() < 1 or int(tensors[name].min()) < 0 or int(tensors[name].max()) >= SPEECH_IDS:
                raise ValueError(f"{name} has ids outside 0 to {SPEECH_IDS - 1}")
        if tensors["prompt_feat"].shape[1] != 2 * tensors["prompt_token"].shape[1]:
            raise ValueError("prompt_feat and prompt_token are of different lengths")
    except Exception as error:  # boundary: bytes from elsewhere; whatever is wrong with them means the same
        raise _unusable(f"was prepared by something else: {error}") from None
    return tensors


def _unusable(why: str) -> TtsError:
    return TtsError(ErrorCode.UNUSABLE_CLIP, f"The recording of this voice {why}.", param="voice")


def _resampled(wav: np.ndarray, source: int, target: int) -> np.ndarray:
    return wav if source == target else librosa.resample(wav, orig_sr=source, target_sr=target)


def _levelled(wav: np.ndarray) -> np.ndarray:
    """Bring the recording to -27 LUFS, in single precision: upstream makes doubles, which its own model refuses."""
    import pyloudnorm

    loudness = pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(wav)
    gain = 10.0 ** ((_TARGET_LUFS - loudness) / 20.0)
    return (wav * np.float32(gain)).astype(np.float32) if np.isfinite(gain) and gain > 0 else wav


class VoiceCache:
    """The voices on the device, the least recently used ones given up first. One writer: the engine thread."""

    def __init__(self, limit_bytes: int, reference_seconds: int = _REFERENCE_SECONDS) -> None:
        self._limit = limit_bytes
        self._reference_seconds = reference_seconds
        self._voices: OrderedDict[str, Voice] = OrderedDict()
        self._bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0

    def __repr__(self) -> str:
        return f"<VoiceCache voices={len(self._voices)} bytes={self._bytes}/{self._limit}>"

    def __contains__(self, key: str) -> bool:
        return key in self._voices

    def take(self, key: str, prepared: bytes, parts: Parts) -> Voice:
        """Return the voice, bringing it to the device if it is not there. A voice in use outlives its eviction."""
        if (voice := self._voices.get(key)) is not None:
            self._voices.move_to_end(key)
            self.hits += 1
            return voice
        self.misses += 1
        voice = on_device(prepared, parts, self._reference_seconds)
        self._voices[key] = voice
        self._bytes += voice.bytes
        while self._bytes > self._limit and len(self._voices) > 1:
            self._bytes -= self._voices.popitem(last=False)[1].bytes
            self.evictions += 1
        return voice

    def clear(self) -> None:
        self._voices.clear()
        self._bytes = 0
