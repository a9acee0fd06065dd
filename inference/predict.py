"""What a trained model says of images: python -m inference.predict RUN IMAGE-OR-FOLDER…

RUN is a run's output folder, a checkpoint file, or a folder that inference.export made. No
dataset is needed. Folders are walked, hidden files left out. Images that cannot be read are named
and skipped; the exit code is then 1.

--classes and --classes-file put other names in the place of the run's: they go through the
learned prompts, as in a test on new classes. Where every image lies in a folder that is called
like a class, the accuracy is told too.
"""

import argparse
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dassl.commands import OneLineParser, command_line, leave, plain, say
from dassl.utils import Failure, atomic_write, cpu_cores

from .arguments import add_model, existing, parse_model
from .image_files import find_images, true_classes
from .models import Model, open_model
from .pixels import read_pixels
from .predictions import Prediction, csv_lines, json_lines, predictions_of, table_lines

EXAMPLES = """examples:
  python -m inference.predict output/my_run photos
  python -m inference.predict output/my_run a.jpg b.jpg --classes cat dog "polar bear"
  python -m inference.predict output/my_run photos --format csv --out photos.csv
  python -m inference.predict output/my_run photos --picture photos.png
"""
TOPK = 5
AHEAD = 2  # batches that are decoded while the model computes


def predict(
    model: Model,
    images: Sequence[str],
    truths: Sequence[str] | None = None,
    topk: int = TOPK,
    batch_size: int = 32,
) -> Iterator[Prediction]:
    """The predictions of images, in order; those that cannot be read are named on stderr.

    truths: the name of each image's class, if it is known. Raises: Failure if a score is NaN.
    """
    rows = list(zip(images, truths or [None] * len(images), strict=True))
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    with tqdm(total=len(rows), unit="image", leave=False, disable=None) as bar:
        read = decoded(parts, model.about["preprocessing"])
        for part, pixels in zip(parts, read, strict=True):
            for error in pixels:
                if isinstance(error, Failure):
                    tqdm.write(plain(f"skipped: {error}"), file=sys.stderr)
            good = [i for i in range(len(part)) if not isinstance(pixels[i], Failure)]
            if good:
                logits = model.logits(np.stack([pixels[i] for i in good]))
                here, labels = zip(*(part[i] for i in good), strict=True)
                if (bad := np.isnan(logits).any(axis=1)).any():
                    line = f"{here[bad.argmax()]}: the scores are NaN"
                    raise Failure(f"{line}: the model's weights are damaged or overflow PREC")
                yield from predictions_of(here, logits, model.classnames, topk, labels)
            bar.update(len(part))


def decoded(
    parts: Sequence[Sequence[tuple]], preprocessing: dict
) -> Iterator[list[np.ndarray | Failure]]:
    """The pixels of each part's images, which threads read ahead of who asks."""
    pool = ThreadPoolExecutor(cpu_cores())
    read = partial(read_row, preprocessing=preprocessing)
    try:
        coming = deque()
        for part in parts:
            coming.append(pool.map(read, part))
            if len(coming) > AHEAD:
                yield list(coming.popleft())
        yield from map(list, coming)
    finally:
        pool.shutdown(cancel_futures=True)


def read_row(row: tuple, preprocessing: dict) -> np.ndarray | Failure:
    """(3, H, W) of the image that a row begins with, or what keeps it from being read."""
    if not os.path.exists(row[0]):
        return Failure(f"{row[0]} is not there; if it is a link, its file is not")
    try:
        return read_pixels(row[0], preprocessing)
    except Failure as error:
        return error
    except MemoryError:  # a line of 65,000 pixels is 65,000 times as long when resized
        return Failure(f"{row[0]}: the memory does not hold it, resized")


# The command


@contextmanager
def destination(file: str) -> Iterator[Callable[[str], None]]:
    """What writes a line: to the file, which is there when all is written, or for "" to stdout."""
    if not file:
        yield tqdm.write  # stdout; a progress bar makes way
        return
    with atomic_write(file) as out:
        yield lambda line: out.write(f"{line}\n".encode(errors="replace"))


