"""A page for trying a trained model: bash scripts/demo.sh RUN (or python -m inference.demo RUN).

RUN is a run's output folder, a checkpoint, or a folder made by scripts/export.sh. The page is
served on this machine alone (127.0.0.1) and asks nothing of any other: drop an image, type class
names, see their probabilities. Where the text prompts are learned vectors P, a slider moves them
to P + σ·n, as python -m inference.cloud does, for twenty draws of n: the cloud around the point
that was learned.
"""

import argparse
import importlib.util
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dassl.commands import OneLineParser, command_line, leave, say
from dassl.utils import Failure, UsageError

from .demo_model import DemoModel

HOST = "127.0.0.1"
INSTALL = "pip install --no-deps -r requirements-demo.txt"
EXAMPLES = """examples:
  bash scripts/demo.sh output/base2new/train_base/shapes/shots_16/P2C/vit_tiny_ep5_batch4/seed1
  bash scripts/demo.sh exported --port 8000
"""


def bind(port: int) -> socket.socket:
    """A socket on this machine's own address; port 0 is any free one. Raises: UsageError."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "no such port"
        raise UsageError(f"port {port}: {reason}; choose another with --port") from error
    return listening


def serve(model: DemoModel, listening: socket.socket) -> None:
    """Serves the page until Ctrl-C. Uploaded images are removed at the end."""
    with tempfile.TemporaryDirectory(prefix="demo") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from .demo_page import page_server  # reads both when it is imported

        server = page_server(model, HOST)
        listening.listen()  # who asks before the server runs waits for it
        say(f"http://{HOST}:{listening.getsockname()[1]} shows the page; Ctrl-C ends it")
        server.run(sockets=[listening])


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("bash scripts/demo.sh", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="output folder, checkpoint, or exported folder")
    add("--port", type=int, default=7860, metavar="N", help="default: 7860; 0: any that is free")
    add("--weights", default="", metavar="FILE", help="CLIP's file, if it is not where it was")
    add("--any-clip", action="store_true", help="also a CLIP of another SHA-256 than the run's")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0 after Ctrl-C; leaves with 1 or 2 and one line if something is wrong."""
    args = parse_args(argv)
    if not importlib.util.find_spec("gradio"):
        leave(f"the page needs Gradio: {INSTALL}", 1)
    try:
        with bind(args.port) as listening:
            serve(DemoModel(args.run, args.weights, args.any_clip), listening)
    except Failure as error:
        leave(str(error), error.exit_code)
    except KeyboardInterrupt:
        say("\nstopped")
    return 0


if __name__ == "__main__":
    command_line(main)
