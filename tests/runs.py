"""Runs of train.py in this process, on a small drawing of the bundled benchmark (the fixture `data`)."""

import sys
from pathlib import Path

import train

REPO = Path(__file__).resolve().parents[1]
CONFIGS = {
    "CoCoOp": "vit_tiny_c4_ep10_batch1_ctxv1",
    "CoCoOp_ATP": "vit_tiny_c2_ep10_batch1",
    "CoOp": "vit_tiny_ctxv1",
    "CoOp_ATP": "vit_tiny_ep50_2ctx",
    "KgCoOp": "vit_tiny_ep50_ctxv1",
    "MaPLe": "vit_tiny_c2_ep5_batch4_2ctx",
    "MaPLe_ATP": "vit_tiny_c2_ep5_batch4_2ctx",
    "MultiModalAdapter": "vit_tiny_ep5",
    "P2C": "vit_tiny_ep5_batch4",
    "ProGrad": "vit_tiny_ep50_ctx",
    "PromptSRC": "vit_tiny_ep20_batch4_4+4ctx",
    "TCP": "vit_tiny_ep50_ctxv1",
    "ZeroshotCLIP": "vit_tiny",
    "ZeroshotCLIP2": "vit_tiny",
}


# Two shots of the base classes, a few epochs.
SMALL = "DATASET.NUM_SHOTS 2 DATASET.SUBSAMPLE_CLASSES base OPTIM.MAX_EPOCH 3 TRAIN.PRINT_FREQ 2".split()


def arguments(trainer: str, data: Path, out: Path, *opts: str, flags: tuple[str, ...] = ()) -> list[str]:
    """A command line; `opts` are config keys and values, `flags` further flags."""
    usual = ["--root", str(data), "--seed", "1", "--trainer", trainer, "--output-dir", str(out)]
    usual += ["--dataset-config-file", f"{REPO}/configs/datasets/shapes.yaml"]
    usual += ["--config-file", f"{REPO}/configs/trainers/{trainer}/{CONFIGS[trainer]}.yaml"]
    return [*usual, *flags, *SMALL, *opts]


def run(trainer: str, data: Path, out: Path, *opts: str, flags: tuple[str, ...] = ()) -> int:
    """train.py's main with `arguments`; returns the exit code."""
    stdout = sys.stdout
    try:
        return train.main(arguments(trainer, data, out, *opts, flags=flags))
    finally:
        sys.stdout = stdout
