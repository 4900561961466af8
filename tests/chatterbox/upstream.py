"""Upstream's own loops, unchanged, on the same weights; only where they draw noise they are given ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import chatterbox.models.s3gen.flow_matching as flow_matching
import chatterbox.models.s3gen.hifigan as hifigan
import chatterbox.models.t3.t3 as t3_module
import torch
from chatterbox.models.t3.modules.cond_enc import T3Cond
from safetensors.torch import load
from torch import Tensor

from worker.models.chatterbox import noise
from worker.models.chatterbox.family import SILENCE, Family
from worker.models.chatterbox.upstream import Parts

t3_module.tqdm = lambda items, **_: items
flow_matching.tqdm = lambda items, **_: items


def _t3_cond(prepared: bytes, exaggeration: float) -> T3Cond:
    tensors = load(prepared)
    return T3Cond(
        speaker_emb=tensors["speaker_emb"],
        cond_prompt_speech_tokens=tensors["t3_prompt"].long(),
        emotion_adv=exaggeration * torch.ones(1, 1, 1),
    )


def greedy_tokens(parts: Parts, family: Family, prepared: bytes, text: Tensor, exaggeration: float = 0.5) -> list[int]:
    """Return `T3.inference(top_p=0)`, or Turbo's, without the end. Takes the hooks off that upstream leaves."""
    cond = _t3_cond(prepared, exaggeration)
    if family.is_turbo:
        ids = parts.t3.inference_turbo(cond, text[None], temperature=0.8, top_k=1000, top_p=0.0)
        return [int(i) for i in ids[0]]
    hooks = [dict(layer.self_attn._forward_hooks) for layer in parts.t3.tfmr.layers]
    try:
        ids = parts.t3.inference(
            t3_cond=cond,
            text_tokens=torch.stack([text, text]),
            max_new_tokens=200,
            temperature=0.8,
            cfg_weight=0.5,
            repetition_penalty=family.defaults["repetition_penalty"],
            min_p=0.05,
            top_p=0.0,
        )[0]
    finally:
        for layer, before in zip(parts.t3.tfmr.layers, hooks, strict=True):
            layer.self_attn._forward_hooks.clear()
            layer.self_attn._forward_hooks.update(before)
        if hasattr(parts.t3, "patched_model"):
            del parts.t3.patched_model
    return [int(i) for i in ids if int(i) < 6561]


def wave(parts: Parts, family: Family, prepared: bytes, tokens: list[int], seed: int) -> Tensor:
    """Return `S3Gen.inference` for these tokens, with the noise that the request of that seed has."""
    tensors = load(prepared)
    reference = {
        "prompt_token": tensors["prompt_token"].long(),
        "prompt_token_len": torch.tensor([tensors["prompt_token"].shape[1]]),
        "prompt_feat": tensors["prompt_feat"],
        "prompt_feat_len": None,
        "embedding": tensors["embedding"],
    }
    tail = [SILENCE] * 3 if family.is_turbo else []
    with _our_noise(seed, prompt_frames=tensors["prompt_feat"].shape[1]):
        sound, _ = parts.s3gen.inference(torch.tensor([*tokens, *tail]), ref_dict=reference)
    return sound[0]


@torch.inference_mode()
def samples(s3gen: Any, mel: Tensor, seed: int) -> Tensor:
    """Return what `S3Gen.inference` makes of mel frames (80, n), with that request's noise."""
    with _our_noise(seed, prompt_frames=0):
        sound, _ = s3gen.mel2wav.inference(speech_feat=mel[None])
    fade = s3gen.trim_fade
    sound[:, : len(fade)] *= fade
    return sound[0]


@contextmanager
def _our_noise(seed: int, prompt_frames: int) -> Iterator[None]:
    """Answer upstream's four draws: the flow's start (Turbo: its new part again), the phases, the source's noise."""
    randn, randn_like, sample = torch.randn, torch.randn_like, hifigan.Uniform.sample

    def flow(frames: int, first: int = 0) -> Tensor:
        index = torch.arange(first, first + frames)[None, :] * 80 + torch.arange(80)[:, None]
        return noise.normal(seed, noise.Stream.FLOW, index)[None]

    def like(x: Tensor, **_: Any) -> Tensor:
        if x.shape[1] == 80:
            return flow(x.shape[2])
        if x.shape[1] == 9:
            index = torch.arange(x.shape[2])[None, :] * 9 + torch.arange(9)[:, None]
            return noise.normal(seed, noise.Stream.SOURCE, index)[None]
        return torch.zeros_like(x)  # the third output of the source, which nobody uses

    def phases(_self: Any, sample_shape: Any) -> Tensor:
        number = torch.arange(sample_shape[1])[None, :, None]
        return (noise.uniform(seed, noise.Stream.PHASE, number).float() * 2 - 1) * torch.pi

    torch.randn = lambda *shape, **_: flow(shape[2], prompt_frames)
    torch.randn_like = like
    hifigan.Uniform.sample = phases
    try:
        yield
    finally:
        torch.randn, torch.randn_like, hifigan.Uniform.sample = randn, randn_like, sample
