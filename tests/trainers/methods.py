"""A method built as train.py builds it, on random CLIP weights, and its loss and gradients beside a
reference's."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import train
import trainers.frozen_clip
from dassl.data.datasets import Datum
from dassl.engine import TrainerX, build_trainer
from reference import promptsrc_plain
from reference.maple_plain import Prompts, as_leaves, gradients
from tests.runs import arguments, run
from trainers import promptsrc

UNEVEN = [
    "cat",
    "striped_red hexagon",
    "Boeing 737-200 (old)",
    "a name of many more words than the others",
]

# The keys that say how deep a method reaches, and how deep it does in the bundled CLIP's 4 blocks.
DEPTHS = {
    "MaPLe": {"TRAINER.MAPLE.PROMPT_DEPTH": 4},
    "MaPLe_ATP": {"TRAINER.MAPLE.PROMPT_DEPTH": 4},
    "P2C": {"TRAINER.P2C.PROMPT_DEPTH": 4},
    "PromptSRC": {
        "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT": 4,
        "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION": 4,
    },
    "MultiModalAdapter": {"TRAINER.MMADAPTER.ADAPTER_END": 4},
    "TCP": {"TRAINER.TCP.LAYER": 2},
    "VaMP": {"TRAINER.VAMP.PROMPT_DEPTH": 4},
    "ReBaPL_MaPLe": {"TRAINER.MAPLE.PROMPT_DEPTH": 4},
    "ReBaPL_P2C": {"TRAINER.P2C.PROMPT_DEPTH": 4},
}
# The keys that list a method's blocks, from 1: all but the first.
LAYERS = dict.fromkeys(["MMRL", "VaMP_MMRL", "ReBaPL_MMRL"], "TRAINER.MMRL.REP_LAYERS")
LAYERS |= {"MMRLpp": "TRAINER.MMRLpp.REP_LAYERS"}
# ReBaPL needs whole cycles.
CYCLES = {"OPTIM.CYCLE_EPOCHS": "3", "TRAINER.REBAPL.NOISE_EPOCHS": "1"}


def build(
    trainer: str, data: Path, out: Path, weights: Mapping[str, Tensor], *opts: str
) -> TrainerX:
    """The trainer of a run on the bundled benchmark's 16 base classes, in fp32.

    Its CLIP is made of `weights`; a method that reaches too deep for it reaches as deep as it can.
    """
    size = weights["input_resolution"].item()
    blocks = len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")})
    for key, depth in DEPTHS.get(trainer, {}).items():
        last = blocks - 1 if trainer == "TCP" else blocks  # its blocks are counted from 0
        if key not in opts:
            opts = (key, str(min(depth, last)), *opts)
    if trainer in LAYERS and LAYERS[trainer] not in opts:
        opts = (LAYERS[trainer], str(upper_layers(weights)), *opts)
    if trainer.startswith("ReBaPL"):
        opts = (*(word for pair in CYCLES.items() if pair[0] not in opts for word in pair), *opts)
    opts = ("INPUT.SIZE", f"({size},{size})", *opts)
    cfg = train.setup_cfg(train.parse_args(arguments(trainer, data, out, *opts)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers.frozen_clip, "find_weights", lambda *_: Path(__file__))
        patch.setattr(trainers.frozen_clip, "read_state_dict", lambda _: dict(weights))
        torch.manual_seed(3)  # the same start, whatever ran before
        made = build_trainer(cfg)
    made.set_model_mode("train")
    made.epoch = made.batch_idx = 0
    return made


def upper_layers(weights: Mapping[str, Tensor]) -> list[int]:
    """The numbers of a text tower's blocks, from 1, without the first."""
    blocks = {key.split(".")[2] for key in weights if key.startswith("transformer.resblocks.")}
    return list(range(2, len(blocks) + 1))


