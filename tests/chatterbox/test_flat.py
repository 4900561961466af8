"""Nothing stays behind of a request. In full, with --soak: 500 requests of each family, their pace and their memory."""

import gc
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.chatterbox.conftest import Models
from tests.chatterbox.speaking import ALL, segment, speak


def kept(model: torch.nn.Module) -> dict[str, int]:
    """Count what upstream leaves behind: hooks on the layers, submodules, and tensors anywhere in the process."""
    gc.collect()
    return {
        "hooks": sum(len(module._forward_hooks) for module in model.modules()),
        "state": len(model.state_dict()),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
    }


def pace_seconds() -> float:
    """Return what a fixed piece of work costs just now: what else the machine does changes the cost of a step, too."""
    x = torch.ones(64, 64)
    began = time.process_time()
    for _ in range(1000):
        x = torch.nn.functional.layer_norm(x @ x, (64,))
    return time.process_time() - began


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model_id", ALL)
def test_nothing_stays_behind(model_id: str, loaded: Models, pytestconfig: pytest.Config) -> None:
    is_soak = pytestconfig.getoption("--soak")
    model = loaded(model_id)
    t3 = model._get().parts.t3
    seconds: list[float] = []  # of a step, in multiples of the fixed work's
    resident: list[int] = []

    def speak_one(seed: int) -> None:
        steps, pace, began = model.tokens, pace_seconds(), time.process_time()
        speak(model, [segment(model_id, "Good night.", seed=seed)])
        seconds.append((time.process_time() - began) / (model.tokens - steps) / pace)
        resident.append(resident_bytes())

    for seed in range(100 if is_soak else 3):
        speak_one(seed)
    before = kept(t3)
    for seed in range(500 if is_soak else 6):
        speak_one(seed)
    assert kept(t3) == before
    if is_soak:
        first, last = statistics.median(seconds[100:150]), statistics.median(seconds[-50:])
        # A cache grows when a longer speech is met than any before, and stays so; what leaks grows in each part alike.
        grown = [(resident[end] - resident[end - 100]) / 1e6 for end in range(199, 600, 100)]
        told = ", ".join(f"{part:+.1f}" for part in grown)
        sys.stdout.write(f"{model_id}: step {last / first:.3f} of the first fifty's, MB by hundreds {told}\n")
        assert sum(grown) < 20
