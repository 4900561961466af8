"""A segment's text as token ids, checked before anything of it reaches the device."""

from __future__ import annotations

import torch
from chatterbox.tts import punc_norm
from chatterbox.tts_turbo import punc_norm as punc_norm_turbo
from torch import Tensor

from wire.errors import ErrorCode, TtsError
from worker.models.chatterbox.family import MAX_TEXT_TOKENS, Family
from worker.models.chatterbox.upstream import Parts

_START_TEXT, _STOP_TEXT = 255, 0


def to_ids(text: str, language: str | None, parts: Parts, family: Family) -> Tensor:
    """Return the ids of a text, shape (n,) int64 on the CPU, with what begins and ends it.

    Raises:
        TtsError: `unspeakable_text` for a letter that the tokenizer does not know; `text_too_long`; `invalid_value`
            for a language that the model does not speak.
    """
    if language is not None and language.lower() not in family.languages:
        raise TtsError(
            ErrorCode.INVALID_VALUE,
            f"{family.id} does not speak {language[:20]!r}; it speaks {', '.join(family.languages)}.",
            param="language",
        )
    if family.is_turbo:
        ids = _turbo_ids(text, parts, family)
    else:
        ids = _grapheme_ids(text, (language or "en").lower(), parts, family)
    if ids.numel() > MAX_TEXT_TOKENS:
        # Beyond the learned positions: an index out of range, which on CUDA is the end of the process.
        message = f"The text has {ids.numel()} tokens; {family.id} reads at most {MAX_TEXT_TOKENS}."
        raise TtsError(ErrorCode.TEXT_TOO_LONG, message, param="text")
    if int(ids.min()) < 0 or int(ids.max()) >= family.text_ids:
        raise RuntimeError(f"the tokenizer made ids outside 0 to {family.text_ids - 1}; is it another model's?")
    return ids


def _grapheme_ids(text: str, language: str, parts: Parts, family: Family) -> Tensor:
    normal = punc_norm(text)
    options = {"language_id": language} if family.is_multilingual else {}
    ids = parts.tokenizer.encode(normal, **options)
    unknown = parts.tokenizer.tokenizer.token_to_id("[UNK]")
    if unknown in ids:
        _refuse_unknown(normal, parts, family, unknown, options)
    return torch.tensor([_START_TEXT, *ids, _STOP_TEXT])


def _turbo_ids(text: str, parts: Parts, family: Family) -> Tensor:
    ids = parts.tokenizer(punc_norm_turbo(text)).input_ids
    if not ids:
        raise TtsError(ErrorCode.UNSPEAKABLE_TEXT, "Nothing of the text can be read.", param="text")
    return torch.tensor(ids)


def _refuse_unknown(text: str, parts: Parts, family: Family, unknown: int, options: dict[str, str]) -> None:
    """Raise for a letter that would be left out. Signs that are no letters may be: they are not spoken anyway."""
    for letter in dict.fromkeys(filter(str.isalpha, text)):
        if unknown in parts.tokenizer.encode(letter, **options):
            raise TtsError(
                ErrorCode.UNSPEAKABLE_TEXT, f"{family.id} cannot read {letter!r} (U+{ord(letter):04X}).", param="text"
            )
