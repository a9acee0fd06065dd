"""A run of each method, and a test of its file: the family's folder, names and shapes."""

from pathlib import Path

import pytest
import torch

from tests.trainers.files import read, train_and_test

W, DEPTH = 128, 4  # of the bundled CLIP: the width of both towers, their blocks


def linear(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def meta_net(hidden: int, n_out: int) -> dict[str, tuple[int, ...]]:
    return linear("meta_net.linear1", W, hidden) | linear("meta_net.linear2", hidden, n_out)


def adapters(*blocks: int, hidden: int = 32) -> dict[str, tuple[int, ...]]:
    found = {}
    for n in blocks:
        for tower in ("text", "visual"):
            found |= linear(f"{tower}_adapter.{n}.down.0", W, hidden)
            found |= linear(f"{tower}_adapter.{n}.up", hidden, W)
        found |= linear(f"shared_adapter.{n}.0", hidden, hidden)
    return found


def below(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{key}": shape for key, shape in shapes.items()}


CYCLES = "OPTIM.CYCLE_EPOCHS=1 TRAINER.REBAPL.NOISE_EPOCHS=1"  # two in a run
ATTRIBUTES = {f"ctx_att{k}": (2, W) for k in (1, 2, 3)}
DEEP = {f"compound_prompts_text.{n}": (2, W) for n in range(DEPTH - 1)}
for n in range(DEPTH - 1):
    DEEP |= linear(f"compound_prompt_projections.{n}", W, W)
MAPLE = {"ctx": (2, W)} | linear("proj", W, W) | DEEP
MLP = linear("proj.fc1", W, 2 * W) | linear("proj.fc2", 2 * W, W)
SRC = {"prompt_learner.ctx": (4, W), "image_encoder.VPT": (4, W)}
for tower in ("text_encoder", "image_encoder"):
    for n in range(1, DEPTH):
        SRC[f"{tower}.transformer.resblocks.{n}.VPT_shallow"] = (4, W)
POSTERIOR = {}
for name in ("weight_mean", "weight_log_variance"):
    for n, n_in, n_out in ((0, W, W // 2), (2, W // 2, W // 2), (4, W // 2, W)):
        POSTERIOR |= linear(f"meta_net.{name}.module.{n}", n_in, n_out)


def gaussians(layers: int, n_ctx: int) -> dict[str, tuple[int, ...]]:
    found = {}
    for name in ("posterior", "prior"):
        for n in range(layers):
            found |= linear(f"{name}.{n}.fc1", W, 32)
            found |= linear(f"{name}.{n}.fc2", 32, 2 * n_ctx * W)
    return below("text_prompts", found)


VAMP = {"vision_prompts": (DEPTH, 2, W)} | gaussians(DEPTH, 2)
SPACE = {"compound_rep_tokens": (5, 512)}
for tower in "vt":
    for n in range(DEPTH - 1):
        SPACE |= linear(f"compound_rep_tokens_r2{tower}proj.{n}", 512, W)
MMRL = below("representation_learner", SPACE) | {"image_encoder.proj_rep": (W, W)}
VAMP_MMRL = {key: shape for key, shape in MMRL.items() if "r2tproj" not in key}
VAMP_MMRL |= gaussians(DEPTH - 1, 5)

SPACE = {"compound_rep_tokens": (5, 512)}
for tower in "vt":
    SPACE[f"srra_r2{tower}proj.weight"] = (W, 512)
    for n in range(DEPTH - 1):
        own = {"A": (W, 4), "B": (4, 512), "bias": (W,)}
        SPACE |= below(f"srra_r2{tower}proj.srra.{n}", own)
MMRLPP = below("representation_learner", SPACE)
MMRLPP |= {"image_encoder.A": (W, 64), "image_encoder.B": (64, W)}

# What the run is given, the folder, and what is learned; behind a method's name, what else tells
# its runs apart.
FILES = {
    "CoOp": ("TRAINER.COOP.CTX_INIT= TRAINER.COOP.N_CTX=5", "prompt_learner", {"ctx": (5, W)}),
    "CoOp_ATP": ("", "prompt_learner", {"ctx": (2, W)} | ATTRIBUTES),
    "KgCoOp": ("", "prompt_learner", {"ctx": (4, W)}),
    "ProGrad": ("", "prompt_learner", {"ctx": (4, W)}),
    "TCP": ("", "prompt_learner", {"ctx": (4, W)} | meta_net(W // 4, 4 * W)),
    "CoCoOp": (
        "DATALOADER.TRAIN_X.BATCH_SIZE=4",
        "prompt_learner",
        {"ctx": (4, W)} | meta_net(W // 16, W),
    ),
    "CoCoOp_ATP": (
        "DATALOADER.TRAIN_X.BATCH_SIZE=4",
        "prompt_learner",
        {"ctx": (2, W)} | ATTRIBUTES | meta_net(W // 16, W),
    ),
    "EMPL": (
        "DATALOADER.TRAIN_X.BATCH_SIZE=4 TRAINER.EMPL.SAMPLES=2 TRAINER.EMPL.STEPS=1",
        "prompt_learner",
        {"ctx": (4, W)},
    ),
    "MaPLe": ("", "MultiModalPromptLearner", below("prompt_learner", MAPLE)),
    "MaPLe_ATP": ("", "MultiModalPromptLearner", below("prompt_learner", MAPLE | ATTRIBUTES)),
    "P2C": (
        "",
        "MultiModalPromptLearner",
        below("prompt_learner", {"ctx": (2, W)} | ATTRIBUTES | MLP | DEEP),
    ),
    "PromptSRC": ("TRAINER.PROMPTSRC.GPA_MEAN=2.0", "VLPromptLearner", SRC),
    "MultiModalAdapter": (
        "TRAINER.MMADAPTER.ADAPTER_START=2 TRAINER.MMADAPTER.ADAPTER_END=4",
        "adapter_learner",
        adapters(2, 3, 4),
    ),
    "VaMP": ("", "VariationalPromptLearner", VAMP),
    "VaMP_MMRL": ("", "VariationalRepresentationLearner", VAMP_MMRL),
    "BayesianPrompt": (
        "DATALOADER.TRAIN_X.BATCH_SIZE=4 TRAINER.VPT.L=2",
        "prompt_learner",
        {"ctx": (4, W)} | POSTERIOR,
    ),
    "BayesianPrompt coopvpt": (
        "DATALOADER.TRAIN_X.BATCH_SIZE=4 TRAINER.VPT.L=2 TRAINER.VPT.VPT_TYPE=coopvpt",
        "prompt_learner",
        {"ctx": (4, W), "mean_posterior": (1, W), "std_posterior": (1, W)},
    ),
    "MMRL": ("", "MultiModalRepresentationLearner", MMRL),
    "MMRLpp": ("", "MultiModalRepresentationLearner", MMRLPP),
    "ReBaPL_CoOp": (CYCLES, "prompt_learner", {"ctx": (4, W)}),
    "ReBaPL_MaPLe": (CYCLES, "MultiModalPromptLearner", below("prompt_learner", MAPLE)),
    "ReBaPL_MMRL": (CYCLES, "MultiModalRepresentationLearner", MMRL),
    "ReBaPL_P2C": (
        CYCLES,
        "MultiModalPromptLearner",
        below("prompt_learner", {"ctx": (2, W)} | ATTRIBUTES | MLP | DEEP),
    ),
}


@pytest.mark.parametrize("method", FILES)
def test_a_run_and_its_file(method: str, data: Path, tmp_path: Path, capsys) -> None:
    given, folder, shapes = FILES[method]
    method = method.split()[0]
    opts = ["OPTIM.MAX_EPOCH", "2", *(w for pair in given.split() for w in pair.split("="))]
    train_and_test(method, data, tmp_path, capsys, *opts)
    state = read(tmp_path / "train", folder, epoch=2)
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes
    assert all(value.dtype == torch.float32 for value in state.values())
