from hypothesis import given
from hypothesis import strategies as st

from gateway.queue import FIRST_CHARACTERS, Entry, Priority, QueueOrder, Standing, WaitingLine, rank

PLAIN = {"characters": 50, "is_first": False}


def line(order: QueueOrder = QueueOrder.SHORTEST_FIRST) -> WaitingLine[str]:
    return WaitingLine(order, patience_seconds=10.0)


def filled(*items: tuple[str, int, float], order: QueueOrder = QueueOrder.SHORTEST_FIRST) -> WaitingLine[str]:
    made = line(order)
    for item, rank_, entered in items:
        add(made, item, rank_, entered)
    return made


def add(waiting: WaitingLine[str], item: str, unspoken: int, now: float, caller: str = "", **more) -> Entry[str]:
    """Put a request of one segment into the line."""
    return waiting.add(item, Standing(caller, unspoken_characters=unspoken, **more), **PLAIN | {"now": now})


def add_text(waiting: WaitingLine[str], name: str, segments: int, now: float, caller: str = "") -> Standing:
    """Put a request of several segments of 100 characters into the line."""
    standing = Standing(caller, unspoken_characters=100 * segments)
    for n in range(segments):
        waiting.add(f"{name} {n}", standing, characters=100, is_first=n == 0, now=now)
    return standing


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


