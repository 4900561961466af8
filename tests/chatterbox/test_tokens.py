"""The token stage: it draws what upstream draws, whoever else is there; it loses no slot; nobody waits for others."""

import random
import sys

import pytest
import torch
from chatterbox.models.t3.inference.alignment_stream_analyzer import AlignmentStreamAnalyzer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tests.chatterbox import upstream
from tests.chatterbox.conftest import SLOTS, Models
from tests.chatterbox.decoding import MOST_TOKENS, Speakers, alone, begun, in_company
from tests.chatterbox.speaking import ALL, segment
from worker.models.chatterbox import alignment
from worker.models.chatterbox.cache import Cache
from worker.models.chatterbox.family import FAMILIES, STOP_SPEECH
from worker.models.chatterbox.reading import PIECE, TokenRun
from worker.models.chatterbox.slots import Slots
from worker.models.chatterbox.t3 import NoSlot, TokenStage

GREEDY = {"temperature": 0.8, "top_p": 0.0}
BATCHES = (1, 2, 4, 8, 16)


class EachOnce(dict[str, Speakers]):
    """Speakers by model, made when they are asked for."""

    def __init__(self, loaded: Models) -> None:
        super().__init__()
        self._loaded = loaded

    def __missing__(self, model: str) -> Speakers:
        self[model] = Speakers(self._loaded(model)._get().parts, FAMILIES[model])
        return self[model]


@pytest.fixture(scope="module")
def speakers(loaded: Models) -> dict[str, Speakers]:
    return EachOnce(loaded)


def staged(speaker: Speakers, slots: int) -> TokenStage:
    return TokenStage(speaker.parts.t3, speaker.family, slots)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model_id", ALL)
def test_tokens_are_upstreams_whoever_joins_and_leaves(
    model_id: str, speakers: dict[str, Speakers], pytestconfig: pytest.Config
) -> None:
    """40 requests a model; with --soak 335, which are 1,005 of three."""
    speaker, chance = speakers[model_id], random.Random(model_id)
    most = 335 if pytestconfig.getoption("--soak") else 40
    compared = ended = 0
    made = set()
    while compared < most:
        for slots in BATCHES:
            stage = staged(speaker, slots)
            requests = [speaker.request(chance, **GREEDY) for _ in range(min(slots + 2, most - compared))]
            for request, (ours, is_whole) in zip(
                requests, in_company(stage, requests, chance, leaves=0.05), strict=True
            ):
                theirs = upstream.greedy_tokens(
                    speaker.parts, speaker.family, request.prepared, request.text, request.exaggeration
                )
                assert ours == (theirs if is_whole else theirs[: len(ours)])
                compared += 1
                ended += is_whole
                made.add(tuple(theirs))
            assert stage.free == slots
    sys.stdout.write(f"{model_id}: {compared} requests as upstream's, {ended} of them to their end\n")
    # Else the random weights would say the same whatever they are given, and equality would mean nothing.
    # Of 335 short texts the tiny Turbo makes 94 different things.
    assert len(made) > most / (4 if speaker.family.is_turbo and most > 40 else 2)
    # Multilingual's watch holds the end of most random speech back.
    assert ended > (0 if speaker.family.is_multilingual else most / 2)


@pytest.mark.parametrize("model_id", ALL)
def test_the_same_seed_draws_the_same_tokens_in_any_company(model_id: str, speakers: dict[str, Speakers]) -> None:
    speaker, chance = speakers[model_id], random.Random(2)
    requests = [speaker.request(chance, temperature=chance.uniform(0.5, 1.5), top_p=0.9) for _ in range(18)]
    single = staged(speaker, 1)
    expected = [alone(single, request) for request in requests]
    assert len(set(map(tuple, expected))) > 14
    for slots in BATCHES[1:]:
        made = in_company(staged(speaker, slots), requests, chance)
        assert [tokens for tokens, _ in made] == expected


