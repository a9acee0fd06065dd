import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_left_overs() -> Iterator[None]:
    """A trainer refers to itself, so it and its ViT-B/16 would stay until Python happens to look:
    gigabytes by then."""
    yield
    gc.collect()
