import fcntl
import gc
import logging
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

from clip.model import CLIP, build_model
from datasets.shapes import Shapes
from reference.weights import openai_state_dict
from runs.plan import ENVIRONMENT

from .runs import run

# The tests' tensors and tolerances are a CPU's: they, and what they start, see no GPU; tests/gpu
# sees what there is. (The tests' own processes, side by side, inherit what the first has seen.)
VISIBLE = os.environ.setdefault("GPU_TESTS_SEE", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
is_available = torch.cuda.is_available
os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.is_available = "", lambda: False


# Nor do they see what a user's shell says to the scripts, such as OUTPUT; where Python is, they do.
for name in set(ENVIRONMENT) - {"VENV"}:
    os.environ.pop(name, None)

# The models here are small: more threads only wait for each other, and a forked process has none of
# those it was forked from. Fixtures of a module come before those of a test.
torch.set_num_threads(1)

# What tests write need not outlast a power cut, and a disk may take seconds for it.
os.fsync = lambda _: None

# Files that take longest, first of all: at the end no process is left alone with one of them.
LONG = ["test_kill", "test_scripts", "test_bench", "test_starter", "test_thirdparty"]
LONG += ["test_slurm", "test_ranks", "test_tutorial", "test_demo"]
LONG += ["test_export", "test_new_method", "test_steps", "test_rebapl", "test_vamp"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those for a GPU come last: where CUDA has begun, a forked process cannot use it."""
    items.sort(key=lambda item: ("gpu" in item.path.parts, item.path.stem not in LONG))


def pytest_collection_finish() -> None:
    """All is imported: from here on, Python looks for garbage only in what the tests make."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """What tests start sees one environment in all of them: a Starter has a template for each."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """xdist sends reports as UTF-8, which a logged name need not be."""
    report = yield
    report.sections = [
        (name, text.encode(errors="replace").decode()) for name, text in report.sections
    ]
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=8, help="how many runs tests/test_kill.py kills")
    every = "tests/test_export.py makes the graph of each method, not one of each kind"
    parser.addoption("--all-exports", action="store_true", help=every)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Also where the test before has started a program, which may have asked for more."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_seed() -> None:
    """What a test draws, and so how it is rounded, is the same whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def loud_logs() -> Iterator[None]:
    """Who silences a log does so for a program's life; here the next program is heard again."""
    yield
    for name in ("results.logs",):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def weights() -> dict[str, torch.Tensor]:
    """A tiny CLIP's random weights in OpenAI's layout."""
    return openai_state_dict("tiny")


@pytest.fixture(scope="session")
def vit_b16(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, torch.Tensor]]:
    """ViT-B/16's random weights in OpenAI's layout: one file, mapped into all processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes
    file = folder / "vit_b16.pt"
    with open(folder / "vit_b16.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            torch.save(openai_state_dict("ViT-B/16"), file)
        weights = torch.load(file, mmap=True, weights_only=True)
    yield weights
    file.unlink(
        missing_ok=True
    )  # 600 MB, in folders that pytest keeps; who has it mapped, keeps it


@pytest.fixture
def clip64(weights: dict[str, torch.Tensor]) -> CLIP:
    """Our model with these weights, frozen, in double precision."""
    return build_model(weights).double().requires_grad_(False)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the bundled benchmark's classes but few images of each."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "parts", {"train": 4, "val": 1, "test": 4})
        run("ZeroshotCLIP", folder, folder / "first", flags=("--no-train",))
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """Output folders of P2C: of its training, and of its test on the new classes."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", sys.stdout)
        assert run("P2C", data, out / "train", "OPTIM.MAX_EPOCH", "2") == 0
        flags = ("--eval-only", "--model-dir", str(out / "train"), "--load-epoch", "2")
        patch.setattr(sys, "argv", ["train.py", *flags])
        assert run("P2C", data, out / "test", "DATASET.SUBSAMPLE_CLASSES", "new", flags=flags) == 0
    return out
