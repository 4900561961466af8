from hypothesis import given
from hypothesis import strategies as st

from bench.compare import as_json, flatten, ratio

numbers = st.floats(allow_nan=False, allow_infinity=False)
figures = st.recursive(
    numbers | st.none() | st.lists(st.none(), max_size=1),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=2), inner, max_size=3),
)


def look_up(tree: object, path: list[str]) -> object:
    for key in path:
        assert isinstance(tree, dict)
        tree = tree[key]
    return tree


@given(st.dictionaries(st.text("abc", min_size=1, max_size=2), figures, max_size=3))
def test_every_number_is_found_under_its_path(tree: dict[str, object]) -> None:
    flat = flatten(tree)
    for path, value in flat.items():
        assert look_up(tree, path.split(".")) == value

    def count(node: object) -> int:
        return sum(map(count, node.values())) if isinstance(node, dict) else isinstance(node, float)

    assert len(flat) == count(tree)


def test_a_ratio_is_of_the_later_to_the_first() -> None:
    assert ratio(2.0, 3.0) == 1.5
    assert ratio(0, 3.0) is ratio(None, 3.0) is ratio(2.0, None) is None
    assert ratio(2.0, 0) == 0


def test_a_figure_that_only_one_report_has_stays_in_the_comparison() -> None:
    reports = [{"label": name, "trace": {"digest": "d"}} for name in "abc"]
    found = as_json(reports, [{"x": 1.0}, {"y": 2.0}, {"x": 3.0, "y": 4.0}])
    assert found["labels"] == ["a", "b", "c"]
    assert found["figures"] == {
        "x": {"values": [1.0, None, 3.0], "ratios": [None, 3.0]},
        "y": {"values": [None, 2.0, 4.0], "ratios": [None, None]},
    }
