"""Make clip/weights/vit_tiny_8.safetensors again: a small CLIP trained from scratch on drawn shapes
and their captions.

    python scripts/tiny_clip/train.py

Its SHA-256 goes to SMALL_SHA256 in clip/weights.py then, without which it is not taken.

The images are plain ones (datasets/shapes_render.py's default style), drawn as the training goes;
the benchmark's own images look different. A caption names some of a scene's attributes, so in a
batch many captions fit an image: the loss is CLIP's, with the probability shared equally by all
captions (and images) that fit, as in UniCL (Yang et al., 2022).
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from clip import tokenize  # noqa: E402
from clip.clip import PIXEL_MEAN, PIXEL_STD  # noqa: E402
from clip.model import CLIP  # noqa: E402
from datasets.shapes_render import COLORS, COUNTS, GRAY, PATTERNS, SHAPES, render  # noqa: E402

OUT = REPO / "clip/weights/vit_tiny_8.safetensors"
WIDTH, LAYERS, CONTEXT, RESOLUTION, PATCH = 128, 4, 77, 32, 8
COLOR_NAMES = tuple(COLORS)
TEMPLATES = (
    "a photo of {}.",
    "a photo of {}.",
    "{}.",
    "{}",
    "a picture of {}.",
    "an image of {}.",
    "there is {}.",
)


def describe(pattern: int, color: int, shape: int, background: int, count: int, form: int) -> str:
    """A caption without its template; -1 leaves an attribute out, and so does a gray background."""
    pattern, color = (
        (PATTERNS[pattern] if pattern >= 0 else ""),
        (COLOR_NAMES[color] if color >= 0 else ""),
    )
    noun = SHAPES[shape] if shape >= 0 else "shape"
    if form == 0 and shape >= 0:  # the words "color", "pattern" and "shape" get a meaning
        parts = [
            f"{pattern} pattern" * bool(pattern),
            f"{color} color" * bool(color),
            f"{noun} shape",
        ]
        text = ", ".join(filter(None, parts))
    elif form == 1 and color and shape >= 0:
        text = " ".join(filter(None, ["a", pattern, noun, "of color", color]))
    else:
        plural = ("es" if noun == "cross" else "s") if count > 0 else ""
        text = " ".join(
            filter(None, [COUNTS[count] if count > 0 else "a", pattern, color, noun + plural])
        )
    return text if background in (-1, GRAY) else f"{text} on {COLOR_NAMES[background]} background"


def scenes(rng: np.random.RandomState, n: int) -> dict[str, np.ndarray]:
    """Attributes of n random scenes: a third have several objects, a third a coloured
    background."""
    scene = {
        "pattern": rng.randint(len(PATTERNS), size=n),
        "color": rng.randint(len(COLORS), size=n),
        "shape": rng.randint(len(SHAPES), size=n),
        "background": np.where(rng.rand(n) < 0.33, rng.randint(GRAY, size=n), GRAY),
        "count": np.where(rng.rand(n) < 0.33, rng.randint(2, 5, size=n), 1),
    }
    same = scene["background"] == scene["color"]
    scene["background"] = np.where(same, (scene["background"] + 1) % GRAY, scene["background"])
    return scene


def captions(
    rng: np.random.RandomState, scene: dict[str, np.ndarray]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """A caption for each scene, and the attributes it names (-1: not named)."""
    n = len(scene["pattern"])
    keep = {"pattern": 0.75, "color": 0.85, "shape": 0.9, "background": 0.6, "count": 0.7}
    named = {k: np.where(rng.rand(n) < p, scene[k], -1) for k, p in keep.items()}
    named["background"][named["background"] == GRAY] = -1
    named["count"][scene["count"] == 1] = -1
    form, template = rng.randint(8, size=n), rng.randint(len(TEMPLATES), size=n)
    named["count"][form < 2] = -1
    rows = zip(
        *(named[k] for k in ("pattern", "color", "shape", "background")),
        named["count"] - 1,
        form,
        strict=True,
    )
    return [
        TEMPLATES[t].format(describe(*row)) for t, row in zip(template, rows, strict=True)
    ], named


def fits(scene: dict[str, np.ndarray], named: dict[str, np.ndarray]) -> torch.Tensor:
    """(images, captions) bool: every attribute that the caption names is the image's."""
    ok = [(named[k] == -1) | (scene[k][:, None] == named[k]) for k in scene]
    return torch.from_numpy(np.logical_and.reduce(ok))


