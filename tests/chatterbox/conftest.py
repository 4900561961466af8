"""Random checkpoints of the three families, made once a run, and the models that load them."""

import os

# Before torch reads them. Two threads of OpenMP on a busy machine wait for each other by spinning: ten times slower.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Before Triton reads it: where there is no GPU its kernels can be carried out, a program at a time.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from tests.chatterbox.speaking import END_AT
from worker.config import ChatterboxOptions
from worker.models.chatterbox.family import FAMILIES
from worker.models.chatterbox.model import ChatterboxModel
from worker.models.chatterbox.tiny import make

SLOTS = 16

Checkpoints = Callable[[str], Path]
Models = Callable[..., ChatterboxModel]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Return the directory of a model's random checkpoint."""
    made: dict[str, Path] = {}

    def of(model: str) -> Path:
        if model not in made:
            made[model] = tmp_path_factory.mktemp(model)
            make(made[model], FAMILIES[model], end_at=END_AT[model])
        return made[model]

    return of


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The recogniser of `tts-bench quality` asks OpenMP for two, and whatever runs in the process then has two."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def loaded(checkpoint: Checkpoints) -> Iterator[Models]:
    """Return a loaded model, the same one for the same options."""
    models: dict[tuple[str, ...], ChatterboxModel] = {}

    def of(model: str, **options: object) -> ChatterboxModel:
        key = (model, *map(str, sorted(options.items())))
        if key not in models:
            settings = ChatterboxOptions(checkpoint=str(checkpoint(model)), precision="fp32", **options)  # type: ignore[arg-type]
            models[key] = ChatterboxModel(settings, model, "cpu", batch=SLOTS)
            models[key].load()
        return models[key]

    yield of
    for model in models.values():
        model.unload()
