"""Requests for speech: who speaks, what is allowed, the plan. Holds all that a request needs, as long as it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gateway.arriving import ArrivingText
from gateway.dictation import Dictation
from gateway.dispatch import Dispatcher
from gateway.journey import Journey
from gateway.plan import Speak, StreamPlanner, plan_text
from gateway.pool import Pool
from gateway.quota import Quotas
from gateway.request import SpeechRequest
from gateway.speech import Speech, SpeechOptions
from gateway.text import check_scripts
from gateway.voices.catalogue import Cast, Catalogue
from gateway.voices.store import VoiceStore
from wire.errors import ErrorCode, TtsError


class SpeechService:
    """Speaks requests. Two of them may live in one process; all state is in the pool, the quotas and each Speech."""

    def __init__(
        self,
        pool: Pool,
        dispatcher: Dispatcher,
        options: SpeechOptions,
        *,
        default_model: str | None,
        aliases: dict[str, str],
        voices: VoiceStore,
        quotas: Quotas,
    ) -> None:
        self._pool = pool
        self._quotas = quotas
        self._dispatcher = dispatcher
        self._options = options
        self._default_model = default_model
        self._aliases = aliases
        self._voices = voices

    @property
    def catalogue(self) -> Catalogue:
        """The models and voices that are known now."""
        return Catalogue(
            self._pool.known.models,
            default_model=self._default_model,
            aliases=self._aliases,
            uploaded=self._voices.by_handle,
        )

    @asynccontextmanager
    async def speak(self, request: SpeechRequest, journey: Journey) -> AsyncIterator[Speech]:
        """Speak a request for the length of the block. When the block ends, however it ends, nothing of it runs on:
        queued segments have left the line, running ones are cancelled, slots are back.

        Waits for the first worker ever to appear, at most the queue's patience; nothing else is waited for here.

        Raises:
            TtsError: the text, model, voice or language cannot be; the line is full, or the caller has had its share;
                no worker at all.
        """
        cast = await self._cast(request, journey)
        journey.characters = len(request.text)
        check_scripts(request.text, scripts=cast.model.scripts, model=cast.model.id, param=request.text_field)
        items = plan_text(
            request.text,
            language=request.language or cast.model.languages[0],
            first_characters=min(self._options.first_characters, cast.model.max_segment_characters),
            max_characters=min(self._options.max_characters, cast.model.max_segment_characters),
            parallelism=self._pool.known.parallelism(cast.model.id),
            whole=self._options.whole,
            param=request.text_field,
        )
        characters = sum(len(item.text) for item in items if isinstance(item, Speak))
        async with self._speaking(request, journey, cast, characters) as (speech, _):
            speech.say(items)
            speech.end()
            yield speech

    @asynccontextmanager
    async def dictated(
        self, request: SpeechRequest, journey: Journey, *, max_characters: int
    ) -> AsyncIterator[Dictation]:
        """Speak a text that is not there yet, at most `max_characters` of it, for the length of the block; the
        request has none. As `speak` in all else: admitted by what is in the line now, paid for as it comes.
        """
        cast = await self._cast(request, journey)
        planner = StreamPlanner(
            language=request.language or cast.model.languages[0],
            first_characters=min(self._options.first_characters, cast.model.max_segment_characters),
            max_characters=min(self._options.max_characters, cast.model.max_segment_characters),
            param=request.text_field,
        )
        text = ArrivingText(
            planner,
            max_characters=max_characters,
            keep_markup=request.keep_markup,
            scripts=cast.model.scripts,
            model=cast.model.id,
            param=request.text_field,
        )
        async with self._speaking(request, journey, cast, 0) as (speech, charge):
            yield Dictation(speech, text, journey, charge)

    async def _cast(self, request: SpeechRequest, journey: Journey) -> Cast:
        await self._pool.wait_for_models(min(self._options.queue_timeout_seconds, request.timeout_seconds or 1e9))
        cast = self.catalogue.cast(model=request.model, voice=request.voice)
        journey.model, journey.voice, journey.format = cast.model.id, cast.voice, str(request.format)
        _check_language(request, cast)
        return cast

    @asynccontextmanager
    async def _speaking(
        self, request: SpeechRequest, journey: Journey, cast: Cast, characters: int
    ) -> AsyncIterator[tuple[Speech, Callable[[int], None]]]:
        """Hold what a request needs, and stop all that it began."""
        with (
            # Nothing was awaited since the cast, so that the clip is still there; it stays to the end of the request.
            self._voices.holding(cast.clip),
            self._quotas.hold(
                journey.caller, journey.limits, characters, was_heard=lambda: journey.first_audio is not None
            ) as charge,
            self._pool.admit(
                cast.model.id,
                journey.caller,
                characters,
                caller_queued_seconds=journey.limits.queued_seconds,
            ) as admitted,
        ):
            speech = Speech(request, journey, cast, self._pool, self._dispatcher, self._options, admitted)
            try:
                yield speech, charge
            finally:
                await speech.stop()


def _check_language(request: SpeechRequest, cast: Cast) -> None:
    if request.language is not None and cast.model.languages and request.language not in cast.model.languages:
        raise TtsError(
            ErrorCode.INVALID_VALUE,
            f"language {request.language!r} is not spoken by model {cast.model.id!r}; it speaks "
            f"{', '.join(cast.model.languages)}.",
            param="language",
        )
