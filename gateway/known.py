"""What the gateway remembers of models and their workers, also while those are away."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable

from gateway.pace import Pace
from gateway.replica import Replica
from wire.link import ModelInfo, WorkerState


class Known:
    """Fed by the pool, which alone writes it. Nothing is ever forgotten: a fleet has a handful of models."""

    def __init__(self) -> None:
        # Newest word on every model that was ever announced: a request for one that is just restarting can wait.
        self.models: dict[str, ModelInfo] = {}
        self._most_lanes: Counter[str] = Counter()
        self._paces: defaultdict[frozenset[str], Pace] = defaultdict(Pace)
        self._anyone = asyncio.Event()

    def learn(self, replica: Replica, fleet: Iterable[Replica]) -> None:
        """Note the models of a worker that joined or reported, and how many workers are ready together."""
        self._anyone.set()
        self.models.update(replica.models)
        everybody = list(fleet)
        for model in replica.models:
            ready = (one for one in everybody if model in one.models and one.reported is WorkerState.READY)
            self._most_lanes[model] = max(self._most_lanes[model], sum(min(one.slots, 2) for one in ready))

    def observe(self, replica: Replica, characters: int, seconds: float, audio_seconds: float) -> None:
        """Learn from a whole segment how fast workers of this kind are."""
        self.pace_of(replica).observe(characters, seconds, audio_seconds)

    def pace_of(self, replica: Replica) -> Pace:
        """The pace of all workers with the same models, whoever they were."""
        return self._paces[frozenset(replica.models)]

    def parallelism(self, model: str) -> int:
        """How many pieces of one text are worth speaking at once: two for each worker, which hide the way there and
        back; beyond that a batch serves other requests as well, and small pieces sound worse.

        Counted are the most workers that were ever ready together. The plan of a text, and with it what a seed sounds
        like, so does not change with every worker that restarts.
        """
        return max(1, self._most_lanes[model])

    async def wait_for_anyone(self) -> None:
        """Wait until a worker has ever joined."""
        await self._anyone.wait()

    @property
    def has_anyone(self) -> bool:
        return self._anyone.is_set()
