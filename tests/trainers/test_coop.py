"""CoOp's prompts, loss and gradient against the plain reference, and its files."""

import pytest
import torch

import trainers
from clip.model import build_model
from dassl.config import get_cfg_default
from dassl.engine import TrainerBase
from tests.reference import coop_plain
from tests.reference.clip_plain import PlainCLIP
from tests.runs import run
from trainers.base import PromptedCLIP
from trainers.coop import CoOp, PromptLearner

RANDOM = ("TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", "4")
CLASSNAMES = ["striped_red hexagon", "cat", "Boeing 737-200 (old)", "a name of many more words than the others"]


@pytest.fixture
def node():
    cfg = get_cfg_default()
    trainers.add_configs(cfg)
    cfg.TRAINER.COOP.N_CTX = 5  # odd, so that the halves of "middle" differ
    return cfg.TRAINER.COOP


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
def test_loss_and_gradient_are_the_references(node, clip64, weights, position, csc):
    node.CLASS_TOKEN_POSITION, node.CSC = position, csc
    learner = PromptLearner(node, clip64, CLASSNAMES).double()
    assert learner.ctx.shape == ((4, 5, 64) if csc else (5, 64))
    image, label = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 3, 2])
    loss = torch.nn.functional.cross_entropy(PromptedCLIP(clip64, learner)(image), label)
    loss.backward()

    plain, ctx = PlainCLIP(weights, torch.float64), learner.ctx.detach().clone().requires_grad_()
    logits = plain.logits(plain.encode_image(image), coop_plain.text_features(plain, ctx, CLASSNAMES, position))
    expected = torch.nn.functional.cross_entropy(logits, label)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(learner.ctx.grad, ctx.grad)
    assert ctx.grad.norm() > 0


def test_starting_from_words_is_the_hand_crafted_prompt(node, clip64, weights):
    from clip import tokenize

    node.CTX_INIT = "a photo of a"
    for node.CSC in (False, True):  # as upstream, words are shared by all classes
        learner = PromptLearner(node, clip64, ["cat", "sea_lion"])
        assert learner.ctx.shape == (4, 64)
        expected = clip64.encode_text(tokenize(["a photo of a cat.", "a photo of a sea lion."]))
        torch.testing.assert_close(learner.double().text_features(clip64), expected)


def test_upstreams_file_loads(node, weights, tmp_path):
    """Keys without prefix, half precision, token buffers of other classes."""
    clip = build_model(weights).requires_grad_(False)
    learner = PromptLearner(node, clip, CLASSNAMES)
    ctx = torch.randn(5, 64).half()
    state = {"ctx": ctx, "token_prefix": torch.randn(9, 1, 64), "token_suffix": torch.randn(9, 71, 64)}
    (tmp_path / "prompt_learner").mkdir()
    torch.save({"state_dict": state, "epoch": 50}, tmp_path / "prompt_learner" / "model.pth.tar-50")
    trainer = CoOp.__new__(CoOp)
    TrainerBase.__init__(trainer)
    trainer.register_model("prompt_learner", learner)
    model = PromptedCLIP(clip, learner).eval()
    with torch.no_grad():
        before = model.text_features()
        trainer.load_model(str(tmp_path), epoch=50)
        assert torch.equal(learner.ctx, ctx.float())
        assert not torch.equal(model.text_features(), before)  # the cached ones were forgotten


def test_a_run_and_its_file(data, tmp_path, capsys):
    assert run("CoOp", data, tmp_path / "a", *RANDOM) == 0
    file = torch.load(tmp_path / "a" / "prompt_learner" / "model.pth.tar-3", weights_only=True)
    assert {k: tuple(v.shape) for k, v in file["state_dict"].items()} == {"ctx": (4, 128)}
    accuracy = [line for line in capsys.readouterr().out.splitlines() if line.startswith("* accuracy")]
    flags = ("--eval-only", "--model-dir", str(tmp_path / "a"))
    assert run("CoOp", data, tmp_path / "b", *RANDOM, flags=flags) == 0
    assert accuracy == [line for line in capsys.readouterr().out.splitlines() if line.startswith("* accuracy")]
    assert run("CoOp", data, tmp_path / "c", "TRAINER.COOP.CLASS_TOKEN_POSITION", "back") == 2
    assert "choose from end, middle, front" in capsys.readouterr().err
