import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clip.model import CLIP, build_model
from datasets.shapes import Shapes
from reference.weights import openai_state_dict

from .runs import run

# Tensors and tolerances of the tests are a CPU's: they, and what they start, see no GPU. tests/gpu
# sees what there is. (The tests' own processes, side by side, inherit what the first of them has
# seen.)
VISIBLE = os.environ.setdefault("GPU_TESTS_SEE", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
is_available = torch.cuda.is_available
os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.is_available = "", lambda: False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those for a GPU come last: where CUDA has begun, a forked process cannot use it."""
    items.sort(key=lambda item: "gpu" in item.path.parts)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=8, help="how many runs tests/test_kill.py kills")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models here are small: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def loud_logs() -> Iterator[None]:
    """Whoever silences a log does so for a program's life: here programs come one after the
    other."""
    yield
    for name in ("results.logs",):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def weights() -> dict[str, torch.Tensor]:
    """A tiny CLIP's random weights in OpenAI's layout."""
    return openai_state_dict("tiny")


@pytest.fixture
def clip64(weights: dict[str, torch.Tensor]) -> CLIP:
    """Our model with these weights, frozen, in double precision."""
    return build_model(weights).double().requires_grad_(False)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the bundled benchmark's classes but few images of each."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "parts", {"train": 4, "val": 1, "test": 4})
        run("ZeroshotCLIP", folder, folder / "first", flags=("--no-train",))
    return folder
