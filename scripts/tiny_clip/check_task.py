"""Measure the bundled tasks before any method runs on them: the small CLIP's zero-shot accuracy and
a linear probe's.

    python scripts/tiny_clip/check_task.py [--root data]

Prints a markdown table. The probe is a logistic regression on the image features of the run's own
16-shot training images (its strength chosen on the few-shot validation images), mean and standard
deviation over seeds 1 2 3.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from tabulate import tabulate
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import datasets  # noqa: E402, F401
from clip import load, tokenize  # noqa: E402
from dassl.config import get_cfg_default  # noqa: E402
from dassl.data.datasets import DATASET_REGISTRY, Datum  # noqa: E402
from dassl.utils import read_image, set_random_seed  # noqa: E402

NAMES = ("Shapes", "ShapesBackground", "ShapesCount", "ShapesBlur", "ShapesNight", "ShapesSketch")


def dataset(name: str, root: str, subset: str, seed: int):
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.SEED = root, name, seed
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = 16, subset
    set_random_seed(seed)
    return DATASET_REGISTRY.get(name)(cfg)


class Features:
    """Unit-length image features of Datums, each image seen once."""

    def __init__(self):
        self.model, self.transform = load("ViT-Tiny/8", device="cpu")
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, items: list[Datum]) -> tuple[np.ndarray, np.ndarray]:
        new = [d.impath for d in items if d.impath not in self.known]
        loader = DataLoader(
            new,
            batch_size=256,
            collate_fn=lambda b: torch.stack([self.transform(read_image(p)) for p in b]),
        )
        if new:
            found = torch.cat(
                [F.normalize(self.model.encode_image(batch), dim=-1) for batch in loader]
            )
            self.known.update(zip(new, found, strict=True))
        return torch.stack([self.known[d.impath] for d in items]).numpy(), np.array(
            [d.label for d in items]
        )

    @torch.no_grad()
    def text(self, classnames: list[str]) -> np.ndarray:
        return F.normalize(
            self.model.encode_text(tokenize([f"a photo of a {c}." for c in classnames])), dim=-1
        ).numpy()


def zero_shot(features: Features, data) -> float:
    x, y = features(data.test)
    return 100 * float(((x @ features.text(data.classnames).T).argmax(1) == y).mean())


def probe(features: Features, data) -> float:
    (x, y), (xv, yv), (xt, yt) = features(data.train_x), features(data.val), features(data.test)
    fits = [LogisticRegression(C=c, max_iter=2000).fit(x, y) for c in (0.1, 1, 10, 100, 1000)]
    return 100 * max(fits, key=lambda f: f.score(xv, yv)).score(xt, yt)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", default="data")
    root = parser.parse_args().root
    features, rows = Features(), []
    for name in NAMES:
        subsets = ("base", "new", "all") if name == "Shapes" else ("all",)
        for subset in subsets:
            data = dataset(name, root, subset, 1)
            row = [
                name,
                subset,
                data.num_classes,
                len(data.test),
                f"{zero_shot(features, data):.1f}",
            ]
            if len(data.train_x) >= 16 * data.num_classes:  # the shifted sets are for testing only
                scores = [probe(features, dataset(name, root, subset, seed)) for seed in (1, 2, 3)]
                row.append(f"{np.mean(scores):.1f} ± {np.std(scores):.1f}")
            rows.append(row)
    headers = (
        "dataset",
        "classes of",
        "classes",
        "test images",
        "zero-shot",
        "16-shot linear probe",
    )
    print(tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True, missingval="–"))


if __name__ == "__main__":
    main()