def to_input(images: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(PIXEL_MEAN)[:, None, None]) / torch.tensor(PIXEL_STD)[:, None, None]


def known_tokens() -> torch.Tensor:
    """Sorted ids of all tokens that captions can hold, padding and the family's usual prompt words
    included."""
    words = [
        *PATTERNS,
        *COLORS,
        *SHAPES,
        *(s + "s" for s in SHAPES),
        "crosses",
        *COUNTS,
        *TEMPLATES,
    ]
    words += ["shape shapes color pattern on background , . a an of", "X x"]
    return torch.unique(tokenize([w.replace("{}", "") for w in words]))


def reduced(texts: list[str], ids: torch.Tensor) -> torch.Tensor:
    """Tokens as numbers of the reduced vocabulary, in which EOT is the largest too, cut behind the
    longest text."""
    tokens = tokenize(texts)
    tokens = tokens[:, : int((tokens > 0).sum(1).max())].contiguous()
    numbers = torch.searchsorted(ids, tokens)
    assert torch.equal(ids[numbers], tokens), "a caption has a word that known_tokens lacks"
    return numbers


def soft_loss(logits: torch.Tensor, match: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the rows against equal shares over what fits."""
    share = match / match.sum(1, keepdim=True)
    return -(share * F.log_softmax(logits, dim=1)).sum(1).mean()


def loss_of(model: CLIP, ids: torch.Tensor, rng: np.random.RandomState, batch: int) -> torch.Tensor:
    scene = scenes(rng, batch)
    text, named = captions(rng, scene)
    tokens = reduced(text, ids)
    match = fits(scene, named).float()
    image_features = model.encode_image(to_input(render(rng, **scene, size=RESOLUTION)))
    cosine = (
        F.normalize(image_features, dim=-1) @ F.normalize(model.encode_text(tokens), dim=-1).t()
    )
    logits = model.logit_scale.exp() * cosine
    return (soft_loss(logits, match) + soft_loss(logits.t(), match.t())) / 2


@torch.no_grad()
def accuracy(model: CLIP, ids: torch.Tensor, n: int = 1000) -> float:
    """Zero-shot accuracy, percent, on plain single objects among all 400 combinations of
    attributes."""
    rng = np.random.RandomState(12345)
    scene = scenes(rng, n) | {"count": np.ones(n, dtype=int), "background": np.full(n, GRAY)}
    names = [f"a photo of a {p} {c} {s}." for p in PATTERNS for c in COLORS for s in SHAPES]
    label = (scene["pattern"] * len(COLORS) + scene["color"]) * len(SHAPES) + scene["shape"]
    text = model.encode_text(reduced(names, ids))
    image = model.encode_image(to_input(render(rng, **scene, size=RESOLUTION)))
    guess = (image @ F.normalize(text, dim=-1).t()).argmax(1).numpy()
    return 100 * float((guess == label).mean())


def save(model: CLIP, ids: torch.Tensor, path: Path) -> None:
    """Half precision, OpenAI's keys; of the token embedding only the rows trained, and their
    ids."""
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    state["token_embedding.ids"] = ids.int()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()

    torch.set_num_threads(1)  # the same sums, in the same order, on any machine
    torch.manual_seed(args.seed)
    rng = np.random.RandomState(args.seed)
    ids = known_tokens()
    model = CLIP(
        WIDTH, RESOLUTION, LAYERS, WIDTH, PATCH, CONTEXT, len(ids), WIDTH, WIDTH // 64, LAYERS
    )
    model.initialize_parameters()
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, args.steps, pct_start=0.05, cycle_momentum=False
    )
    started, running = time.time(), 0.0
    for step in range(1, args.steps + 1):
        loss = loss_of(model, ids, rng, args.batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        running += loss.item()
        if step % 100 == 0:
            minutes = (time.time() - started) / 60
            print(
                f"step {step} loss {running / 100:.3f} accuracy of 400 {accuracy(model, ids):.1f} min {minutes:.1f}",
                flush=True,
            )
            running = 0.0
            save(model, ids, args.out)


if __name__ == "__main__":
    main()
