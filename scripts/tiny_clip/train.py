"""Trains the bundled small CLIP anew, on drawn shapes: python -m scripts.tiny_clip.train.

Writes clip/weights/vit_tiny_8.safetensors. Its SHA-256 then goes to SMALL_SHA256 in
clip/weights.py, without which the file is not taken.

The images are plain ones (datasets/shapes_render.py's default style), drawn as the training
goes; the benchmark's own images look different. A caption names some of a scene's attributes,
so in a batch many captions fit an image: the loss is CLIP's, with the probability shared
equally by all captions (and images) that fit, as in UniCL (Yang et al., 2022).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as serialized
from torch import Tensor, nn

from clip import tokenize
from clip.clip import PIXEL_MEAN, PIXEL_STD
from clip.model import CLIP
from dassl.utils import atomic_write
from datasets.shapes_render import COLORS, COUNTS, GRAY, PATTERNS, SHAPES, render

OUT = Path("clip/weights/vit_tiny_8.safetensors")
WIDTH, LAYERS, CONTEXT, RESOLUTION, PATCH = 128, 4, 77, 32, 8
COLOR_NAMES = tuple(COLORS)
TEMPLATES = "a photo of {}.|a photo of {}.|{}.|{}|a picture of {}.|an image of {}.|there is {}."
TEMPLATES = TEMPLATES.split("|")  # the first has a double chance
# How often a caption names an attribute of the scene.
NAMED = {"pattern": 0.75, "color": 0.85, "shape": 0.9, "background": 0.6, "count": 0.7}
Scene = dict[str, np.ndarray]  # attribute -> (n,) integers


def joined(*words: str) -> str:
    """The words that are not empty, in a row."""
    return " ".join(filter(None, words))


def describe(pattern: int, color: int, shape: int, background: int, count: int, form: int) -> str:
    """A caption without its template; -1 leaves an attribute out, and so does a gray background.

    Args:
        count: one less than the number of objects.
        form: 0 or 1 for two rare forms, others for the usual one.
    """
    pattern = PATTERNS[pattern] if pattern >= 0 else ""
    color = COLOR_NAMES[color] if color >= 0 else ""
    noun = SHAPES[shape] if shape >= 0 else "shape"
    if form == 0 and shape >= 0:  # the words "color", "pattern" and "shape" get a meaning
        parts = [f"{pattern} pattern" if pattern else "", f"{color} color" if color else ""]
        text = ", ".join(filter(None, [*parts, f"{noun} shape"]))
    elif form == 1 and color and shape >= 0:
        text = joined("a", pattern, noun, "of color", color)
    elif count > 0:
        plural = noun + ("es" if noun == "cross" else "s")
        text = joined(COUNTS[count], pattern, color, plural)
    else:
        text = joined("a", pattern, color, noun)
    if background in (-1, GRAY):
        return text
    return f"{text} on {COLOR_NAMES[background]} background"


def scenes(rng: np.random.RandomState, n: int) -> Scene:
    """n random scenes: a third have several objects, a third a coloured background."""
    scene = {
        "pattern": rng.randint(len(PATTERNS), size=n),
        "color": rng.randint(len(COLORS), size=n),
        "shape": rng.randint(len(SHAPES), size=n),
        "background": np.where(rng.rand(n) < 0.33, rng.randint(GRAY, size=n), GRAY),
        "count": np.where(rng.rand(n) < 0.33, rng.randint(2, 5, size=n), 1),
    }
    clash = scene["background"] == scene["color"]
    scene["background"][clash] = (scene["background"][clash] + 1) % GRAY
    return scene


def captions(rng: np.random.RandomState, scene: Scene) -> tuple[list[str], Scene]:
    """A caption for each scene, and the attributes it names (-1: not named)."""
    n = len(scene["pattern"])
    named = {key: np.where(rng.rand(n) < p, scene[key], -1) for key, p in NAMED.items()}
    named["background"][named["background"] == GRAY] = -1
    named["count"][scene["count"] == 1] = -1
    form = rng.randint(8, size=n)
    template = rng.randint(len(TEMPLATES), size=n)
    named["count"][form < 2] = -1
    columns = named | {"count": named["count"] - 1, "form": form}
    texts = []
    for i in range(n):
        text = describe(**{key: column[i] for key, column in columns.items()})
        texts.append(TEMPLATES[template[i]].format(text))
    return texts, named


def fits(scene: Scene, named: Scene) -> Tensor:
    """(images, captions) bool: every attribute that the caption names is the image's."""
    fit = [(named[key] == -1) | (scene[key][:, None] == named[key]) for key in scene]
    return torch.from_numpy(np.logical_and.reduce(fit))