def in_double(trainer: TrainerX) -> None:
    """All of it, and what it has computed once, in double precision."""
    trainer.model.double(), trainer.model.clip.double()
    if hasattr(trainer.model.learner, "keep_text_below"):
        trainer.model.learner.keep_text_below(trainer.model.clip)


def shake(module: torch.nn.Module, by: float = 0.05) -> None:
    """Random parameters, so that what starts equal or at zero differs."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p += by * torch.randn(p.shape, generator=generator).to(p)


def batch(weights: Mapping[str, Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Three random images and labels; two of ViT-B/16's size, for time."""
    size = weights["input_resolution"].item()
    generator = torch.Generator().manual_seed(1)
    label = torch.tensor([0, classes - 1, 2] if size < 224 else [0, classes - 1])
    return torch.randn(len(label), 3, size, size, generator=generator), label


def two_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """PromptSRC's teacher has two of its 60 templates from here on, for time; here and there."""
    two = promptsrc_plain.TEMPLATES[:2]
    monkeypatch.setattr(promptsrc_plain, "TEMPLATES", two)
    file = SimpleNamespace(OPENAI_IMAGENET_TEMPLATES=two)
    monkeypatch.setattr(promptsrc, "open_clip_file", lambda name: file)


def assert_gradients(
    module: torch.nn.Module, expected: Mapping[str, Tensor | None], tolerance: float = 1e-5
) -> None:
    """Every parameter's gradient is the reference's, relative to its length; None where the
    reference has none."""
    named = dict(module.named_parameters())
    assert named.keys() == expected.keys()
    for name, p in named.items():
        if expected[name] is None:
            assert p.grad is None or not p.grad.any(), name
            continue
        assert expected[name].norm() > 0, name
        assert (p.grad - expected[name]).norm() <= tolerance * expected[name].norm(), name


def uneven_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers built from here on have a benchmark whose first classes have names of very different
    lengths."""
    names = dict(enumerate(UNEVEN))
    monkeypatch.setattr(
        Datum, "classname", property(lambda datum: names.get(datum.label, datum._classname))
    )


def class_names(trainer: TrainerX) -> list[str]:
    return [trainer.lab2cname[label] for label in range(trainer.num_classes)]


def parameters(trainer: TrainerX) -> Prompts:
    """What the trainer learns, copied for a reference, under the checkpoint's keys."""
    return as_leaves(dict(trainer.model.learner.named_parameters()))


def assert_loss(
    trainer: TrainerX,
    image: Tensor,
    label: Tensor,
    expected: Tensor,
    prompts: Prompts,
    tolerance: float = 1e-5,
) -> None:
    """The trainer's loss and gradients are a reference's, whose loss `expected` is of `prompts`."""
    loss, _ = trainer.loss(image, label)
    loss.backward()
    assert abs(loss - expected) <= tolerance * abs(expected)
    assert_gradients(trainer.model.learner, gradients(expected, prompts), tolerance)


def assert_logits(trainer: TrainerX, image: Tensor, expected: Tensor) -> None:
    """The logits (B, C) of a test are a reference's, within 1e-5 of the largest."""
    trainer.set_model_mode("eval")
    with torch.no_grad():
        logits = trainer.model_inference(image)
    assert logits.shape == expected.shape
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def upstream_file(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Writes a prompt learner's file of epoch 50 with random half-precision tensors; returns them
    in single."""
    generator = torch.Generator().manual_seed(3)
    state = {
        key: (0.05 * torch.randn(shape, generator=generator)).half()
        for key, shape in shapes.items()
    }
    (folder / "prompt_learner").mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 50}, folder / "prompt_learner" / "model.pth.tar-50")
    return {key: value.float() for key, value in state.items()}


def assert_refused(
    trainer: str, data: Path, out: Path, capsys: pytest.CaptureFixture, line: str, *opts: str
) -> None:
    """The run ends with exit code 2 and one line that has `line` in it."""
    assert run(trainer, data, out, *opts) == 2
    err = capsys.readouterr().err
    assert line in err and len(err.strip().splitlines()) == 1
