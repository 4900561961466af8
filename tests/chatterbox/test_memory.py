"""A worker that would not fit says so before it loads, with the sum and with who holds the rest."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.chatterbox.conftest import Checkpoints
from worker.config import ChatterboxOptions
from worker.models.chatterbox.family import ENGLISH, TURBO
from worker.models.chatterbox.memory import MOST_SLOTS, NoRoom, check, filled, needed
from worker.models.chatterbox.model import ChatterboxModel

GIB = 1 << 30


def test_the_sum_is_that_of_the_published_shapes() -> None:
    english, turbo = needed(ENGLISH, is_half=True, slots=4), needed(TURBO, is_half=True, slots=4)
    positions = 36 + 302 + 1000
    assert english.slot == 240 * 1024 * positions
    assert turbo.slot == 96 * 1024 * (376 + 302 + 1000)
    assert 1.9e9 < english.weights < 2.1e9
    assert needed(ENGLISH, is_half=False, slots=4).slot == 2 * english.slot
    assert english.total == english.weights + 4 * english.slot + 2 * GIB


def test_what_fits_is_loaded_and_what_does_not_is_refused_with_the_sum() -> None:
    need = needed(ENGLISH, is_half=True, slots=4)
    check("cuda:0", "chatterbox", need, free=need.total, total=24 * GIB, holders=[])
    with pytest.raises(NoRoom) as refused:
        check("cuda:0", "chatterbox", need, free=need.total - 1, total=24 * GIB, holders=["python (pid 7) 20.00 GiB"])
    for words in ("cuda:0 has", "of 24.00 GiB free", "for 4 slots", "room for --slots 3", "python (pid 7) 20.00 GiB"):
        assert words in str(refused.value)
    with pytest.raises(NoRoom, match="not room for one"):
        check("cuda:0", "chatterbox", need, free=GIB, total=24 * GIB, holders=[])


def test_slots_are_chosen_from_what_is_free() -> None:
    one = needed(ENGLISH, is_half=True, slots=1)
    for slots in (1, 2, 7, MOST_SLOTS):
        free = one.total + (slots - 1) * one.slot
        assert filled(one, free).slots == slots
        assert filled(one, free - 1).slots == max(1, slots - 1)
        assert filled(one, free).total <= free
    assert filled(one, 140 * GIB).slots == MOST_SLOTS
    # One that does not fit is for `check` to refuse.
    assert filled(one, GIB).slots == 1


class Card:
    """What torch tells of a card with so much free; nothing can be computed on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 24 * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(uuid="GPU-0"))


def worker_model(checkpoint: Path, slots: int | None) -> ChatterboxModel:
    return ChatterboxModel(ChatterboxOptions(checkpoint=str(checkpoint)), "chatterbox", "cuda:0", slots)


def test_the_model_says_how_it_came_to_its_slots(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch, free=20 * GIB)
    model = worker_model(checkpoint("chatterbox"), slots=None)
    with pytest.raises(Exception, match="CUDA"):  # this machine has none: the sum was made before
        model.load()
    need = filled(needed(ENGLISH, is_half=True, slots=1), 20 * GIB)
    assert model.settings()["memory"] == f"cuda:0: {need}; 20.00 GiB were free"
    assert f"{need.slots} x 0.31 GiB" in model.settings()["memory"]


def test_a_model_that_does_not_fit_is_not_loaded(checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch, free=GIB)
    for slots in (None, 1):
        with pytest.raises(NoRoom, match="There is not room for one"):
            worker_model(checkpoint("chatterbox"), slots).load()