def test_a_long_text_that_is_being_spoken_has_no_claim_of_age():
    waiting = line()
    add_text(waiting, "book", 30, now=0.0)
    got = []
    for second in range(1, 24):
        add(waiting, f"short {second}", 10, now=second)
        add(waiting, f"shorter {second}", 9, now=second)
        got += served(waiting, float(second), at_most=2)
    # Nothing of it was served for ten seconds, so it had a turn then, and no other for ten more.
    assert [(n // 2 + 1, name) for n, name in enumerate(got) if name.startswith("book")] == [
        (11, "book 0"),
        (22, "book 1"),
    ]


def test_what_waits_of_a_request_moves_up_as_it_is_spoken():
    waiting = line()
    book = add_text(waiting, "book", 5, now=0.0)
    assert served(waiting, 0.0, at_most=1) == ["book 0"]
    add(waiting, "note", 350, now=1.0)
    waiting.spoken(book, 100)
    assert waiting.take(1.0, lambda item: None) is None  # nobody has a place: all keep theirs
    waiting.spoken(book, 100)
    assert served(waiting, 1.0) == ["book 1", "book 2", "book 3", "book 4", "note"]


def test_first_come_first_served_knows_no_callers_no_ranks_and_no_age():
    waiting = line(QueueOrder.FCFS)
    book = add_text(waiting, "book", 2, now=0.0, caller="flooder")
    add(waiting, "note", 10, 1.0, "guest", priority=Priority.BATCH)
    add(waiting, "letter", 5, 2.0, "flooder")
    waiting.spoken(book, 50)
    assert served(waiting, 100.0) == ["book 0", "book 1", "note", "letter"]


def test_one_for_whom_there_is_no_place_lets_others_pass_and_keeps_its_own():
    waiting = filled(("picky", 1, 0), ("easy", 2, 0))
    assert waiting.take(1, lambda item: None if item == "picky" else "here") == ("easy", "here")
    assert served(waiting, now=1) == ["picky"]


def test_one_who_left_is_not_served_and_does_not_count():
    waiting = line()
    left = add(waiting, "left", 1, 0.0)
    add(waiting, "stayed", 2, 0.0)
    waiting.discard(left)
    waiting.discard(left)
    assert len(waiting) == 1
    assert served(waiting, now=20.0) == ["stayed"]


def test_interactive_work_goes_before_batch_work_however_short_that_is():
    waiting = line()
    add(waiting, "batch", 1, 0.0, priority=Priority.BATCH)
    add(waiting, "interactive", 900, 0.0)
    assert served(waiting, now=1.0) == ["interactive", "batch"]


def test_batch_work_that_waited_too_long_gets_its_turn():
    waiting = line()
    add(waiting, "batch", 1, 0.0, priority=Priority.BATCH)
    for n in range(3):
        add(waiting, f"interactive {n}", 5, 11.0)
    assert served(waiting, now=11.0)[0] == "batch"


def test_a_flood_of_short_texts_does_not_keep_another_caller_waiting():
    waiting = line()
    for n in range(500):
        add(waiting, f"flood {n}", 10, 0.0, "flooder")
    served(waiting, 1.0, at_most=200)
    add(waiting, "one", 80, 1.0, "guest")
    assert served(waiting, 1.0)[0] == "one"


def test_two_who_ask_for_the_same_get_the_same():
    waiting = line()
    for n in range(400):
        add(waiting, f"greedy {n}", 50, 0.0, "greedy")
        add(waiting, f"modest {n}", 51, 0.0, "modest")
    first = [name.split()[0] for name in served(waiting, 1.0, at_most=400)]
    assert first.count("greedy") <= 2.2 * first.count("modest")


def test_a_slot_is_given_up_only_to_a_better_right():
    waiting = line()
    for n in range(20):
        add(waiting, f"{n}", 100, 0.0, "flooder")
    served(waiting, 0.0)
    flooder, guest = Standing("flooder"), Standing("guest")
    assert waiting.yields(flooder, guest, now=0.0)
    assert not waiting.yields(guest, flooder, now=0.0)
    batch = Standing("guest", Priority.BATCH)
    assert waiting.yields(batch, guest, now=0.0)
    assert not line(QueueOrder.FCFS).yields(batch, guest, now=0.0)


def test_one_caller_alone_is_served_shortest_first_whatever_it_had_before():
    waiting = line()
    for n in range(50):
        add(waiting, f"{1000 - n}", 1000 - n, 0.0, "only")
    assert served(waiting, 1.0) == [str(n) for n in range(951, 1001)]


requests = st.builds(
    Standing, st.sampled_from("abc"), st.sampled_from(list(Priority)), unspoken_characters=st.integers(1, 2000)
)


@given(
    st.lists(requests, min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 40), st.integers(0, 300)), max_size=40),
    st.sets(st.integers(0, 39)),
    st.sets(st.integers(0, 39)),
    st.sampled_from(list(QueueOrder)),
)
def test_everyone_who_stays_is_served_exactly_once(standings, entries, leavers, picky, order):
    waiting: WaitingLine[int] = WaitingLine(order, patience_seconds=5.0)
    places = []
    for n, (of, now, spoken) in enumerate(entries):
        standing = standings[of % len(standings)]
        places.append(waiting.add(n, standing, characters=100, is_first=n % 3 == 0, now=now))
        waiting.spoken(standings[spoken % len(standings)], spoken)
    for n in leavers & set(range(len(entries))):
        waiting.discard(places[n])
    order_served: list[int] = []
    for has_place in (lambda item: item not in picky, lambda item: True):
        while (taken := waiting.take(41.0, lambda item, ok=has_place: ok(item) or None)) is not None:
            order_served.append(taken[0])
    assert sorted(order_served) == [n for n in range(len(entries)) if n not in leavers]
    assert len(waiting) == 0
    assert not any(standing.places for standing in standings)


def test_who_looks_at_the_line_sees_the_order_in_which_it_is_served():
    waiting = filled(("long", 900, 0), ("short", 20, 1), ("also short", 20, 2))
    add_text(waiting, "text", 3, 0)
    gone = add(waiting, "gone", 10, 0)
    waiting.discard(gone)
    seen = [entry.item for entry in waiting.in_order(3)]
    assert seen == served(waiting, now=3)
    assert waiting.in_order(3) == []


def test_a_text_that_moves_up_is_seen_once_and_in_its_new_place():
    waiting = line()
    text = add_text(waiting, "text", 4, 0)
    add(waiting, "other", 250, 0)
    waiting.spoken(text, 200)
    assert [entry.item for entry in waiting.in_order(1)][:2] == ["text 0", "text 1"]
    assert len(waiting.in_order(1)) == len(waiting) == 5
