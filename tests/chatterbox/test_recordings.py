"""A recording is of one function and one shape, and is given what the call is given."""

import torch
from torch import Tensor

from tests.chatterbox.rounded import Rounded


def doubled(x: Tensor) -> Tensor:
    return x * 2


def halved(x: Tensor) -> Tensor:
    return x / 2


def test_a_recording_is_of_one_function_and_one_shape() -> None:
    graphs = Rounded()
    first = graphs(doubled, x=torch.ones(2))
    assert graphs(halved, x=torch.ones(2)).tolist() == [0.5, 0.5]
    assert graphs(doubled, x=torch.ones(3)).tolist() == [2, 2, 2]
    assert graphs(doubled, x=torch.full((2,), 5.0)).tolist() == [10, 10]
    assert first.tolist() == [10, 10], "what a call returns is overwritten by the next one"
    assert graphs.shapes == [((2,),), ((2,),), ((3,),)], "each is recorded once"
