"""The processes of one run, as torchrun starts them; without it a run is one process.

Each has a rank, from 0. All do the same with the same random numbers, each on its own images, and
what they find is added up. The first, rank 0, writes the files and is heard.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from dassl.commands import leave

from .errors import Failure, UsageError

if TYPE_CHECKING:
    from torch import Tensor, device
    from torch.distributed import Store

TURNS = TypeVar("TURNS", bound=Sequence)
ON_GPUS = "cpu:gloo,cuda:nccl"  # what adds up the tensors of a device
# How long a process waits for another: one may be encoding what all will read.
PATIENCE = timedelta(hours=6)
LOST = (
    "another process of this run has ended, or cannot be reached; what was saved is kept. Run the "
    "same command again to go on"
)

_rank, _count = 0, 1
_batch = 0  # images of the batch that is divided
sharing_classes = False  # whether the classes are divided too
_store: "Store | None" = None  # that all processes see, also when one of them has ended


def count() -> int:
    """How many processes the run has."""
    return _count


def first() -> bool:
    """Whether this is the one that writes."""
    return _rank == 0


def join() -> None:
    """From now on this process is one of those that torchrun has started, if it has.

    Leaves with a line if they cannot connect.
    """
    global _rank, _count, _store
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) < 2:
        return
    import torch
    import torch.distributed as dist

    kinds = ON_GPUS if torch.cuda.is_available() else "gloo"
    try:
        store, rank, n = next(dist.rendezvous("env://"))
        dist.init_process_group(kinds, store=store, rank=rank, world_size=n, timeout=PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        why = str(error).splitlines()[0]
        leave(f"the processes that torchrun has started cannot connect: {why}", 1)
    _rank, _count, _store = rank, n, store


def end() -> None:
    """To be called when all is done. Not where a process has failed: others may be waiting."""
    global _rank, _count, _store
    if _count > 1:
        import torch.distributed as dist

        dist.destroy_process_group()
        _rank, _count, _store = 0, 1, None


@contextmanager
def silent() -> Iterator[None]:
    """Inside, nothing is heard of this process, unless it is the first."""
    with ExitStack() as stack:
        if not first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process does the whole, as if there were no others."""
    global _rank, _count
    there = _rank, _count
    _rank, _count = 0, 1
    try:
        yield
    finally:
        _rank, _count = there


def earlier_failure(code: int, line: str) -> tuple[int, str] | None:
    """The exit code and the line of the process that failed first; None if it is this one.

    To be told those of this process, when it fails.
    """
    try:
        if _store is None:
            return None
        if _store.add("failures", 1) > 1:
            return tuple(json.loads(_store.get("failure")))
        _store.set("failure", json.dumps([code, line]))
    except RuntimeError:  # the store has ended too
        pass
    return None


def refuse(line: str) -> None:
    """Raises UsageError for what several processes cannot do; of one process nothing."""
    if _count > 1:
        raise UsageError(f"{_count} processes (torchrun): {line}")


def choose_gpu(kind: "device") -> None:
    """Each process of a machine computes on a GPU of its own. Raises UsageError without one."""
    import torch

    if _count == 1 or kind.type != "cuda":
        return
    local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= there:
        line = f"torchrun has started more processes than this machine has GPUs, {there}"
        raise UsageError(f"{line}: give --nproc_per_node {there}, or USE_CUDA False")
    torch.cuda.set_device(local)


# -- whose turn it is, and what all have found


def turns(things: TURNS) -> TURNS:
    """Those of a sequence that are this process's: every n-th for n processes."""
    return things[_rank::_count]


def add_up(*tensors: "Tensor") -> None:
    """Each becomes its sum over the processes. Raises Failure if one of these has ended."""
    import torch.distributed as dist

    for tensor in tensors if _count > 1 else ():
        _wait(lambda: dist.all_reduce(tensor))  # noqa: B023


def greatest(number: int, device: "device | str" = "cpu") -> int:
    """The greatest of the processes' numbers. Raises as `add_up`."""
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(number, device=device)
    if _count > 1:
        _wait(lambda: dist.all_reduce(tensor, dist.ReduceOp.MAX))
    return int(tensor)


def wait() -> None:
    """For all processes to come here. Raises as `add_up`."""
    greatest(0)


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process does what is inside, then the others do. Raises as `add_up`."""
    if not first():
        wait()
    yield
    if first():
        wait()


def take_firsts(tensors: "Iterable[Tensor]") -> None:
    """Each becomes the first process's. Raises as `add_up`."""
    import torch.distributed as dist

    for tensor in tensors if _count > 1 else ():
        _wait(lambda: dist.broadcast(tensor, 0))  # noqa: B023


# -- a training batch, of which each process has some images


def check_batch(images: int) -> None:
    """Raises UsageError if a batch has fewer images than the run has processes."""
    if images < _count:
        line = f"A batch of {images} cannot be shared by {_count} processes: start fewer"
        raise UsageError(f"{line}, or raise DATALOADER.TRAIN_X.BATCH_SIZE")


@contextmanager
def dividing(images: int, classes_too: bool = False) -> "Iterator[slice]":
    """Gives which of a batch's images are this process's; what is below knows of them.

    Raises UsageError if there are fewer than processes.
    """
    global _batch, sharing_classes
    check_batch(images)
    _batch, sharing_classes = images, classes_too
    try:
        yield _own(images)
    finally:
        _batch, sharing_classes = 0, False


def _own(things: int) -> slice:
    return slice(things * _rank // _count, things * (_rank + 1) // _count)


def own_classes(classes: int) -> slice | None:
    """Which classes this process is to encode, if the processes share them."""
    return _own(classes) if sharing_classes and _count > 1 else None


def weight() -> float:
    """How much of the batch's images are this process's."""
    own = _own(_batch)
    return (own.stop - own.start) / _batch


def all_rows(rows: int) -> tuple[int, slice]:
    """For `rows` images of this process, of a divided batch: how many are all, and where its are.

    So all processes draw the same random numbers, and those that one process would.
    """
    return (_batch, _own(_batch)) if _batch and _count > 1 else (rows, slice(None))


def mean(tensors: "Sequence[Tensor | None]") -> "list[Tensor | None]":
    """Of each the mean over the processes, weighted by their images of the divided batch.

    In one reduction. None stays None, and must be None in all. Raises as `add_up`.
    """
    import torch

    there = [t for t in tensors if t is not None]
    if _count == 1 or not there:
        return list(tensors)
    flat = torch.cat([t.flatten() for t in there]) * weight()
    add_up(flat)
    parts = zip(flat.split([t.numel() for t in there]), there, strict=True)
    means = iter([part.view_as(t).to(t.dtype) for part, t in parts])
    return [None if t is None else next(means) for t in tensors]


def _wait(collective: Callable[[], object]) -> None:
    try:
        collective()
    except RuntimeError as error:
        raise Failure(LOST) from error
