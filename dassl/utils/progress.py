"""How far a loop is: a bar on a terminal, in a log a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
PAUSE = 30.0  # seconds between two lines


def bar(things: Iterable[T], what: str, total: int) -> tqdm:
    """The things, with a bar if stderr is a terminal."""
    return tqdm(things, desc=what, total=total, leave=False, disable=not sys.stderr.isatty())


def bar_or_lines(things: Iterable[T], what: str, total: int) -> Iterator[T]:
    """The things, with a bar; where there is no terminal a line is printed every PAUSE seconds.

    As "test [120/400] eta 0:01:10". Short loops print nothing.
    """
    start = said = time.monotonic()
    for done, thing in enumerate(bar(things, what, total), start=1):
        yield thing
        now = time.monotonic()
        if now - said >= PAUSE and done < total and not sys.stderr.isatty():
            left = timedelta(seconds=round((now - start) / done * (total - done)))
            print(f"{what} [{done}/{total}] eta {left}")
            said = now