def images_of(scene: Scene, rng: np.random.RandomState) -> Tensor:
    """(n, 3, R, R), drawn and normalised."""
    pixels = torch.from_numpy(render(rng, **scene, size=RESOLUTION))
    x = pixels.permute(0, 3, 1, 2).float() / 255  # (n, R, R, 3) -> (n, 3, R, R)
    mean = torch.tensor(PIXEL_MEAN)[:, None, None]
    std = torch.tensor(PIXEL_STD)[:, None, None]
    return (x - mean) / std


def known_tokens() -> Tensor:
    """Sorted ids of all tokens of captions, padding and the family's usual prompt words."""
    plurals = [*(shape + "s" for shape in SHAPES), "crosses"]
    words = [*PATTERNS, *COLORS, *SHAPES, *plurals, *COUNTS, *TEMPLATES]
    words += ["shape shapes color pattern on background , . a an of", "X x"]
    return torch.unique(tokenize([word.replace("{}", "") for word in words]))


def reduced(texts: list[str], ids: Tensor) -> Tensor:
    """(n, L) numbers of tokens in the reduced vocabulary, cut behind the longest text.

    EOT is the largest number there too.
    """
    tokens = tokenize(texts)
    tokens = tokens[:, : int((tokens > 0).sum(1).max())].contiguous()
    numbers = torch.searchsorted(ids, tokens)
    assert torch.equal(ids[numbers], tokens), "a caption has a word that known_tokens lacks"
    return numbers


def soft_loss(logits: Tensor, match: Tensor) -> Tensor:
    """Cross-entropy of the rows against equal shares over what fits."""
    share = match / match.sum(1, keepdim=True)
    return -(share * F.log_softmax(logits, dim=1)).sum(1).mean()


def loss_of(model: CLIP, ids: Tensor, rng: np.random.RandomState, batch: int) -> Tensor:
    """The loss of a batch of new scenes, from images to captions and back."""
    scene = scenes(rng, batch)
    texts, named = captions(rng, scene)
    match = fits(scene, named).float()
    image = F.normalize(model.encode_image(images_of(scene, rng)), dim=-1)
    text = F.normalize(model.encode_text(reduced(texts, ids)), dim=-1)
    logits = model.logit_scale.exp() * (image @ text.t())
    return (soft_loss(logits, match) + soft_loss(logits.t(), match.t())) / 2


@torch.no_grad()
def accuracy(model: CLIP, ids: Tensor, n: int = 1000) -> float:
    """Zero-shot accuracy in percent on plain single objects, among all 400 combinations."""
    rng = np.random.RandomState(12345)
    scene = scenes(rng, n) | {"count": np.ones(n, dtype=int), "background": np.full(n, GRAY)}
    names = [f"a photo of a {p} {c} {s}." for p in PATTERNS for c in COLORS for s in SHAPES]
    label = (scene["pattern"] * len(COLORS) + scene["color"]) * len(SHAPES) + scene["shape"]
    text = model.encode_text(reduced(names, ids))
    image = model.encode_image(images_of(scene, rng))
    guess = (image @ F.normalize(text, dim=-1).t()).argmax(1).numpy()
    return 100 * float((guess == label).mean())


def save(model: CLIP, ids: Tensor, path: Path) -> None:
    """Half precision, OpenAI's keys; of the token embedding the trained rows and their ids."""
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
    state["token_embedding.ids"] = ids.int()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(serialized(state))


def build(vocabulary: int) -> CLIP:
    """The small CLIP with that many tokens, untrained."""
    vision = (RESOLUTION, LAYERS, WIDTH, PATCH)
    text = (CONTEXT, vocabulary, WIDTH, WIDTH // 64, LAYERS)
    model = CLIP(WIDTH, *vision, *text)
    model.initialize_parameters()
    return model


def main() -> None:
    """Trains, and every 100 steps prints a line and writes the weights."""
    parser = argparse.ArgumentParser(
        "python -m scripts.tiny_clip.train", description=__doc__.splitlines()[0]
    )
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
    model = build(vocabulary=len(ids))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, args.steps, pct_start=0.05, cycle_momentum=False
    )
    started = time.time()
    running = 0.0
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
        if step % 100 == 0 or step == args.steps:
            minutes = (time.time() - started) / 60
            right = accuracy(model, ids)
            mean = running / ((step - 1) % 100 + 1)
            line = f"step {step} loss {mean:.3f} accuracy of 400 {right:.1f}"
            print(f"{line} min {minutes:.1f}", flush=True)
            running = 0.0
            save(model, ids, args.out)


if __name__ == "__main__":
    main()
