"""The figure of P2C's noise: σ by epoch, and the density of n.

What is drawn is what trainers/p2c.py draws from, so this asks it. That imports torch, which nothing
else here does: only once there is a schedule to draw.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from yacs.config import CfgNode

from dassl.commands import leave

from .panels import COLOURS, PAGE, Page, finish, panels
from .paper import PAPER_TEXT as PAPER
from .records import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_schedule(cfg: CfgNode, page: Page, more: str = "") -> "Figure":
    """σ of each epoch, counted from 1, and the density of n; for a checked config of P2C.

    `more` is what else its caption says.
    """
    from trainers.p2c import MixtureNoise, sigma_at

    dpd, epochs = cfg.TRAINER.P2C.DPD, cfg.OPTIM.MAX_EPOCH
    titles = [f"Schedule: {dpd.SCHEDULE}", f"Noise: {dpd.NOISE}"]
    figure, (left, right) = panels(titles, "", "", page, PAGE / 2)
    colour = {"color": COLOURS[0]}
    for at, style in ((np.linspace(0, epochs - 1, 40 * epochs), "-"), (np.arange(epochs), "o")):
        sigma = [sigma_at(dpd, t, epochs) for t in at]
        left.plot(at + 1, sigma, style, linewidth=0.8, markersize=4, **colour)
    left.set(xlabel="epoch", ylabel="σ", ylim=(0, None))
    left.xaxis.get_major_locator().set_params(integer=True)

    noise = MixtureNoise(dpd.GMM_MEANS, dpd.GMM_STDS, dpd.GMM_WEIGHTS, dpd.GMM_STANDARDIZE)
    weights = np.diff([0, *noise.edges.tolist(), 1])
    parts = list(zip(noise.means.tolist(), noise.stds.tolist(), weights, strict=True))
    end = max(4, *(abs(mean) + 4 * std for mean, std, _ in parts))
    x = np.linspace(-end, end, 801)
    right.plot(x, normal(x, 0, 1), "--", color="0.5", linewidth=1, label="N(0, 1)")
    if dpd.NOISE == "gmm":
        densities = [weight * normal(x, mean, std) for mean, std, weight in parts]
        for i, density in enumerate(densities):
            label = "" if i else "components, weighted"
            right.plot(x, density, ":", linewidth=1, label=label, **colour)
        right.plot(x, sum(densities), linewidth=1.5, label="mixture", **colour)
    right.set(xlabel="n", ylabel="density", ylim=(0, None))
    note = f"The noise is σ·n. Epochs are counted from 1; epoch 1 is t = 0 in eq. 2 of {PAPER}."
    finish(figure, [right], " ".join(filter(None, [note, more])), page)
    return figure


def normal(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    """The density of a Gaussian."""
    return np.exp(-(((x - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi))


def draw_recorded_schedule(found: Sequence[Result], page: Page) -> "Figure | None":
    """The schedule that most of the P2C runs have."""
    configs: Counter[tuple[str, int]] = Counter()
    for r in found:
        config = r.record["config"] if r.record and r.trainer == "P2C" else {}
        dpd = config.get("TRAINER", {}).get("P2C", {}).get("DPD", {})
        epochs = config.get("OPTIM", {}).get("MAX_EPOCH")
        if dpd.get("ENABLED") and isinstance(epochs, int):
            configs[json.dumps(dpd, sort_keys=True), epochs] += 1
    if not configs:
        return None
    [((dpd, epochs), runs)] = configs.most_common(1)
    others = len(configs) - 1
    which = f"These are the settings of {runs} of {configs.total()} runs; {others} others differ."
    trainer = {"P2C": {"DPD": json.loads(dpd)}}
    cfg = CfgNode({"TRAINER": trainer, "OPTIM": {"MAX_EPOCH": epochs}})
    return draw_schedule(cfg, page, which * (others > 0))


def schedule_config(words: Sequence[str]) -> CfgNode:
    """P2C's config from a file (or none) and KEY VALUE pairs; leaves with one line if it is bad."""
    from dassl.utils.errors import Failure
    from train import parse_args, setup_cfg
    from trainers.p2c import P2C

    file = words[:1] if len(words) % 2 else []
    pairs = [*words[len(file) :], "TRAINER.NAME", "P2C", "DATASET.NAME", "-"]  # no run: any dataset
    try:
        cfg = setup_cfg(parse_args([*(["--config-file", *file] if file else []), *pairs]))
        P2C.check_cfg(object.__new__(P2C), cfg)  # which looks at the config only
    except Failure as error:
        leave(str(error), error.exit_code)
    if not cfg.TRAINER.P2C.DPD.ENABLED:
        leave("TRAINER.P2C.DPD.ENABLED is False: there is no noise to draw", 1)
    return cfg
