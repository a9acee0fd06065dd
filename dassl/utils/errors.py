"""What a user can cause ends in one clear line: what is wrong, where, what to do."""

import sys

from dassl.commands import NO_SPACE


class Failure(Exception):
    """The run cannot go on. `str()` is one line for the user."""

    exit_code = 1

    def __init__(self, line: str):
        # A DataLoader worker's exception has a traceback as its text, our line last.
        if line.startswith("Caught "):
            line = line.strip().splitlines()[-1].split(": ", 1)[-1]
        super().__init__(line)


class CannotWrite(Failure):
    """A file cannot be written: the disk is full, or the folder is not one to write to."""


class UsageError(Failure):
    """The user asked for something that does not exist or cannot be."""

    exit_code = 2


MEMORY_FULL = (
    "the memory is full, the device's or the machine's; what was saved is kept. To train, lower "
    "DATALOADER.TRAIN_X.BATCH_SIZE or take PREC fp16, in another --output-dir; to test, "
    "lower DATALOADER.TEST.BATCH_SIZE"
)
WORKER_KILLED = (
    "a process that reads images was killed, as happens where memory or /dev/shm is full; what was "
    "saved is kept. Lower DATALOADER.NUM_WORKERS (0: no such processes) or DATALOADER.CACHE_MB and "
    "run again to go on"
)


def known(error: Exception) -> str:
    """One line for a library's error that a user can do something about, else ""."""
    torch = sys.modules.get("torch")  # programs that do not import it say errors too
    full = (MemoryError, torch.OutOfMemoryError) if torch else MemoryError
    text = str(error)
    if isinstance(error, full) or "DefaultCPUAllocator" in text:
        return MEMORY_FULL
    if "DataLoader worker (pid" in text:
        return WORKER_KILLED
    if isinstance(error, BrokenPipeError):
        line = "nobody reads what is printed any more; what was saved is kept"
        return f"{line}. Run the same command again to go on"
    if isinstance(error, PermissionError) and error.filename:
        return f"no permission for {error.filename}: ask for it, or use another folder"
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        where = error.filename or "a file"
        line = f"cannot write {where}: {error.strerror}. Free some space"
        return f"{line}, then run the same command again to go on"
    return ""