@pytest.mark.parametrize("model_id", ALL)
def test_given_tokens_are_gone_on_with(model_id: str, speakers: dict[str, Speakers]) -> None:
    speaker, chance = speakers[model_id], random.Random(3)
    stage = staged(speaker, 2)
    for letters in (3, 12, 30):
        request = speaker.request(chance, letters=letters)
        expected = alone(stage, request)
        for given_tokens in {0, 1, 2, len(expected) // 2, len(expected)}:
            assert alone(stage, request, expected[:given_tokens]) == expected


class Syncs(TorchDispatchMode):
    """Counts the operations for which a host waits for its device."""

    WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "_unique2", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.counted = 0
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.operations += 1
        self.counted += func.overloadpacket.__name__ in self.WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model_id", ALL)
def test_no_step_waits_for_the_device(model_id: str, speakers: dict[str, Speakers]) -> None:
    speaker, chance = speakers[model_id], random.Random(4)
    stage = staged(speaker, 4)
    runs = [begun(stage, speaker.request(chance, letters=20)) for _ in range(4)]
    while not all(run.is_read for run in runs):
        stage.step(runs)
    with Syncs() as ours:
        for _ in range(5):
            stage.step(runs)
    assert ours.operations > 500
    assert ours.counted == 0
    # And the count sees what there is to see.
    request = speaker.request(chance, letters=20, **GREEDY)
    with Syncs() as theirs:
        tokens = upstream.greedy_tokens(speaker.parts, speaker.family, request.prepared, request.text)
    assert theirs.counted >= len(tokens)
    sys.stdout.write(
        f"{model_id}: {ours.operations / 5:.0f} operations and 0 waits a step of {len(runs)}; upstream, of one, "
        f"{theirs.operations / len(tokens):.0f} and {theirs.counted / len(tokens):.1f}, prefill counted in\n"
    )


@pytest.mark.parametrize("model_id", ALL)
def test_a_long_text_holds_nobody_up_for_more_than_a_piece(model_id: str, speakers: dict[str, Speakers]) -> None:
    speaker, chance = speakers[model_id], random.Random(5)
    stage = staged(speaker, 4)
    others = [begun(stage, speaker.request(chance, letters=4)) for _ in range(2)]
    while not all(run.is_read for run in others):
        stage.step(others)
    newcomer = begun(stage, speaker.request(chance, letters=300))
    assert newcomer.unread is not None
    assert newcomer.prefix is not None
    prefix = newcomer.prefix
    prefix.read = 0  # as if nobody had used the voice yet
    pieces = -(-prefix.length // PIECE) + -(-newcomer.unread.shape[1] // PIECE)
    steps = 0
    while not newcomer.is_read:
        before = [len(run.tokens) for run in others]
        read = (newcomer.position or prefix.read) if newcomer.prefix is None else prefix.read
        stage.step([*others, newcomer])
        steps += 1
        # A token for each of the others, and for the newcomer one piece.
        assert [len(run.tokens) for run in others] == [count + 1 for count in before]
        now = newcomer.position if newcomer.prefix is None else prefix.read
        assert 0 < now - read <= PIECE
    assert steps == pieces >= 5
    assert len(newcomer.tokens) + newcomer.has_ended == 1


@pytest.mark.parametrize("model_id", ALL)
def test_a_short_text_goes_on_beside_a_long_one_that_is_not_read_yet_or_has_gone(
    model_id: str, speakers: dict[str, Speakers]
) -> None:
    """Multilingual's watch looked for the end of the long text where a step of short ones does not reach."""
    speaker, chance = speakers[model_id], random.Random(13)
    short, long = (speaker.request(chance, letters=letters) for letters in (4, 3 * PIECE))
    expected = alone(staged(speaker, 1), short)
    stage = staged(speaker, 2)
    newcomer, run = begun(stage, long), begun(stage, short)
    while not run.has_ended and len(run.tokens) < MOST_TOKENS:
        stage.step([run])
        if len(run.tokens) == 2:
            stage.end(newcomer)
    assert run.tokens == expected


@pytest.mark.parametrize("model_id", ALL)
def test_newcomers_may_be_read_together(model_id: str, speakers: dict[str, Speakers]) -> None:
    """As they are on CUDA: pieces of different lengths, at different places, some with tokens that are given."""
    speaker, chance = speakers[model_id], random.Random(13)
    requests = [speaker.request(chance, letters=letters, **GREEDY) for letters in (4, 90, 12, 31)]
    expected = [alone(staged(speaker, 1), request) for request in requests]
    stage = staged(speaker, 4)
    stage._reader.together = 4
    stage._make_room(4, 512)
    given = [expected[n][: 5 * n] for n in range(4)]
    runs = [begun(stage, request, tokens) for request, tokens in zip(requests, given, strict=True)]
    while speaking := [run for run in runs if not run.has_ended and len(run.tokens) < MOST_TOKENS]:
        stage.step(speaking)
    assert [run.tokens for run in runs] == expected


def test_who_does_not_fit_beside_the_first_is_not_begun(speakers: dict[str, Speakers]) -> None:
    """Else others' steps would write over the first of its keys, which nobody reads again."""
    speaker = speakers["chatterbox"]
    stage = staged(speaker, 2)
    stage._reader.together = 2
    request = speaker.request(random.Random(14), letters=90)
    first, second = begun(stage, request), begun(stage, request)
    assert stage._cache.length == 192
    with torch.inference_mode():
        stage._reader.read_on([first], is_awaited=False)
        first.position = 192 - PIECE + 1
        first.unread = torch.zeros(2, 1, stage._backbone.hidden_size)
        assert stage._reader._group([first, second]) == [first]
    assert second.prefix is not None
    assert second.position == 0


class Scarce(Cache):
    """One for which there is no memory after so many layers."""

    layers = 99

    def _zeros(self, rows: int, length: int) -> torch.Tensor:
        if rows and self.layers == 0:
            raise torch.OutOfMemoryError("no more")
        self.layers -= bool(rows)
        return super()._zeros(rows, length)


def test_a_cache_that_cannot_grow_is_as_large_as_it_was() -> None:
    cache = Scarce(4, 2, 8, torch.float32, torch.device("cpu"))
    cache.grow(2, 64)
    cache.keys[0][1, :, 63] = 5.0
    cache.layers = 2
    with pytest.raises(torch.OutOfMemoryError):
        cache.grow(2, 128)
    assert (cache.rows, cache.length) == (2, 64)
    assert not cache.has_room(2, 65)
    assert all(tensor.shape[2] >= 64 for tensor in (*cache.keys, *cache.values))
    assert (cache.keys[0][1, :, 63] == 5.0).all()
    cache.layers = 4
    cache.grow(2, 128)
    assert cache.has_room(2, 128)


def test_a_newcomer_who_holds_nobody_up_is_read_at_once(speakers: dict[str, Speakers]) -> None:
    speaker = speakers["chatterbox"]
    stage = staged(speaker, 1)
    run = begun(stage, speaker.request(random.Random(6), letters=300))
    stage.step([run])
    assert len(run.tokens) == 1


@pytest.mark.parametrize("model_id", ALL)
def test_a_voice_is_read_once_and_its_keys_are_the_same_bits(model_id: str, speakers: dict[str, Speakers]) -> None:
    speaker, chance = speakers[model_id], random.Random(7)
    stage = staged(speaker, 2)
    request = speaker.request(chance, letters=8)
    first = begun(stage, request)
    stage.step([first])
    second = begun(stage, request)
    assert second.prefix is not None
    assert second.prefix.is_whole
    stage.step([first, second])
    end = second.position - 1  # without what a step has read: one of one, or of two
    for tensors in (stage._cache.keys, stage._cache.values):
        for tensor in tensors:
            rows = tensor.shape[0] // 2
            assert torch.equal(tensor[:rows, :, :end], tensor[rows:, :, :end])
            if not speaker.family.is_turbo:
                # The row that is blind to the text begins alike.
                length = second.position - len(request.text) - 2
                assert torch.equal(tensor[0, :, :length], tensor[1, :, :length])
    kept = stage._prefixes.bytes
    assert kept > 0
    stage._prefixes._limit = kept
    for _, voice in speaker.voices:
        for exaggeration in (0.1, 0.9):
            stage._prefixes.take(voice, exaggeration)
    assert stage._prefixes.bytes <= kept


def test_more_runs_than_slots_are_refused(speakers: dict[str, Speakers]) -> None:
    speaker = speakers["chatterbox"]
    stage = staged(speaker, 3)
    request = speaker.request(random.Random(8))
    runs = [begun(stage, request) for _ in range(3)]
    with pytest.raises(NoSlot, match="all 3 slots"):
        begun(stage, request)
    stage.end(runs.pop())
    assert stage.free == 1
    begun(stage, request)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(st.tuples(st.sampled_from(("begin", "step", "some", "end", "forget")), st.integers(0, 99))))
@pytest.mark.parametrize("model_id", ["chatterbox-turbo", "chatterbox-multilingual"])
def test_no_slot_is_lost_or_given_twice(
    model_id: str, actions: list[tuple[str, int]], speakers: dict[str, Speakers]
) -> None:
    speaker, chance = speakers[model_id], random.Random(9)
    stage = staged(speaker, 5)
    runs: list[TokenRun] = []
    for action, number in actions:
        if action == "begin" and len(runs) < 5:
            runs.append(begun(stage, speaker.request(chance, letters=number % 9 + 1)))
        elif action == "step":
            stage.step(runs)
        elif action == "some":
            stage.step(runs[number % 3 :: 2])
        elif runs and action == "end":
            stage.end(runs.pop(number % len(runs)))
        elif runs and action == "forget":
            # Nobody says so to the stage: an error came in between.
            del runs[number % len(runs)]
        runs = [run for run in runs if not run.has_ended]
        slots = [run.slot for run in runs]
        assert len(set(slots)) == len(slots) == 5 - stage.free
        assert None not in slots
    while runs:
        stage.end(runs.pop())
    assert stage.free == 5


@pytest.mark.parametrize("model_id", ALL)
def test_all_slots_are_free_when_the_speakers_are_gone(model_id: str, loaded: Models) -> None:
    model, chance = loaded(model_id), random.Random(10)
    stage = model._get().token_stage
    assert stage.free == SLOTS
    for _ in range(3):
        states = [model.prefill(segment(model_id, seed=seed)) for seed in range(SLOTS)]
        assert stage.free == 0
        while states:
            outputs = model.step(states)
            states = [state for state, output in zip(states, outputs, strict=True) if not output.finished]
            if states and chance.random() < 0.5:
                model.cancel(states.pop(chance.randrange(len(states))))
        assert stage.free == SLOTS


def test_tokens_that_come_a_step_late_are_the_same(speakers: dict[str, Speakers]) -> None:
    """As they do on CUDA."""
    for speaker in map(speakers.__getitem__, ALL):
        chance = random.Random(11)
        requests = [speaker.request(chance) for _ in range(6)]
        expected = [alone(staged(speaker, 1), request) for request in requests]
        stage = staged(speaker, 4)
        stage._is_late = True
        assert [tokens for tokens, _ in in_company(stage, requests, chance)] == expected


def test_a_step_may_be_recorded_at_any_time(speakers: dict[str, Speakers]) -> None:
    """What a recording does: a step that counts for nobody in between, over tensors that stay where they are."""
    for speaker in map(speakers.__getitem__, ALL):
        chance = random.Random(12)
        requests = [speaker.request(chance, letters=9) for _ in range(3)]
        expected = [alone(staged(speaker, 1), request) for request in requests]
        stage = staged(speaker, 4)
        runs = [begun(stage, request) for request in requests]
        stage._make_room(4, 512)
        columns = [getattr(stage._slots, name) for name in Slots.__dataclass_fields__]
        places = [tensor.data_ptr() for tensor in (*columns, *stage._cache.keys, *stage._cache.values)]
        with torch.inference_mode():
            while speaking := [run for run in runs if not run.has_ended and len(run.tokens) < MOST_TOKENS]:
                stage.step(speaking)
                with stage._nobody_due():
                    stage._say(4, 512)
        assert [run.tokens for run in runs] == expected
        columns = [getattr(stage._slots, name) for name in Slots.__dataclass_fields__]
        assert places == [tensor.data_ptr() for tensor in (*columns, *stage._cache.keys, *stage._cache.values)]


class Upstream(AlignmentStreamAnalyzer):
    """Upstream's analyser, given its attention by hand."""

    def _add_attention_spy(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("seed", range(40))
def test_the_watch_over_the_alignment_is_upstreams(seed: int) -> None:
    """Speech that wanders over a text by chance: forward, stuck at its end, back again, and with tokens twice."""
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    begin, length = chance.randint(2, 5), chance.choice((3, 6, 7, 12, 30))
    slots = Slots.empty(3, 8194, torch.device("cpu"))
    part, on = slots.part(1, 2), torch.tensor([True])
    alignment.watch(part, begin, length)
    analyser = Upstream(None, None, (begin, begin + length), eos_idx=STOP_SPEECH)
    forced = held = place = 0
    token, text_end = 6561, begin + length
    for frame in range(80):
        # From time to time it goes back to where it was, or jumps.
        place = max(0, min(length - 1, place + chance.choice((0, 0, 1, 1, 2, -1)) - 9 * (chance.random() < 0.03)))
        rows = 1 if frame else text_end + 2
        attention = torch.rand(rows, text_end + 2 + frame, generator=generator) * 0.05
        attention[-1, begin + place] += chance.choice((0.4, 0.9))
        logits = torch.randn(1, 8194, generator=generator)
        expected = logits.clone()
        if length >= alignment.SHORTEST:
            analyser.last_aligned_attns = [attention] * 3
            expected = analyser.step(expected, next_token=token)
        seen = torch.nn.functional.pad(attention[-1:], (0, 100 - frame))
        now = alignment.follow(part, seen, torch.tensor([frame]), on)
        assert torch.equal(alignment.judged(part, logits, now), expected)
        forced += bool(expected[0, STOP_SPEECH] == 2**15)
        held += bool(expected[0, STOP_SPEECH] == -(2**15))
        token = token if chance.random() < 0.05 and frame > 1 else chance.randrange(6561)
        part.take(torch.tensor([token]), on)
    assert (forced > 0) == (held > 0) == (length >= alignment.SHORTEST)
    # The neighbours know nothing of it.
    assert not slots.text_position[[0, 2]].any()
    assert not slots.tail[[0, 2]].any()
