"""The token stage: from text and voice to speech tokens, one token a step for every run.

Upstream's own transformer does the arithmetic. What is ours is the loop: nothing of one request is kept on the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from chatterbox.models.t3.inference.alignment_stream_analyzer import LLAMA_ALIGNED_HEADS, AlignmentStreamAnalyzer
from torch import Tensor
from transformers import DynamicCache

from worker.models.chatterbox.conditionals import Voice
from worker.models.chatterbox.family import START_SPEECH, STOP_SPEECH, Family
from worker.models.chatterbox.sampler import Sampling, draw

# Shorter texts have no last five tokens that the alignment could look at; upstream fails at them.
_SHORTEST_ALIGNED = 6


@dataclass(slots=True)
class TokenRun:
    """One text being turned into tokens. `tokens` are ids of sound; `has_ended` once the model said that it is done."""

    sampling: Sampling
    tokens: list[int] = field(default_factory=list)
    has_ended: bool = False
    cache: Any = None
    logits: Tensor | None = None  # (V,) float32, of the token that comes next
    seen: Tensor | None = None  # (V,) bool
    alignment: _Alignment | None = None


class TokenStage:
    """The token model and the loop around it. One thread."""

    def __init__(self, t3: Any, family: Family) -> None:
        self._t3 = t3
        self._family = family
        self._spies = _Spies(t3.tfmr) if family.is_multilingual else None
        self._backbone_dtype = t3.speech_head.weight.dtype

    @torch.inference_mode()
    def begin(
        self, voice: Voice, text: Tensor, sampling: Sampling, exaggeration: float, tokens: Sequence[int] = ()
    ) -> TokenRun:
        """Read the text, and the `tokens` that another worker made of it already; the next one is ready to be drawn."""
        run = TokenRun(sampling, list(tokens))
        run.seen = torch.zeros(self._t3.hp.speech_tokens_dict_size, dtype=torch.bool, device=self._t3.device)
        if not (self._family.is_turbo and tokens):
            run.seen[START_SPEECH] = True
        ids = text.to(self._t3.device)
        embeddings = self._turbo_prompt(voice, ids) if self._family.is_turbo else self._prompt(voice, ids, exaggeration)
        if self._spies is not None and len(ids) >= _SHORTEST_ALIGNED:
            begin = voice.prefix.shape[1] + 1
            run.alignment = _Alignment((begin, begin + len(ids)))
        run.cache = DynamicCache()
        self._forward(run, embeddings, before=None)
        if tokens:
            self._reread(run)
        return run

    @torch.inference_mode()
    def step(self, runs: Sequence[TokenRun]) -> None:
        """Draw the next token of every run and read it."""
        for run in runs:
            assert run.logits is not None, "stepped before it was begun"
            assert run.seen is not None
            position = len(run.tokens)
            token = draw(run.logits, run.seen, run.sampling, position, is_turbo=self._family.is_turbo)
            if token == STOP_SPEECH:
                run.has_ended = True
                run.cache = run.logits = None
                continue
            if self._family.is_turbo and not position:
                run.seen[START_SPEECH] = False  # it counts for the first token only: t3.py:431, 454
            run.tokens.append(token)
            run.seen[token] = True
            self._forward(run, self._embedding(token, position + 1), before=token)

    def end(self, run: TokenRun) -> None:
        """Give back what the run holds; it is not stepped again."""
        run.cache = run.logits = None

    def _reread(self, run: TokenRun) -> None:
        assert run.seen is not None
        run.seen[run.tokens] = True
        embeddings = [self._embedding(token, position + 1) for position, token in enumerate(run.tokens)]
        if run.alignment is None:
            self._forward(run, torch.cat(embeddings, dim=1), before=None)
            return
        # The alignment goes forward a token at a time.
        for token, embedding in zip(run.tokens, embeddings, strict=True):
            self._forward(run, embedding, before=token)

    def _forward(self, run: TokenRun, embeddings: Tensor, before: int | None) -> None:
        """Read embeddings (rows, n, hidden) behind what was read before; leave the next logits in the run."""
        if self._spies is not None:
            self._spies.run = run
        hidden = self._t3.tfmr(
            inputs_embeds=embeddings.to(self._backbone_dtype), past_key_values=run.cache, use_cache=True
        ).last_hidden_state
        logits = self._t3.speech_head(hidden[:, -1]).float()
        if not self._family.is_turbo:
            guidance = run.sampling.cfg_weight
            logits = logits[:1] + guidance * (logits[:1] - logits[1:])
        if run.alignment is not None:
            logits = run.alignment.step(logits, next_token=START_SPEECH if before is None else before)
        run.logits = logits[0]

    def _prompt(self, voice: Voice, text: Tensor, exaggeration: float) -> Tensor:
        """Return (2, n, hidden): voice, emotion, text, two begins of speech; the second row is blind to the text.

        Guidance of 0 has two rows as well: upstream has one there, and fails.
        """
        t3 = self._t3
        emotion = t3.cond_enc.emotion_adv_fc(torch.full((1, 1, 1), exaggeration, device=t3.device))
        words = t3.text_emb(text)[None]
        words = torch.cat([words, torch.zeros_like(words)]) + t3.text_pos_emb(text[None])
        # Two of them, both at position 0: t3.py:260 and :319.
        begin = self._embedding(START_SPEECH, 0)
        voiced = torch.cat([voice.prefix, emotion], dim=1).expand(2, -1, -1)
        return torch.cat([voiced, words, begin, begin], dim=1)

    def _turbo_prompt(self, voice: Voice, text: Tensor) -> Tensor:
        return torch.cat([voice.prefix, self._t3.text_emb(text)[None], self._embedding(START_SPEECH, 0)], dim=1)

    def _embedding(self, token: int, position: int) -> Tensor:
        """Return the embedding of a speech token, (rows, 1, hidden)."""
        t3 = self._t3
        embedding = t3.speech_emb(torch.tensor([[token]], device=t3.device))
        if self._family.is_turbo:
            return embedding
        return (embedding + t3.speech_pos_emb.get_fixed_embedding(position)).expand(2, -1, -1)


class _Spies:
    """Hands the attention of three heads to the run that is being read.

    Hooked in once. Upstream adds three hooks a request and never takes them off: after forty requests every step
    copies 155 attention maps to the host.
    """

    def __init__(self, transformer: Any) -> None:
        self.run: TokenRun | None = None
        for index, (layer, head) in enumerate(LLAMA_ALIGNED_HEADS):
            transformer.layers[layer].self_attn.register_forward_hook(self._hook(index, head))

    def _hook(self, index: int, head: int) -> Any:
        def note(_module: Any, _inputs: Any, output: Any) -> None:
            if self.run is not None and self.run.alignment is not None:
                self.run.alignment.last_aligned_attns[index] = output[1][0, head].float().cpu()

        return note


class _Alignment(AlignmentStreamAnalyzer):
    """Upstream's watch over where in the text the speech is: holds the end back, or forces it. Without its hooks."""

    def __init__(self, text: tuple[int, int]) -> None:
        super().__init__(None, None, text, eos_idx=STOP_SPEECH)

    def _add_attention_spy(self, tfmr: Any, buffer_idx: int, layer_idx: int, head_idx: int) -> None:
        pass
