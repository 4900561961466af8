from collections import Counter
from random import Random

import pytest

from gateway.balancer import Policy, choose
from gateway.replica import Replica
from tests.gateway.builders import replica, status


def pick(
    replicas: list[Replica], policy: Policy = Policy.LEAST_CONNECTIONS, tried: frozenset = frozenset(), seed: int = 0
):
    return choose(replicas, policy=policy, model="tone", voice="alto", tried=tried, random=Random(seed))


def test_the_replica_with_the_fewest_leases_per_slot_is_chosen():
    small, large = replica("small", slots=2), replica("large", slots=8)
    small.in_flight, large.in_flight = 1, 3
    assert pick([small, large]) is large


def test_ties_are_decided_by_lot():
    fleet = [replica(f"w{n}") for n in range(4)]
    shares = Counter(pick(fleet, seed=seed).id for seed in range(4000))
    assert set(shares) == {"w0", "w1", "w2", "w3"}
    assert max(shares.values()) < 1200


def test_among_equals_the_one_with_the_voice_warm_is_chosen():
    cold, warm = replica("cold"), replica("warm")
    warm.take_status(status(warm, voices=("alto",)), now=0.0)
    assert {pick([cold, warm], seed=seed).id for seed in range(50)} == {"warm"}


def test_a_warm_voice_does_not_outweigh_a_freer_replica():
    cold, warm = replica("cold", slots=2), replica("warm", slots=2)
    warm.take_status(status(warm, voices=("alto",)), now=0.0)
    warm.in_flight = 1
    assert pick([cold, warm]) is cold


@pytest.mark.parametrize("policy", list(Policy))
def test_tried_and_full_replicas_are_left_out(policy: Policy):
    tried, full, free = replica("tried"), replica("full"), replica("free")
    full.in_flight = 1
    assert {pick([tried, full, free], policy, frozenset({tried.key}), seed).id for seed in range(50)} == {"free"}
    assert pick([tried, full], policy, frozenset({tried.key})) is None


def test_a_restarted_worker_is_not_taken_for_the_one_that_failed():
    before, after = replica("w", epoch="1"), replica("w", epoch="2")
    assert pick([after], tried=frozenset({before.key})) is after


def test_round_robin_takes_turns():
    fleet = [replica(f"w{n}", slots=9) for n in range(3)]
    chosen = []
    for turn in range(1, 7):
        one = pick(fleet, Policy.ROUND_ROBIN)
        one.turn = turn
        chosen.append(one.id)
    assert chosen == ["w0", "w1", "w2", "w0", "w1", "w2"]


def test_random_chooses_all():
    fleet = [replica(f"w{n}") for n in range(3)]
    assert {pick(fleet, Policy.RANDOM, seed=seed).id for seed in range(100)} == {"w0", "w1", "w2"}
