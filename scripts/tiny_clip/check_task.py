"""The bundled tasks before any method runs on them: python -m scripts.tiny_clip.check_task.

Prints a markdown table, which --record writes for docs/SHAPES.md: the small CLIP's zero-shot
accuracy, and a linear probe's. The probe is a logistic regression on the image features of the
run's own 16-shot training images (its strength chosen on the few-shot validation images), mean and
standard deviation over seeds 1 2 3. With --picture it shows some of the images instead.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from tabulate import tabulate
from torch import Tensor
from torch.utils.data import DataLoader

import datasets  # noqa: F401  registers them
from clip import load, tokenize
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine.record import commit, device_name
from dassl.utils import read_image, set_random_seed
from results.kept import write_lines

TASKS = "Shapes ShapesFog ShapesDusk ShapesGarden ShapesCrowd".split()  # base-to-new
OTHERS = "ShapesBackground ShapesCount ShapesBlur ShapesNight ShapesSketch".split()
COLUMNS = "dataset|classes of|classes|test images|zero-shot|16-shot linear probe".split("|")
SHOWN = 9  # classes in a row of the picture
STRENGTHS = (0.1, 1, 10, 100, 1000)


def read_dataset(name: str, root: str, subset: str, seed: int) -> DatasetBase:
    """A bundled dataset with 16 shots, as a run reads it."""
    cfg = get_cfg_default()
    cfg.DATASET.ROOT, cfg.DATASET.NAME, cfg.SEED = root, name, seed
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = 16, subset
    set_random_seed(seed)
    return DATASET_REGISTRY.get(name)(cfg)


class Features:
    """Unit-length features of images and class names; each image is seen once."""

    def __init__(self):
        self.model, self.transform = load("ViT-Tiny/8", device="cpu")
        self.known: dict[str, Tensor] = {}

    def read(self, paths: list[str]) -> Tensor:
        """(N, 3, R, R), preprocessed."""
        return torch.stack([self.transform(read_image(path)) for path in paths])

    @torch.no_grad()
    def images(self, items: list[Datum]) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) features, (N,) labels."""
        new = [d.impath for d in items if d.impath not in self.known]
        batches = DataLoader(new, batch_size=256, collate_fn=self.read) if new else ()
        found = [F.normalize(self.model.encode_image(batch), dim=-1) for batch in batches]
        self.known.update(zip(new, (row for rows in found for row in rows), strict=True))
        features = torch.stack([self.known[d.impath] for d in items])
        return features.numpy(), np.array([d.label for d in items])

    @torch.no_grad()
    def text(self, classnames: list[str]) -> np.ndarray:
        """(C, D)"""
        tokens = tokenize([f"a photo of a {name}." for name in classnames])
        return F.normalize(self.model.encode_text(tokens), dim=-1).numpy()


def zero_shot(features: Features, data: DatasetBase) -> float:
    """Accuracy in percent with the prompts `a photo of a {}.`"""
    x, y = features.images(data.test)
    return 100 * float(((x @ features.text(data.classnames).T).argmax(1) == y).mean())


def probe(features: Features, data: DatasetBase) -> float:
    """Accuracy in percent of a linear probe trained on the 16 shots."""
    train, val, test = map(features.images, (data.train_x, data.val, data.test))
    fits = [LogisticRegression(C=c, max_iter=2000).fit(*train) for c in STRENGTHS]
    return 100 * max(fits, key=lambda fit: fit.score(*val)).score(*test)


def table(root: str) -> Iterator[dict[str, str | int]]:
    """A row for each task and set of classes."""
    features = Features()
    for name in (*TASKS, *OTHERS):
        for subset in ("base", "new", "all") if name in TASKS else ("all",):
            data = read_dataset(name, root, subset, seed=1)
            accuracy = f"{zero_shot(features, data):.1f}"
            row = [name, subset, data.num_classes, len(data.test), accuracy]
            if len(data.train_x) >= 16 * data.num_classes:  # the shifted sets are for testing only
                again = [read_dataset(name, root, subset, seed) for seed in (1, 2, 3)]
                scores = [probe(features, data) for data in again]
                row.append(f"{np.mean(scores):.1f} ± {np.std(scores):.1f}")
            else:
                row.append("–")
            yield dict(zip(COLUMNS, row, strict=True))


def picture(root: str) -> Image.Image:
    """A row for each task: the first test image of each of nine classes."""
    rows = []
    for name in (*TASKS, *OTHERS):
        shown = {d.label: d for d in reversed(read_dataset(name, root, "all", seed=1).test)}
        images = [np.asarray(read_image(shown[2 * i].impath)) for i in range(SHOWN)]
        rows.append(np.concatenate(images, axis=1))  # (64, 9 · 64, 3)
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        "python -m scripts.tiny_clip.check_task", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--root", default="data", help="folder of the datasets")
    parser.add_argument("--record", type=Path, metavar="FILE", help="docs/records/check_task.jsonl")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="docs/shapes.png")
    args = parser.parse_args()
    if args.picture:
        picture(args.root).save(args.picture)
        return
    rows = list(table(args.root))
    print(tabulate(rows, "keys", tablefmt="github", disable_numparse=True))
    if args.record:
        known = commit()
        about = {
            "command": "python -m scripts.tiny_clip.check_task",
            "commit": (known["commit"] or "")[:7] + " with changes" * bool(known["dirty"]),
            "machine": device_name(torch.device("cpu")),
        }
        write_lines(args.record, [about, *rows])


if __name__ == "__main__":
    main()