def form(args: argparse.Namespace, predictions: Iterator[Prediction]) -> Iterator[str]:
    """The lines to be written."""
    if args.format == "csv":
        return csv_lines(predictions)
    if args.format == "jsonl":
        return json_lines(predictions)
    person = not args.out and sys.stdout.isatty() and args.topk is None
    return table_lines(predictions, shutil.get_terminal_size().columns if person else None)


def run(args: argparse.Namespace) -> int:
    """0, or 1 if an image could not be read. Raises: Failure."""
    images = find_images(args.images)
    opts = {"weights": args.weights or "", "use_cuda": not args.cpu, "any_clip": args.any_clip}
    model = open_model(args.run, args.classes, **opts)
    clip = model.about.get("clip")  # a method of one's own may have none
    about = model.about["trainer"] + (f" on {clip['name']}" if clip else "")
    about += f" (activation: {clip['activation']})" if clip and "activation" in clip else ""
    about += f", {len(model.classnames)} classes"
    say(f"{about}, {model.device}")

    truths, unknown = true_classes(images, model.classnames)
    done: list[Prediction] = []

    def noted() -> Iterator[Prediction]:
        for prediction in predict(model, images, truths, args.topk or TOPK, args.batch_size):
            done.append(prediction)
            yield prediction

    with destination(args.out) as write:
        for line in form(args, noted()):
            write(line)
    why = f"no class is called like the folder {unknown}" if unknown else ""
    if done and truths:
        right = sum(p.right for p in done)
        share = f"{100 * right / len(done):.1f}%: {right:,} of {len(done):,} images"
        say(f"accuracy {share}, by the names of their folders")
    elif done and why:
        say(f"no accuracy: {why}")
    if done and args.picture:
        from .pictures import draw

        for line in draw(done, about, args.picture, args.picture_limit):
            say(line)
        if not truths:
            say(f"no picture of mistakes: {why or 'no folder is called like a class'}")
    if skipped := len(images) - len(done):
        say(f"{skipped:,} of {len(images):,} images could not be read")
    return 1 if skipped else 0


def number(text: str) -> int:
    """The type of an argument that counts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number, 1 or more")
    return int(text)


def picture(text: str) -> Path:
    """The type of --picture."""
    if not text.endswith(".png") or not os.path.isdir(os.path.dirname(text) or "."):
        raise argparse.ArgumentTypeError(f"{text}: must be a .png in a folder that is there")
    return Path(text)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m inference.predict", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add_model(parser)
    add("images", nargs="+", type=existing, metavar="IMAGE-OR-FOLDER")
    add("--topk", type=number, metavar="K", help=f"classes for each image; default: {TOPK}")
    add("--format", choices=("table", "csv", "jsonl"), help="default: as FILE ends, else table")
    add("--out", default="", metavar="FILE", help="default: to stdout")
    pictures = "a sheet of images and their best classes; with the classes' folders, also"
    pictures += " FILE-mistakes.png and FILE-confusion.png"
    add("--picture", type=picture, metavar="FILE.png", help=pictures)
    add("--picture-limit", type=number, default=40, metavar="N", help="images of a sheet; 40")
    add("--batch-size", type=number, default=32, metavar="N", help="default: 32")
    add("--cpu", action="store_true", help="use no GPU")
    args = parse_model(parser, argv)
    if args.classes and len(args.classes) == 1:
        parser.error(f"one class alone, {args.classes[0]!r}, has always 100%: name two or more")
    for folder in filter(os.path.isdir, args.images if args.picture else ()):
        if Path(os.path.realpath(args.picture)).is_relative_to(os.path.realpath(folder)):
            parser.error(f"--picture {args.picture}: would be one of the images in {folder}")
    if os.path.exists(args.out) and not os.path.isfile(args.out):
        parser.error(f"--out {args.out}: is a folder or device, not a file")
    ending = os.path.splitext(args.out)[1].lower()
    said = ending.removeprefix(".") if ending in (".csv", ".jsonl") else ""
    args.format = args.format or said or "table"
    if ending in Image.registered_extensions() or said not in ("", args.format):
        parser.error(f"--out {args.out}: is no name for a file of --format {args.format}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 1 if an image could not be read; leaves with 1 or 2 and one line if all is wrong."""
    args = parse_args(argv)
    try:
        return run(args)
    except Failure as error:
        leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        leave("stopped", 130)


if __name__ == "__main__":
    command_line(main)
