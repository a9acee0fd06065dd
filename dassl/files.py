"""Opening what others have named. Imports nothing slow."""

import errno
import os
from typing import TypeVar

P = TypeVar("P", str, os.PathLike)


def regular(path: P) -> P:
    """The path, for `open`: who reads a pipe or a device may wait for ever.

    Raises OSError if it is one. What is not there, or a folder, is for `open` to say.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise OSError(errno.EINVAL, "It is a pipe or device, not a file", os.fspath(path))
    return path
