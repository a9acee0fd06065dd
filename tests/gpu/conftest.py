"""On a GPU. Where there is none, all of this is skipped."""

from collections.abc import Iterator

import pytest
import torch

from tests import conftest as top


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shows the GPUs that the other tests do not see."""
    monkeypatch.setattr(torch.cuda, "is_available", top.is_available)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if top.VISIBLE != "all":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", top.VISIBLE)
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here that torch can use")
    yield
    torch.cuda.empty_cache()
