from gateway.budget import RetryBudget


def test_ordinary_failures_are_retried_at_once():
    budget = RetryBudget()
    assert [budget.take(now=1.0) for _ in range(20)] == [0.0] * 20


def test_in_an_outage_retries_are_spread_over_time_instead_of_made_at_once():
    budget = RetryBudget()
    waits = [budget.take(now=1.0) for _ in range(150)]
    assert waits[49] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] == 50.0


def test_a_retry_that_waits_its_time_finds_the_bucket_filled_for_it():
    budget = RetryBudget()
    last = [budget.take(now=1.0) for _ in range(60)][-1]
    assert budget.take(now=1.0 + last) <= 0.5


def test_traffic_that_goes_well_earns_retries():
    budget = RetryBudget()
    for _ in range(60):
        budget.take(now=1.0)
    for _ in range(100):
        budget.first_try()
    assert budget.take(now=1.0) == 0.0
