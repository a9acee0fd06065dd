"""How long commands take: python -m bench.clock 'bash scripts/quickstart.sh' 'bash .ci/run'.

Each once, with a new, empty OUTPUT, and what it prints goes to stderr.
"""

import os
import subprocess
import sys
import tempfile
import time

from dassl.commands import OneLineParser, command_line, leave

from .record import Record, add_record
from .startup import cpu_seconds
from .timing import machine


def measure(command: str) -> tuple[float, float]:
    """Seconds on the clock and of the CPU. Leaves with 1 if the command fails."""
    with tempfile.TemporaryDirectory() as out:
        before, start = cpu_seconds(), time.perf_counter()
        env = os.environ | {"OUTPUT": out}
        code = subprocess.run(command, shell=True, stdout=sys.stderr, env=env).returncode
        taken = time.perf_counter() - start, cpu_seconds() - before
    if code:
        leave(f"{command} ended with {code}", 1)
    return taken


def main() -> int:
    """Prints a row for each command."""
    parser = OneLineParser("python -m bench.clock", description=__doc__)
    parser.add_argument("commands", nargs="+", metavar="COMMAND")
    add_record(parser)
    args = parser.parse_args()
    record = Record(args.record, parser.prog)
    rows = []
    for command in args.commands:
        clock, cpu = measure(command)
        rows.append({"command": f"`{command}`", "s": f"{clock:.0f}", "CPU s": f"{cpu:.0f}"})
    print(f"{machine()}\n\n{record.table('commands', rows)}")
    return 0


if __name__ == "__main__":
    command_line(main)
