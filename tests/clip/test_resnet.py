"""CLIPs whose image tower is a ResNet; that their features are open_clip's is in test_model.py."""

import pytest
import torch

from clip import tokenize
from clip.model import build_model, convert_weights
from dassl.utils.errors import Failure, UsageError

from .resnets import rn50_state_dict

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def small() -> dict[str, torch.Tensor]:
    """A quarter of RN50's width."""
    return rn50_state_dict(text_layers=1, width=16, size=64)


def test_sizes_are_read_from_the_weights(small):
    model = build_model(small)
    assert (
        model.visual.input_resolution == 64
        and model.visual.output_dim == 256
        and model.dtype == torch.float32
    )
    assert model.visual.attnpool.num_heads == 8 and not model.training
    assert build_model(rn50_state_dict(text_layers=1)).visual.attnpool.num_heads == 32
    assert model.state_dict().keys() == small.keys() - {
        "input_resolution",
        "context_length",
        "vocab_size",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(small, dtype):
    full, half = build_model(small), build_model(small)
    convert_weights(half, dtype)
    assert half.dtype == dtype and half.visual.bn1.weight.dtype == torch.float32
    with torch.no_grad():
        expected = full.encode_image(IMAGE)
        features = half.encode_image(IMAGE)
        assert features.dtype == half.encode_text(tokenize("a dog")).dtype == dtype
    assert float((features.float() - expected).norm() / expected.norm()) < 0.05


def test_prompts_and_adapters_need_a_vit(small):
    model = build_model(small)
    calls = [
        lambda: model.encode_image(IMAGE, prompts=torch.zeros(1, 2, 16)),
        lambda: model.encode_image(IMAGE, deep={1: torch.zeros(1, 2, 16)}),
        lambda: model.encode_image(IMAGE, adapt=lambda i, h: h),
        lambda: model.visual.transformer.width,
    ]
    for call in calls:
        with pytest.raises(
            UsageError, match="^prompts or adapters in the image tower: this needs a ViT"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key, line",
    [
        (
            "visual.attnpool.positional_embedding",
            "there is no visual.attnpool.positional_embedding",
        ),
        ("visual.layer3.2.bn1.weight", "Missing key.*visual.layer3.2.bn1.weight"),
    ],
)
def test_weights_that_make_no_clip_are_one_line(small, key, line):
    with pytest.raises(Failure, match=line) as caught:
        build_model({k: w for k, w in small.items() if k != key})
    assert "\n" not in str(caught.value)
