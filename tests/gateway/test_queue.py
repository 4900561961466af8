from hypothesis import given
from hypothesis import strategies as st

from gateway.queue import FIRST_CHARACTERS, Priority, QueueOrder, Standing, WaitingLine, rank


def line(order: QueueOrder = QueueOrder.SHORTEST_FIRST) -> WaitingLine[str]:
    return WaitingLine(order, patience_seconds=10.0)


def filled(*items: tuple[str, int, float], order: QueueOrder = QueueOrder.SHORTEST_FIRST) -> WaitingLine[str]:
    made = line(order)
    for item, rank_, entered in items:
        made.add(item, Standing(rank_, characters=rank_), entered)
    return made


def served(waiting: WaitingLine[str], now: float, at_most: int = 1000) -> list[str]:
    order: list[str] = []
    while len(order) < at_most and (taken := waiting.take(now, lambda item: "here")) is not None:
        order.append(taken[0])
    return order


def test_the_shortest_goes_first_and_equals_go_in_order_of_arrival():
    waiting = filled(("long", 900, 0), ("short", 20, 1), ("also short", 20, 2))
    assert served(waiting, now=3) == ["short", "also short", "long"]


def test_first_come_first_served_can_be_chosen():
    assert served(filled(("long", 900, 0), ("short", 20, 1), order=QueueOrder.FCFS), now=3) == ["long", "short"]


def test_a_segment_ranks_by_what_is_unspoken_of_its_request_and_the_first_by_no_more_than_a_bound():
    assert rank(is_first=False, unspoken_characters=3000) == 3000
    assert rank(is_first=True, unspoken_characters=3000) == FIRST_CHARACTERS
    assert rank(is_first=True, unspoken_characters=80) == rank(is_first=False, unspoken_characters=80) == 80


def test_those_who_waited_past_the_bound_get_every_other_turn():
    waiting = filled(("older", 950, -1), ("old", 900, 0), *((f"new {n}", 10, 11) for n in range(3)))
    assert served(waiting, now=12) == ["older", "new 0", "old", "new 1", "new 2"]


def test_one_for_whom_there_is_no_place_lets_others_pass_and_keeps_its_own():
    waiting = filled(("picky", 1, 0), ("easy", 2, 0))
    assert waiting.take(1, lambda item: None if item == "picky" else "here") == ("easy", "here")
    assert served(waiting, now=1) == ["picky"]


def test_one_who_left_is_not_served_and_does_not_count():
    waiting = line()
    left = waiting.add("left", Standing(1, 1), 0.0)
    waiting.add("stayed", Standing(2, 2), 0.0)
    waiting.discard(left)
    waiting.discard(left)
    assert len(waiting) == 1
    assert served(waiting, now=20.0) == ["stayed"]


def test_interactive_work_goes_before_batch_work_however_short_that_is():
    waiting = line()
    waiting.add("batch", Standing(1, 1, priority=Priority.BATCH), 0.0)
    waiting.add("interactive", Standing(900, 900), 0.0)
    assert served(waiting, now=1.0) == ["interactive", "batch"]


def test_batch_work_that_waited_too_long_gets_its_turn():
    waiting = line()
    waiting.add("batch", Standing(1, 1, priority=Priority.BATCH), 0.0)
    for n in range(3):
        waiting.add(f"interactive {n}", Standing(5, 5), 11.0)
    assert served(waiting, now=11.0)[0] == "batch"


def test_a_flood_of_short_texts_does_not_keep_another_caller_waiting():
    waiting = line()
    for n in range(500):
        waiting.add(f"flood {n}", Standing(10, 10, caller="flooder"), 0.0)
    served(waiting, 1.0, at_most=200)
    waiting.add("one", Standing(80, 80, caller="guest"), 1.0)
    assert served(waiting, 1.0)[0] == "one"


def test_two_who_ask_for_the_same_get_the_same():
    waiting = line()
    for n in range(400):
        waiting.add(f"greedy {n}", Standing(50, 50, caller="greedy"), 0.0)
        waiting.add(f"modest {n}", Standing(51, 51, caller="modest"), 0.0)
    first = [name.split()[0] for name in served(waiting, 1.0, at_most=400)]
    assert first.count("greedy") <= 2.2 * first.count("modest")


def test_a_slot_is_given_up_only_to_a_better_right():
    waiting = line()
    for n in range(20):
        waiting.add(f"{n}", Standing(100, 100, caller="flooder"), 0.0)
    served(waiting, 0.0)
    flooder, guest = Standing(1, 1, caller="flooder"), Standing(900, 900, caller="guest")
    assert waiting.yields(flooder, guest, now=0.0)
    assert not waiting.yields(guest, flooder, now=0.0)
    batch = Standing(1, 1, caller="guest", priority=Priority.BATCH)
    assert waiting.yields(batch, guest, now=0.0)
    assert not line(QueueOrder.FCFS).yields(batch, guest, now=0.0)


def test_one_caller_alone_is_served_shortest_first_whatever_it_had_before():
    waiting = line()
    for n in range(50):
        waiting.add(f"{1000 - n}", Standing(1000 - n, 200, caller="only"), 0.0)
    assert served(waiting, 1.0) == [str(n) for n in range(951, 1001)]


standings = st.builds(
    Standing, st.integers(0, 99), st.integers(1, 300), st.sampled_from("abc"), st.sampled_from(list(Priority))
)


@given(
    st.lists(st.tuples(standings, st.floats(0, 40)), max_size=40),
    st.sets(st.integers(0, 39)),
    st.sets(st.integers(0, 39)),
    st.sampled_from(list(QueueOrder)),
)
def test_everyone_who_stays_is_served_exactly_once(entries, leavers, picky, order):
    waiting: WaitingLine[int] = WaitingLine(order, patience_seconds=5.0)
    places = [waiting.add(n, standing, entered) for n, (standing, entered) in enumerate(entries)]
    for n in leavers & set(range(len(entries))):
        waiting.discard(places[n])
    order_served: list[int] = []
    for has_place in (lambda item: item not in picky, lambda item: True):
        while (taken := waiting.take(41.0, lambda item, ok=has_place: ok(item) or None)) is not None:
            order_served.append(taken[0])
    assert sorted(order_served) == [n for n in range(len(entries)) if n not in leavers]
    assert len(waiting) == 0
