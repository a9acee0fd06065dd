"""PromptSRC's loss and gradients against the plain reference, its files, and its average of the
epochs."""

import pytest
import torch

from dassl.engine import TrainerX
from reference import promptsrc_plain
from reference.clip_plain import PlainCLIP
from reference.maple_plain import as_leaves
from tests.runs import run
from tests.trainers.files import read, save, three_classes
from tests.trainers.methods import (
    assert_logits,
    assert_loss,
    assert_refused,
    batch,
    build,
    class_names,
    parameters,
    shake,
    two_templates,
    uneven_names,
)
from trainers.base import CLIPTrainer

FOLDER = "VLPromptLearner"


def options(**settings) -> list[str]:
    """Settings of TRAINER.PROMPTSRC."""
    return [
        text for key, value in settings.items() for text in (f"TRAINER.PROMPTSRC.{key}", str(value))
    ]


SHALLOW = options(
    PROMPT_DEPTH_TEXT=3, PROMPT_DEPTH_VISION=2, N_CTX_VISION=3
)  # no number is another's


def check(trainer: TrainerX, weights, **settings) -> None:
    """Loss, gradients and logits, of prompts that are large enough to matter.

    In double precision: of |x|, rounding can change the sign of the gradient.
    """
    trainer.model.double(), trainer.model.clip.double()
    trainer.teacher = trainer.teacher.double()
    shake(trainer.model.learner)
    image, label = batch(weights, trainer.num_classes)
    plain, prompts = (
        PlainCLIP(weights, torch.float64),
        as_leaves(parameters(trainer), torch.float64),
    )
    names = class_names(trainer)
    expected = promptsrc_plain.loss(plain, prompts, names, image, label, **settings)
    assert_loss(trainer, image, label, expected, prompts)
    words = settings.get("frozen_words", "")
    assert_logits(trainer, image, promptsrc_plain.logits(plain, prompts, names, image, words))


@pytest.mark.parametrize("text_weight, image_weight", [(25.0, 10.0), (0.0, 100.0), (100.0, 0.0)])
def test_equals_the_reference(data, tmp_path, weights, monkeypatch, text_weight, image_weight):
    uneven_names(monkeypatch)
    lost = options(TEXT_LOSS_WEIGHT=text_weight, IMAGE_LOSS_WEIGHT=image_weight)
    trainer = build("PromptSRC", data, tmp_path, weights, *SHALLOW, *lost)
    check(trainer, weights, text_weight=text_weight, image_weight=image_weight)


def test_shallow_prompts_and_frozen_words(data, tmp_path, weights):
    """Two of CTX_INIT's four words are learned, "of a" stays behind them."""
    opts = options(PROMPT_DEPTH_TEXT=1, PROMPT_DEPTH_VISION=1, N_CTX_TEXT=2)
    trainer = build("PromptSRC", data, tmp_path, weights, *opts)
    check(trainer, weights, frozen_words="of a")


def test_on_vit_b16(tmp_path, vit_b16, monkeypatch):
    """The size in use, at the published settings; of the teacher's 60 templates, for time, two."""
    two_templates(monkeypatch)
    opts = options(PROMPT_DEPTH_TEXT=9, PROMPT_DEPTH_VISION=9, N_CTX_TEXT=4, N_CTX_VISION=4)
    trainer = build(
        "PromptSRC", tmp_path, tmp_path / "out", vit_b16, *three_classes(tmp_path), *opts
    )
    check(trainer, vit_b16)
    shapes = {key: tuple(p.shape) for key, p in trainer.model.learner.named_parameters()}
    assert shapes.pop("prompt_learner.ctx") == (4, 512) and shapes.pop("image_encoder.VPT") == (
        4,
        768,
    )
    assert shapes == {promptsrc_plain.TEXT_BLOCK.format(n): (4, 512) for n in range(1, 9)} | {
        promptsrc_plain.IMAGE_BLOCK.format(n): (4, 768) for n in range(1, 9)
    }


def test_starts_from_a_photo_of_a(data, tmp_path, weights):
    learned = parameters(build("PromptSRC", data, tmp_path, weights, *SHALLOW))
    words = weights["token_embedding.weight"][[320, 1125, 539, 320]]  # a photo of a
    assert torch.equal(learned.pop("prompt_learner.ctx"), words)
    for key, p in learned.items():
        assert p.std().item() == pytest.approx(0.02, rel=0.3), key


