"""One worker process, as the gateway sees it: what it said of itself, and what the gateway made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum, auto

from gateway.pace import Pace
from wire.gpu import Gpu
from wire.link import Hello, ModelInfo, Status, WorkerState


class Health(StrEnum):
    """The gateway's own judgement, beside the state that the worker reports."""

    SOUND = auto()
    EJECTED = auto()  # failed too often; given nothing until its pause is over
    PROBATION = auto()  # pause over: one segment at a time until one succeeds, then twice as many with each
    GONE = auto()  # its link is lost; this object is never used again


class Event(StrEnum):
    EJECT = auto()
    PAUSE_OVER = auto()
    SPOKE = auto()  # a whole segment came from it
    LOST = auto()


# Everything that can change a replica's health is in this table. Total over states and events: a test walks every cell,
# docs/design.md draws its diagram.
TRANSITIONS: dict[Health, dict[Event, Health]] = {
    Health.SOUND: {
        Event.EJECT: Health.EJECTED,
        Event.PAUSE_OVER: Health.SOUND,  # the pause of an ejection that a success ended early
        Event.SPOKE: Health.SOUND,
        Event.LOST: Health.GONE,
    },
    Health.EJECTED: {
        Event.EJECT: Health.EJECTED,  # a segment leased before the ejection fails too
        Event.PAUSE_OVER: Health.PROBATION,
        Event.SPOKE: Health.SOUND,  # a segment leased before the ejection succeeds after all
        Event.LOST: Health.GONE,
    },
    Health.PROBATION: {
        Event.EJECT: Health.EJECTED,
        Event.PAUSE_OVER: Health.PROBATION,
        Event.SPOKE: Health.SOUND,
        Event.LOST: Health.GONE,
    },
    Health.GONE: {
        Event.EJECT: Health.GONE,
        Event.PAUSE_OVER: Health.GONE,
        Event.SPOKE: Health.GONE,
        Event.LOST: Health.GONE,
    },
}


ASLEEP = "asleep"
_FULL_RAMP = 4096


@dataclass(eq=False, slots=True)
class Replica:
    """State of one worker's link, from hello to loss. One writer: the pool (`in_flight`, health) and, through it, the
    registry (what the worker reports)."""

    id: str
    epoch: str
    host: str
    port: int
    device: str
    slots: int
    models: dict[str, ModelInfo]
    reported: WorkerState
    joined_at: float
    split: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    loads_on_demand: bool = False
    wake: Callable[[], None] = lambda: None  # orders it to load, without waiting for that; the registry's
    detail: str = ""
    gpus: tuple[Gpu, ...] = ()
    warm_voices: frozenset[str] = frozenset()
    reported_in_flight: int = 0
    steps: int = 0
    status_at: float = 0.0

    health: Health = Health.SOUND
    in_flight: int = 0
    turn: int = 0  # number of the lease that it got last; orders round-robin
    ramp: int = _FULL_RAMP  # slots that it is trusted with: one after a failure, twice as many with each success
    consecutive_failures: int = 0
    ejections: int = 0  # in a row, without a success between them
    ejected_because: str = ""  # the last time, and until when
    ejected_until: float = 0.0
    segments_spoken: int = 0
    pace: Pace = field(default_factory=Pace)
    on_gone: set[Callable[[], None]] = field(default_factory=set)

    @classmethod
    def from_hello(cls, hello: Hello, *, host: str, now: float) -> Replica:
        return cls(
            id=hello.worker,
            epoch=hello.epoch,
            host=host,
            port=hello.port,
            device=hello.device,
            slots=hello.slots,
            models={model.id: model for model in hello.models},
            reported=hello.state,
            joined_at=now,
            status_at=now,
            split=hello.split,
            versions=dict(hello.versions),
            loads_on_demand=hello.loads_on_demand,
        )

    def take_status(self, status: Status, now: float) -> None:
        """Note what the worker says of itself. Leases are not touched: the gateway counts those itself."""
        self.reported = status.state
        self.reported_in_flight = status.in_flight
        self.steps = status.steps
        self.slots = status.slots
        self.warm_voices = frozenset(status.voices)
        self.gpus = status.gpus
        self.detail = status.detail
        self.status_at = now
        if status.models:
            self.models = {model.id: model for model in status.models}

    def handle(self, event: Event) -> None:
        self.health = TRANSITIONS[self.health][event]
        match event:
            case Event.PAUSE_OVER:
                self.ramp = 1
            case Event.SPOKE:
                self.ramp = min(2 * self.ramp, _FULL_RAMP)
            case _:
                pass

    def doubt(self) -> None:
        """A segment failed here: until one succeeds, no more than one at a time is risked."""
        self.ramp = 1

    @property
    def limit(self) -> int:
        """How many segments it may hold now."""
        if self.reported is not WorkerState.READY:
            return 0
        match self.health:
            case Health.SOUND:
                return min(self.slots, self.ramp)
            case Health.PROBATION:
                return 1
            case Health.EJECTED | Health.GONE:
                return 0

    def can_take(self, model: str) -> bool:
        return self.in_flight < self.limit and model in self.models

    @property
    def is_asleep(self) -> bool:
        """It has given its model's memory back, and is to be woken when a segment waits for it."""
        return (
            self.is_willing
            and self.reported is WorkerState.UNLOADED
            and self.health in (Health.SOUND, Health.PROBATION)
        )

    @property
    def can_speak(self) -> bool:
        """A segment that comes now would be spoken by it, sooner or later."""
        return self.limit > 0 or self.is_asleep

    @property
    def is_willing(self) -> bool:
        """As far as the worker itself is concerned it speaks, now or when it is woken."""
        return self.reported is WorkerState.READY or (self.loads_on_demand and self.reported is WorkerState.UNLOADED)

    @property
    def state(self) -> str:
        """One word for people: why it gets nothing, or less than it could. Where the worker itself wants nothing, as
        while it drains, the gateway's judgement of it makes no difference."""
        if self.health is not Health.SOUND and (self.is_willing or self.health is Health.GONE):
            return str(self.health)
        return ASLEEP if self.is_asleep else str(self.reported)

    @property
    def key(self) -> tuple[str, str]:
        """Identity across reconnects: the same process has the same epoch."""
        return (self.id, self.epoch)

    def __repr__(self) -> str:
        return f"<Replica {self.id} {self.state} {self.in_flight}/{self.slots}>"
