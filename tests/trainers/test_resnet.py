"""The methods that leave the image tower alone, on a CLIP with a ResNet; the others say what they
need."""

import pytest
import torch
import torch.nn.functional as F

from dassl.utils.errors import UsageError
from reference.clip_plain import PlainCLIP
from reference.coop_plain import text_features
from reference.weights import openai_state_dict
from tests.clip.resnets import rn50_state_dict
from tests.trainers.methods import batch, build, shake


@pytest.fixture(scope="module")
def narrow() -> dict[str, torch.Tensor]:
    """A quarter of RN50's width, two text blocks."""
    return rn50_state_dict(text_layers=2, width=16, size=64)


def test_coops_loss_and_gradient(narrow, data, tmp_path):
    """Text by the reference, images by open_clip's own tower, which the weights were made with."""
    from open_clip.modified_resnet import ModifiedResNet

    trainer = build("CoOp", data, tmp_path, narrow, "MODEL.BACKBONE.NAME", "RN50")
    shake(trainer.model)
    image, label = batch(narrow, 16)
    log = trainer.gradients(image, label)

    tower = ModifiedResNet((3, 4, 6, 3), 256, 8, 64, 16).eval()
    tower.load_state_dict(
        {k.removeprefix("visual."): v for k, v in narrow.items() if k.startswith("visual.")}
    )
    texts = {k: v for k, v in narrow.items() if not k.startswith("visual.")}
    vision = {k: v for k, v in openai_state_dict("tiny").items() if k.startswith("visual.")}
    vision["visual.proj"] = torch.zeros(
        vision["visual.proj"].shape[0], 256
    )  # a tower that is not looked through
    plain = PlainCLIP(texts | vision)
    ctx = trainer.model.learner.ctx.detach().clone().requires_grad_()
    names = list(trainer.lab2cname.values())
    with torch.no_grad():
        features = tower(image)
    loss = F.cross_entropy(plain.logits(features, text_features(plain, {"ctx": ctx}, names)), label)
    loss.backward()
    torch.testing.assert_close(log["loss"], loss.detach(), rtol=1e-5, atol=1e-5)
    grad = trainer.model.learner.ctx.grad
    assert (grad - ctx.grad).norm() <= 1e-5 * ctx.grad.norm() and grad.norm() > 0


@pytest.mark.parametrize(
    "name", ["CoCoOp", "KgCoOp", "ProGrad", "TCP", "CoOp_ATP", "BayesianPrompt"]
)
def test_others_that_need_no_vit_take_a_step(name, narrow, data, tmp_path):
    trainer = build(name, data, tmp_path, narrow, "MODEL.BACKBONE.NAME", "RN50")
    assert all(value.isfinite() for value in trainer.gradients(*batch(narrow, 16)).values())


@pytest.mark.parametrize(
    "name", ["MaPLe", "P2C", "PromptSRC", "MultiModalAdapter", "MMRL", "MMRLpp", "VaMP"]
)
def test_those_that_need_a_vit_say_so(name, narrow, data, tmp_path):
    with pytest.raises(UsageError, match="this needs a ViT, the model has a ResNet"):
        build(name, data, tmp_path, narrow, "MODEL.BACKBONE.NAME", "RN50")
