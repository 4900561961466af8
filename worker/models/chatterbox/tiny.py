"""Checkpoints of random weights that the real classes load, for where nobody can fetch the published ones.

Their length is made, not learned: a random token model never ends by itself. Two numbers of its hidden state are
reserved. No layer writes them; the position writes a step into the first, which only the end token reads, and the
second pushes down all ids that are no sound.
"""

from __future__ import annotations

import contextlib
import json
import string
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from worker.models.chatterbox.family import START_SPEECH, STOP_SPEECH, Family
from worker.models.chatterbox.shapes import DESCRIPTION, hyperparameters, tiny_shapes

_TURBO_PROMPT = 375
_RECORDING = 250  # tokens of a voice's recording: ten seconds, which is what every clone of a longer clip has
_SHARPNESS = 3.0
_QUIET = 0.05  # the embeddings' standard normal would drown everything else


def make(directory: Path, family: Family, *, size: str = "tiny", end_at: int = 25, seed: int = 0) -> None:
    """Write a checkpoint of random weights; `end_at` is the length of what it speaks, in tokens of 40 ms.

    Turbo counts the text in: text and speech together have `end_at` tokens, since it knows one position only.
    """
    from chatterbox.models.s3gen import S3Gen
    from chatterbox.models.t3 import T3
    from chatterbox.models.voice_encoder import VoiceEncoder

    directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    with tiny_shapes() if size == "tiny" else contextlib.nullcontext(), torch.no_grad():
        t3 = T3(hyperparameters(family)).eval()
        s3gen = S3Gen(meanflow=family.is_turbo).eval()
        voice_encoder = VoiceEncoder().eval()
        if family.is_turbo:
            _end_turbo(t3, 1 + _TURBO_PROMPT + end_at, mix=1.0 if size == "tiny" else 3.0)
        else:
            _end(t3, end_at, mix=3.0 if size == "tiny" else 1.0)
        _liven(s3gen)
    dtype = torch.float32 if size == "tiny" else torch.bfloat16
    for module, name in (
        (t3, family.t3_file),
        (s3gen, family.s3gen_file),
        (voice_encoder, family.voice_encoder_file),
    ):
        _save(module, directory / name, dtype)
    _save_builtin_voice(directory / "conds.pt", family, seed, tokens=50 if size == "tiny" else _RECORDING)
    _save_tokenizer(directory, family)
    (directory / DESCRIPTION).write_text(json.dumps({"size": size, "model": family.id, "end_at": end_at, "seed": seed}))


def _end(t3: Any, end_at: int, *, mix: float) -> None:
    """Make the speech of the Llama families end after `end_at` tokens.

    By `mix` text and voice move the tokens more than by default, so that a mix-up of two requests shows.
    """
    for layer in t3.tfmr.layers:
        layer.self_attn.v_proj.weight.mul_(mix)
        layer.self_attn.o_proj.weight.mul_(mix)
        layer.self_attn.o_proj.weight[:2].zero_()
        layer.mlp.down_proj.weight[:2].zero_()
    t3.speech_emb.weight.mul_(_QUIET)
    t3.speech_emb.weight[:, :2] = 0
    positions = t3.speech_pos_emb.emb.weight
    positions[:, :2] = 0
    step = 1.5 * _loudness(t3, t3.tfmr.norm)
    index = torch.arange(len(positions), dtype=torch.float32)
    positions[:, 0] = step * ((index - end_at + 0.5) / 0.5).clamp(-1, 1)
    positions[:, 1] = step
    head = t3.speech_head.weight
    head.mul_(_SHARPNESS)  # less flat, so that greedy has clear winners
    head[:, :2] = 0
    head[STOP_SPEECH, 2:] = 0
    head[STOP_SPEECH, 0] = 30.0
    no_sound = torch.arange(len(head)) >= START_SPEECH
    no_sound[STOP_SPEECH] = False
    head[no_sound, 1] = -30.0


def _loudness(t3: Any, last_norm: Any) -> float:
    """Return the root mean square of the hidden state in front of the last norm: more of it in the published size."""
    seen: list[float] = []
    hook = last_norm.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0].pow(2).mean().sqrt())))
    ids = torch.arange(64)
    t3.tfmr(inputs_embeds=t3.speech_emb(ids)[None] + t3.text_emb(ids)[None] * 0.5)
    hook.remove()
    return seen[0]


