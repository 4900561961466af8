"""The published classes with their weights: what is read from a checkpoint directory, on which device, how precise."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
import torch.nn.utils.parametrize
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3
from chatterbox.models.tokenizers import tokenizer as tokenizers
from chatterbox.models.voice_encoder import VoiceEncoder
from safetensors.torch import load_file

from worker.models.chatterbox.family import Family
from worker.models.chatterbox.packing import pack
from worker.models.chatterbox.shapes import DESCRIPTION, hyperparameters, tiny_shapes

log = logging.getLogger("worker.models.chatterbox")

_SAMPLED_BYTES = 1 << 20


class Precision(StrEnum):
    """How exact the arithmetic is. The vocoder and the tokenizer of recordings are float32 in all of them."""

    FP32 = "fp32"
    TF32 = "tf32"  # matrices of float32 are multiplied with ten bits of mantissa, where the device can
    BF16 = "bf16"  # tf32, and the token model and the flow's estimator in bfloat16


@dataclass(frozen=True, slots=True)
class Parts:
    """A loaded checkpoint. Nothing here remembers a request."""

    t3: Any
    s3gen: Any
    voice_encoder: Any
    tokenizer: Any
    builtin_voice: dict[str, dict[str, Any]]
    device: torch.device  # of T3 and the voice encoder; `s3gen.device` is the other's
    format: str
    description: Mapping[str, Any]  # of a checkpoint that `make-tiny-checkpoint` made; else empty


def load_parts(directory: Path, family: Family, device: str, sound_device: str, precision: Precision) -> Parts:
    """Load a checkpoint that is laid out as upstream's `from_local` wants it, S3Gen on `sound_device`."""
    description = _description(directory)
    shapes = tiny_shapes() if description.get("size") == "tiny" else contextlib.nullcontext()
    with shapes:
        t3 = T3(hyperparameters(family))
        s3gen = S3Gen(meanflow=family.is_turbo)
        voice_encoder = VoiceEncoder()
    _fill(t3, directory / family.t3_file, strict=True)
    _fill(s3gen, directory / family.s3gen_file, strict=family.is_turbo or family.is_multilingual)
    _fill(voice_encoder, directory / family.voice_encoder_file, strict=True)
    if family.is_turbo:
        del t3.tfmr.wte
    for part, place in ((t3, device), (s3gen, sound_device), (voice_encoder, device)):
        part.to(place).eval().requires_grad_(False)
    _without_weight_norm(s3gen.mel2wav)
    apply_precision(t3, s3gen, precision)
    if device == "cpu":
        pack(t3)
    for place in (device, sound_device):
        if place.startswith("cuda"):
            # Other threads, on streams of their own, are to find all of it finished.
            torch.cuda.synchronize(place)
    return Parts(
        t3=t3,
        s3gen=s3gen,
        voice_encoder=voice_encoder,
        tokenizer=_tokenizer(directory, family),
        builtin_voice=torch.load(directory / "conds.pt", map_location="cpu", weights_only=True),
        device=torch.device(device),
        format=_format(directory, family),
        description=description,
    )


def apply_precision(t3: Any, s3gen: Any, precision: Precision) -> None:
    """Set what may be computed less exactly.

    Never wider than this: a flow in bfloat16 rounds token ids, 5,715 of 6,561 of them, and the vocoder's transforms
    have no half precision.
    """
    torch.set_float32_matmul_precision("highest" if precision is Precision.FP32 else "high")
    torch.backends.cudnn.allow_tf32 = precision is not Precision.FP32
    if precision is Precision.BF16:
        t3.tfmr.to(torch.bfloat16)
        t3.speech_head.to(torch.bfloat16)
        s3gen.flow.decoder.estimator.to(torch.bfloat16)


def _fill(module: torch.nn.Module, path: Path, *, strict: bool) -> None:
    is_pickled = path.suffix == ".pt"
    state = torch.load(path, map_location="cpu", weights_only=True) if is_pickled else load_file(path)
    module.load_state_dict(state["model"][0] if "model" in state else state, strict=strict)


def _without_weight_norm(vocoder: torch.nn.Module) -> None:
    """Multiply the norms in, once: the same samples, and 82 operations less a call. Upstream's own way of it fails."""
    for module in vocoder.modules():
        if torch.nn.utils.parametrize.is_parametrized(module, "weight"):
            torch.nn.utils.parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def _description(directory: Path) -> dict[str, Any]:
    path = directory / DESCRIPTION
    description: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return description


def _format(directory: Path, family: Family) -> str:
    """Name this model with these weights, from the sizes and both ends of the files: all 3 GB would take seconds."""
    digest = hashlib.sha256()
    for name in (family.t3_file, family.s3gen_file, family.voice_encoder_file):
        path = directory / name
        size = path.stat().st_size
        with path.open("rb") as file:
            digest.update(f"{name} {size}".encode() + file.read(_SAMPLED_BYTES))
            file.seek(max(0, size - _SAMPLED_BYTES))
            digest.update(file.read())
    return f"{family.id}-1-{digest.hexdigest()[:16]}"


def _tokenizer(directory: Path, family: Family) -> Any:
    if family.is_turbo:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if family.is_multilingual:
        return Graphemes(directory / "grapheme_mtl_merged_expanded_v1.json")
    return tokenizers.EnTokenizer(str(directory / "tokenizer.json"))


class Graphemes(tokenizers.MTLTokenizer):
    """Upstream's multilingual tokenizer, with the Chinese table from the checkpoint instead of from the network."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self.cangjie_converter = _Cangjie(path.parent)
        self.check_vocabset_sot_eot()


class _Cangjie(tokenizers.ChineseCangjieConverter):
    def _load_cangjie_mapping(self, model_dir: Path) -> None:
        path = model_dir / "Cangjie5_TC.json"
        for entry in json.loads(path.read_text(encoding="utf-8")) if path.exists() else ():
            word, code = entry.split("\t")[:2]
            self.word2cj[word] = code
            self.cj2word.setdefault(code, []).append(word)

    def _init_segmenter(self) -> None:
        self.segmenter = None
