from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clip.model import CLIP, build_model

from .reference.weights import openai_state_dict

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models here are small: more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def weights() -> dict[str, torch.Tensor]:
    """A tiny CLIP's random weights in OpenAI's layout."""
    return openai_state_dict("tiny")


@pytest.fixture
def clip64(weights: dict[str, torch.Tensor]) -> CLIP:
    """Our model with these weights, frozen, in double precision."""
    return build_model(weights).double().requires_grad_(False)