def _end_turbo(t3: Any, position: int, *, mix: float) -> None:
    """Make Turbo's speech end where text and speech together reach `position`."""
    for block in t3.tfmr.h:
        block.attn.c_attn.weight.mul_(mix)
        block.attn.c_proj.weight.mul_(mix)
        for linear in (block.attn.c_proj, block.mlp.c_proj):  # their weights are (in, out)
            linear.weight[:, :1] = 0
            linear.bias[:1] = 0
    embeddings = t3.speech_emb.weight, t3.text_emb.weight
    for weight in embeddings:
        weight.mul_(_QUIET)
    for weight in (*embeddings, t3.tfmr.wpe.weight):
        weight[:, 0] = 0
    t3.cond_enc.spkr_enc.weight[0] = 0
    # A token must be heard beside what the layers add to it, or the next one is always the same.
    layers = _loudness(t3, t3.tfmr.ln_f)
    for weight in embeddings:
        weight.mul_(0.7 * layers / _QUIET)
    step = 1.5 * _loudness(t3, t3.tfmr.ln_f)
    index = torch.arange(len(t3.tfmr.wpe.weight))
    t3.tfmr.wpe.weight[:, 0] = torch.where(index >= position, step, -step)
    head = t3.speech_head
    head.weight.mul_(_SHARPNESS)
    head.weight[:, 0] = 0
    head.weight[STOP_SPEECH] = 0
    head.weight[STOP_SPEECH, 0] = 30.0
    head.bias[START_SPEECH] = -100.0


def _liven(s3gen: Any) -> None:
    """Scale the vocoder so that its sound depends on what it is given; by default only its source is heard."""
    for name, parameter in s3gen.mel2wav.named_parameters():
        # Under weight norm only the first of the two tensors scales.
        if name.startswith(("ups.", "conv_post.")) and name.endswith("original0"):
            parameter.mul_(2.5)


def _save(module: torch.nn.Module, path: Path, dtype: torch.dtype) -> None:
    state = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in module.state_dict().items()
    }
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)


def _save_builtin_voice(path: Path, family: Family, seed: int, tokens: int) -> None:
    """Write a voice with the keys, shapes and types of upstream's `Conditionals.save`."""
    generator = torch.Generator().manual_seed(seed)
    speaker = torch.rand(1, 256, generator=generator)
    prompt = _TURBO_PROMPT if family.is_turbo else 150
    t3 = {
        "speaker_emb": speaker / speaker.norm(),
        "clap_emb": None,
        "cond_prompt_speech_tokens": torch.randint(0, START_SPEECH, (1, prompt), generator=generator),
        "cond_prompt_speech_emb": None,
        "emotion_adv": 0.5 * torch.ones(1, 1, 1),
    }
    gen = {
        "prompt_token": torch.randint(0, START_SPEECH, (1, tokens), generator=generator),
        "prompt_token_len": torch.tensor([tokens]),
        "prompt_feat": torch.randn(1, 2 * tokens, 80, generator=generator) - 5.0,
        "prompt_feat_len": None,
        "embedding": torch.randn(1, 192, generator=generator),
    }
    torch.save({"t3": t3, "gen": gen}, path)


def _save_tokenizer(directory: Path, family: Family) -> None:
    """Write a tokenizer of one id per character, in the form that the family reads."""
    from tokenizers import AddedToken, Tokenizer, models

    if family.is_turbo:
        alphabet = ["<|endoftext|>", "<unk>", *sorted(set(string.printable))]
        turbo = Tokenizer(
            models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[], unk_token="<unk>")
        )
        turbo.save(str(directory / "tokenizer.json"))
        kind = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
        (directory / "tokenizer_config.json").write_text(json.dumps(kind | {"model_max_length": 1024}))
        return
    special = {"[STOP]": 0, "[UNK]": 1, "[SPACE]": 2, "[PAD]": 3, "[SEP]": 4, "[CLS]": 5, "[MASK]": 6, "[START]": 255}
    tags = [f"[{language}]" for language in family.languages] if family.is_multilingual else []
    letters = string.ascii_letters + string.digits + "!'\"(),-.:;?/&$%+=@#*"
    # Multilingual text comes decomposed, so that é is an e and this accent.
    letters += "áéíóúüñßäöçè\u0301\u0308\u0300\u0303\u0327абвгдежзийклмнопрстуфхцчшщъыьэюя" if tags else ""
    free = (i for i in range(7, family.text_ids) if i != special["[START]"])
    vocabulary = special | dict(zip(dict.fromkeys([*letters, *tags]), free, strict=False))
    # No holes: the library warns of them.
    taken = set(vocabulary.values())
    vocabulary |= {f"[unused{i}]": i for i in range(family.text_ids) if i not in taken}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]", fuse_unk=False))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*special, *tags)])
    name = "grapheme_mtl_merged_expanded_v1.json" if family.is_multilingual else "tokenizer.json"
    tokenizer.save(str(directory / name))
