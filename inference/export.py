"""A trained model as files for others: python -m inference.export RUN OUT.

RUN is a run's output folder, a checkpoint file, or a folder that this program made. OUT is new:

  prompts.safetensors            what was learned; predict and this program take OUT as a RUN
  model.onnx, preprocess.json    pixels in, logits of the classes out, for ONNX Runtime
  text_features.safetensors      the classes' text features, for any program that has this CLIP:
                                 of methods that leave the image tower as it is
  README.md                      a model card: the folder can be uploaded to the Hugging Face hub

model.onnx and text_features.safetensors are of the run's classes, or of those that are named. The
graph computes in float32 whatever the run's precision was, and is compared with PyTorch here.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from dassl.commands import OneLineParser, command_line, leave, say
from dassl.engine import TrainerBase
from dassl.utils import Failure, UsageError, atomic_write
from dassl.utils.errors import CannotWrite
from trainers.base import CustomCLIP
from trainers.features import says
from trainers.zsclip import ZeroshotCLIP

from .arguments import add_model, parse_model
from .card import CARD, model_card, record_of
from .graph import BATCHES, TOLERANCE, NoGraph, images, in_float32, write_graph
from .load import load_model
from .onnx_model import GRAPH, PREPROCESS, need
from .prompts_file import PROMPTS, save_prompts

TEXT = "text_features.safetensors"
EXAMPLES = """examples:
  python -m inference.export output/my_run exported
  python -m inference.export output/my_run exported --classes cat dog "polar bear"
  python -m inference.predict exported photos
"""


def text_features(trainer: TrainerBase) -> Tensor | None:
    """(C, D), unit length: cosines with them are the logits. None where they are not.

    They are for methods that leave the image tower alone and have one text feature a class.
    """
    if not says(trainer, "frozen_image_tower"):
        return None
    if isinstance(trainer, ZeroshotCLIP):
        return trainer.text_features
    one = type(trainer.model).forward is CustomCLIP.forward and not getattr(trainer, "samples", [])
    return trainer.model.text_features() if one else None


@torch.no_grad()
def write_text_features(trainer: TrainerBase, path: Path) -> bool:
    """Writes text_features.safetensors, if the method has them; returns whether it does.

    Its metadata: "classnames" and "clip" (name, SHA-256, activation) as JSON, and "logit_scale",
    the factor that makes logits of cosines. Raises: Failure if they do not give the model's logits.
    """
    if (text := text_features(trainer)) is None:
        return False
    clip, image = trainer.frozen_clip(), images(trainer, max(BATCHES))
    scale = clip.logit_scale.exp().item()
    logits = scale * F.normalize(clip.encode_image(image), dim=-1) @ text.t()
    expected = trainer.model_inference(image)
    if not (logits - expected).abs().max() <= TOLERANCE * expected.abs().max():
        name = type(trainer).__name__
        raise Failure(f"{TEXT}: cosines with {name}'s text features do not give its logits")
    about = trainer.describe()
    clip = about["clip"]
    metadata = {
        "format": "pt",
        "classnames": json.dumps(about["classnames"]),
        "logit_scale": repr(scale),
        "clip": json.dumps({key: value for key, value in clip.items() if key != "file"}),
    }
    with atomic_write(path) as file:
        file.write(save({"text_features": text.contiguous()}, metadata))
    return True


def export(trainer: TrainerBase, run: Path, out: Path, graph: bool = True) -> dict[str, str]:
    """Writes all files of a trainer, as `load_model` gives it on the CPU, to a new folder.

    Args:
        run: where its results.json may be.
        graph: also model.onnx.

    Returns: the files' names, each with what there is to say of it.

    Raises: Failure if a file cannot be written or is not right; there is no folder then.
    """
    with new_folder(out) as folder:
        made = {PROMPTS: ""}
        save_prompts(trainer, folder / PROMPTS)
        in_float32(trainer)
        if graph:
            try:
                off = write_graph(trainer, folder)
                made[GRAPH] = f"within {off:.0e} of PyTorch, at batches of 1, 5 and 16"
                made[PREPROCESS] = ""
            except NoGraph as why:
                (folder / GRAPH).unlink(missing_ok=True)
                say(f"{GRAPH} is not made: {why}")
        if write_text_features(trainer, folder / TEXT):
            made[TEXT] = ""
        made[CARD] = ""
        card = model_card(trainer, record_of(run), made)
        with atomic_write(folder / CARD) as file:
            file.write(card.encode(errors="replace"))
    return made


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it when the block ends well, and else is removed.

    Raises: UsageError if there is something in `out`; CannotWrite.
    """
    check_new(out)
    folder = out.parent / f".{out.name}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True)
        yield folder
        os.replace(folder, out)
    except OSError as error:
        hint = "free some space or choose another folder"
        raise CannotWrite(f"Cannot write {out}: {error.strerror or error}; {hint}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_new(out: Path) -> None:
    """Raises: UsageError unless `out` is not there, or an empty folder."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        what = "a folder with files in it" if out.is_dir() else "a file"
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}") from error
    raise UsageError(f"{out} is {what}: name a new folder")


# The command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m inference.export", description=__doc__, epilog=EXAMPLES)
    add_model(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--no-onnx", action="store_true", help="make no model.onnx")
    return parse_model(parser, argv)


def run(args: argparse.Namespace) -> None:
    """Exports, and prints what was made. Raises: Failure."""
    if not args.no_onnx:
        need("onnx", "onnxscript", "onnxruntime")
    check_new(args.out)
    opts = {"weights": args.weights or "", "any_clip": args.any_clip, "use_cuda": False}
    trainer = load_model(args.run, args.classes, **opts)
    about = trainer.describe()
    say(f"{about['trainer']} on {about['clip']['name']}, {len(about['classnames'])} classes")
    made = export(trainer, args.run, args.out, not args.no_onnx)
    for name, what in made.items():
        size = (args.out / name).stat().st_size / 1000
        print(f"{args.out / name}: {size:,.0f} kB" + (f", {what}" if what else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """0; leaves with 1 or 2 and one line if something is wrong."""
    args = parse_args(argv)
    try:
        run(args)
    except Failure as error:
        leave(str(error), error.exit_code)
    return 0


if __name__ == "__main__":
    command_line(main)
