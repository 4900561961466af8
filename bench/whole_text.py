"""A tone worker that takes texts of any length, as servers do that people run today: `python -m bench.whole_text`.

The tone model speaks at most 280 characters at once, and so do the models it stands for; who sends them a whole text
has a server that speaks it piece after piece.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace

from wire.link import ModelInfo
from wire.logs import set_up_logging
from wire.segment import MAX_SEGMENT_CHARACTERS
from worker.app import Worker
from worker.config import Config, ToneOptions
from worker.given import ConfigError
from worker.models.base import StepOutput
from worker.models.tone import CHARACTERS_A_CHUNK, ToneModel, ToneState


class WholeTextModel(ToneModel):
    """Pays the fixed work of a segment for each `piece_characters` of the text; for the first only when that is 0."""

    def __init__(self, options: ToneOptions, piece_characters: int) -> None:
        super().__init__(options)
        self._overhead_seconds = options.overhead_seconds
        self._piece_characters = piece_characters

    def info(self) -> ModelInfo:
        return replace(super().info(), max_segment_characters=MAX_SEGMENT_CHARACTERS)

    def step(self, states: Sequence[ToneState]) -> list[StepOutput]:
        before = [self._pieces_begun(state) for state in states]
        outputs = super().step(states)
        for state, begun in zip(states, before, strict=True):
            state.due += (self._pieces_begun(state) - begun) * self._overhead_seconds
        return outputs

    def _pieces_begun(self, state: ToneState) -> int:
        """Return the pieces, without the first, of which a character is in the next chunk or was in an earlier one."""
        if not self._piece_characters:
            return 0
        last = state.position // state.samples_a_character + CHARACTERS_A_CHUNK - 1
        return min(last, len(state.text) - 1) // self._piece_characters


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker: the characters of a piece, then the options of `tts-worker`; return its exit code."""
    piece_characters, *rest = sys.argv[1:] if arguments is None else arguments
    try:
        config = Config.from_environment(rest, os.environ)
    except ConfigError as error:
        print(f"whole_text: {error}", file=sys.stderr)
        return 2
    set_up_logging(config.log_level)
    return asyncio.run(_run(config, int(piece_characters)))


async def _run(config: Config, piece_characters: int) -> int:
    worker = Worker(config, WholeTextModel(config.tone, piece_characters))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.request_stop)
    await worker.start()
    return await worker.wait_stopped()


if __name__ == "__main__":
    sys.exit(main())
