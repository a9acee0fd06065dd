"""What the modality gap is in numbers. Exact, in double precision, in memory of order N."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Unit features nearer than this may differ only by single precision's rounding.
SAME = 1e-6
BLOCK = 256  # points whose differences to all others are taken at once


class Features(NamedTuple):
    """N test images and C classes under one set of prompts."""

    image: Tensor  # (N, D), unit length
    own: Tensor  # (N, D), unit length: the text feature of an image's class
    text: Tensor  # (C, D); where each image has text features of its own, their mean over images
    label: Tensor  # (N,)
    accuracy: float  # percent


class Gap(NamedTuple):
    """Of gaps d_i = f_i - t_i from text to image features; NaN where nothing can be compared."""

    dim: int  # D
    accuracy: float
    size: float  # mean |d_i|
    mean: float  # |mean d|
    constancy: float  # mean cosine of d_i and d_j, i ≠ j
    image: float  # mean |cosine| of mean d and f_i - f_j
    text: float  # mean |cosine| of mean d and t_a - t_b, of classes a and b


def measure(features: Features) -> Gap:
    """The numbers of a set of features."""
    image, own, text = (t.double() for t in features[:3])
    gaps = image - own
    mean = gaps.mean(dim=0)
    return Gap(
        dim=image.shape[1],
        accuracy=features.accuracy,
        size=float(gaps.norm(dim=1).mean()),
        mean=float(mean.norm()),
        constancy=mean_cosine(gaps),
        image=mean_abs_cosine(mean, image),
        text=mean_abs_cosine(mean, text),
    )


def mean_cosine(vectors: Tensor) -> float:
    """Mean cosine of all pairs i ≠ j of vectors (n, D): with unit u, (|Σu|² - n) / (n (n - 1)).

    Vectors without length have no direction and are left out.
    """
    length = vectors.norm(dim=1)
    units = (vectors / length[:, None])[length > SAME]
    n = len(units)
    return float(units.sum(dim=0).square().sum() - n) / (n * (n - 1)) if n > 1 else math.nan


def mean_abs_cosine(direction: Tensor, points: Tensor) -> float:
    """Mean |cosine| of a direction (D,) and the differences of all pairs of points (n, D).

    Pairs of equal points are left out. It takes time of order n² D.
    """
    if direction.norm() <= SAME:
        return math.nan
    points = points - points.mean(dim=0)  # small numbers lose less in the products below
    along, square = points @ (direction / direction.norm()), points.square().sum(dim=1)
    total, pairs = 0.0, 0
    for block in torch.arange(len(points)).split(BLOCK):
        rest = slice(int(block[0]), None)  # each pair once: the block with itself and what follows
        squares = square[block, None] + square[rest] - 2 * points[block] @ points[rest].T
        distance = squares.clamp_(min=0).sqrt_()
        counted = (distance > SAME).triu_(1)
        distance.masked_fill_(~counted, math.inf)
        total += float(((along[block, None] - along[rest]).abs_() / distance).sum())
        pairs += int(counted.sum())
    return total / pairs if pairs else math.nan


def chance(dim: int) -> float:
    """Mean |cosine| of two random directions of `dim` numbers."""
    return math.exp(math.lgamma(dim / 2) - math.lgamma((dim + 1) / 2)) / math.sqrt(math.pi)


# -- the same as a picture


class Picture(NamedTuple):
    """What a figure shows of N images."""

    image: Tensor  # (N, 2): along the mean gap from the mean text feature, and across it
    own: Tensor  # (N, 2): the same of their classes' text features
    label: Tensor  # (N,)
    size: Tensor  # (N,) |d_i|
    cosine: Tensor  # (N,) of d_i and the mean gap; NaN where there is none


def picture(features: Features) -> Picture:
    """Features in two directions: the mean gap's, and the first principal one across it.

    If the mean gap is 0, both modalities have the same mean, and the second direction is the
    first principal one of all features. It is turned so that the classes' numbers grow along it.
    """
    image, own = features.image.double(), features.own.double()
    gaps = image - own
    mean, size = gaps.mean(dim=0), gaps.norm(dim=1)
    along = mean / mean.norm() if mean.norm() > SAME else torch.zeros_like(mean)
    both = torch.cat([image, own]) - own.mean(dim=0)
    spread = both - (both @ along)[:, None] * along
    across = torch.linalg.eigh(spread.T @ spread).eigenvectors[:, -1]
    label = features.label.double()
    if (spread[: len(label)] @ across) @ (label - label.mean()) < 0:
        across = -across
    x = torch.stack([both @ along, spread @ across], dim=1)
    cosine = (gaps @ along) / size
    cosine[(size <= SAME) | (mean.norm() <= SAME)] = math.nan
    return Picture(x[: len(label)], x[len(label) :], features.label, size, cosine)
