"""How large upstream's classes are built: as published, or tiny for the random checkpoints."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from worker.models.chatterbox.family import Family

DESCRIPTION = "random.json"  # beside weights that are random; says how small they are
# Upstream's alignment of multilingual text listens to layers 9, 12 and 13 and heads up to 15.
_HIDDEN, _LAYERS, _HEADS = 64, 16, 16


def hyperparameters(family: Family) -> Any:
    """Return upstream's configuration of the token model."""
    from chatterbox.models.t3.modules.t3_config import T3Config

    hp = T3Config(text_tokens_dict_size=family.text_ids)
    if family.is_turbo:  # tts_turbo.py:149-155
        hp.llama_config_name = "GPT2_medium"
        hp.speech_tokens_dict_size = 6563
        hp.input_pos_emb = None
        hp.speech_cond_prompt_len = 375
        hp.use_perceiver_resampler = False
        hp.emotion_adv = False
    return hp


@contextlib.contextmanager
def tiny_shapes() -> Iterator[None]:
    """While active, upstream's constructors build tiny shapes: arguments are swapped, nothing is written anew."""
    import s3tokenizer.model_v2 as tokenizer
    from chatterbox.models.s3gen import s3gen
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from chatterbox.models.t3.modules import cond_enc
    from chatterbox.models.voice_encoder.config import VoiceEncConfig

    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        def resize(config: dict[str, Any], **changes: Any) -> None:
            before = dict(config)
            stack.callback(config.update, before)
            stack.callback(config.clear)
            config.update(changes)

        def smaller(name: str, **changes: Any) -> None:
            build: Callable[..., Any] = getattr(s3gen, name)
            put(s3gen, name, lambda *positional, **named: build(*positional, **{**named, **changes}))

        resize(
            LLAMA_CONFIGS["Llama_520M"],
            hidden_size=_HIDDEN,
            num_hidden_layers=_LAYERS,
            num_attention_heads=_HEADS,
            num_key_value_heads=_HEADS,
            head_dim=8,
            intermediate_size=64,
        )
        resize(LLAMA_CONFIGS["GPT2_medium"], n_embd=_HIDDEN, hidden_size=_HIDDEN, n_head=4, n_layer=2)
        perceiver = functools.partial(
            cond_enc.Perceiver, pre_attention_query_size=_HIDDEN, embedding_dim=_HIDDEN, num_attn_heads=4
        )
        put(cond_enc, "Perceiver", perceiver)
        # The tokenizer of recordings ignores the configuration that it is given, and takes this default.
        small = tokenizer.ModelConfig(n_audio_state=64, n_audio_head=1, n_audio_layer=1)
        put(tokenizer.S3TokenizerV2.__init__, "__defaults__", (small,))
        smaller("CAMPPlus", growth_rate=4, init_channels=16)
        smaller("UpsampleConformerEncoder", linear_units=64, num_blocks=1)
        smaller("ConditionalDecoder", channels=[32], num_heads=1, n_blocks=1, num_mid_blocks=1)
        smaller("HiFTGenerator", base_channels=32)
        smaller("ConvRNNF0Predictor", cond_channels=16)
        put(VoiceEncConfig, "ve_hidden_size", 16)
        yield
