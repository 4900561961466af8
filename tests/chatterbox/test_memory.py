"""A worker that would not fit says so before it loads, with the sum and with who holds the rest."""

import pytest

from worker.models.chatterbox.family import ENGLISH, TURBO
from worker.models.chatterbox.memory import NoRoom, check, needed

GIB = 1 << 30


def test_the_sum_is_that_of_the_published_shapes() -> None:
    english, turbo = needed(ENGLISH, is_half=True, slots=4), needed(TURBO, is_half=True, slots=4)
    positions = 36 + 302 + 1000
    assert english.slot == 240 * 1024 * positions
    assert turbo.slot == 96 * 1024 * (376 + 302 + 1000)
    assert 1.9e9 < english.weights < 2.1e9
    assert needed(ENGLISH, is_half=False, slots=4).slot == 2 * english.slot
    assert english.total == english.weights + 4 * english.slot + GIB


def test_what_fits_is_loaded_and_what_does_not_is_refused_with_the_sum() -> None:
    need = needed(ENGLISH, is_half=True, slots=4)
    check("cuda:0", "chatterbox", need, free=need.total, total=24 * GIB, holders=[])
    with pytest.raises(NoRoom) as refused:
        check("cuda:0", "chatterbox", need, free=need.total - 1, total=24 * GIB, holders=["python (pid 7) 20.00 GiB"])
    for words in ("cuda:0 has", "of 24.00 GiB free", "4 slots needs", "room for --slots 3", "python (pid 7) 20.00 GiB"):
        assert words in str(refused.value)
    with pytest.raises(NoRoom, match="not room for one"):
        check("cuda:0", "chatterbox", need, free=GIB, total=24 * GIB, holders=[])
