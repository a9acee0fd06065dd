"""Asking many runs the same: what goes wrong with one of them stops none of the others."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from dassl.commands import leave, say
from dassl.utils import Failure, UsageError
from dassl.utils.errors import known
from results.records import Result

Answer = TypeVar("Answer")


def ask_each(
    found: Sequence[Result],
    ask: Callable[[Result], Answer],
    file: str,
    cannot: type[Exception] = UsageError,
) -> tuple[dict[Result, Answer], bool]:
    """The answers of those that have one, and whether all others were only skipped.

    Args:
        ask: writes `file` into the run's folder. It raises `cannot` for a method that cannot be
            asked this, which is skipped, and Failure for a run that fails.
    """
    answers, failed = {}, False
    for i, run in enumerate(found, start=1):
        say(f"[{i}/{len(found)}] {run.folder}")
        try:
            answers[run] = ask(run)
        except cannot as error:
            say(f"skipped: {error}")
        except Exception as error:
            line = str(error) if isinstance(error, Failure) else known(error)
            if not line:
                raise
            say(f"error: {line}")
            failed = True
        except KeyboardInterrupt:
            leave(f"stopped; {len(answers)} of {len(found)} runs have their {file}", 130)
    return answers, not failed