def test_upstreams_file_loads(data, tmp_path, weights):
    """Half precision; the whole CLIP, and its image tower once more; the token buffers of other
    classes."""
    prompts = promptsrc_plain.random_prompts(PlainCLIP(weights))
    state = {key: p.detach().half() for key, p in prompts.items()}
    expected = {key: p.float() for key, p in state.items()}
    for key, w in weights.items():
        if key.startswith("visual."):
            state[f"image_encoder.{key.removeprefix('visual.')}"] = w.half()
            state[f"prompt_learner.ZS_image_encoder.{key.removeprefix('visual.')}"] = w.half()
        elif key.startswith(("transformer.", "ln_final.", "positional", "text_projection")):
            state[f"text_encoder.{key}"] = w.half()
    state["logit_scale"] = torch.tensor(1.0)
    state |= {
        f"prompt_learner.token_{part}": torch.randn(9, 5, 64).half()
        for part in ("prefix", "suffix")
    }
    save(tmp_path / "upstream", FOLDER, state)

    trainer = build("PromptSRC", data, tmp_path, weights, *SHALLOW)
    trainer.load_model(str(tmp_path / "upstream"), epoch=5)
    image, _ = batch(weights, trainer.num_classes)
    assert_logits(
        trainer,
        image,
        promptsrc_plain.logits(PlainCLIP(weights), expected, class_names(trainer), image),
    )


EVEN = ("TRAIN.CHECKPOINT_FREQ", "1", *options(GPA_MEAN=2.0, GPA_STD=1.5))


def test_the_last_file_is_the_average_of_the_epochs(data, tmp_path):
    assert run("PromptSRC", data, tmp_path / "average", *EVEN) == 0
    # The same run with all the weight on epoch 3 ends with what epoch 3 gave.
    assert (
        run("PromptSRC", data, tmp_path / "last", *EVEN[:2], *options(GPA_MEAN=3.0, GPA_STD=0.01))
        == 0
    )
    epochs = [read(tmp_path / "average", FOLDER, epoch) for epoch in (1, 2)] + [
        read(tmp_path / "last", FOLDER)
    ]
    expected = promptsrc_plain.average(epochs, mean=2.0, std=1.5)
    ours = read(tmp_path / "average", FOLDER)
    assert ours.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(ours[key].double(), expected[key], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(
        ours["prompt_learner.ctx"], epochs[2]["prompt_learner.ctx"], rtol=1e-4
    )


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_average_survives_a_kill(data, tmp_path, monkeypatch, epoch):
    """In the second or in the last epoch, counted from 0."""
    assert run("PromptSRC", data, tmp_path / "whole", *EVEN) == 0

    def killed(trainer, batch):
        if (trainer.epoch, trainer.batch_idx) == (epoch, 2):
            raise KeyboardInterrupt
        return go_on(trainer, batch)

    go_on = CLIPTrainer.forward_backward
    with monkeypatch.context() as patch:
        patch.setattr(CLIPTrainer, "forward_backward", killed)
        assert run("PromptSRC", data, tmp_path / "killed", *EVEN) == 130
    assert run("PromptSRC", data, tmp_path / "killed", *EVEN) == 0
    whole, resumed = (read(tmp_path / folder, FOLDER) for folder in ("whole", "killed"))
    assert whole.keys() == resumed.keys() and all(
        torch.equal(whole[key], resumed[key]) for key in whole
    )


@pytest.mark.parametrize(
    ("opts", "line"),
    [
        (options(PROMPT_DEPTH_TEXT=5), "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT 5"),
        (options(PROMPT_DEPTH_VISION=0), "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION 0"),
        (options(N_CTX_TEXT=5), "N_CTX 5"),
        (options(N_CTX_VISION=0), "TRAINER.PROMPTSRC.N_CTX_VISION 0"),
        (options(GPA_STD=0.0), "TRAINER.PROMPTSRC.GPA_STD 0.0"),
        (("TRAINER.ATPROMPT.USE_ATPROMPT", "True"), "TRAINER.ATPROMPT.USE_ATPROMPT"),
    ],
)
def test_a_setting_that_does_not_fit(data, tmp_path, capsys, opts, line):
    assert_refused("PromptSRC", data, tmp_path, capsys, line, *opts)
