"""Says whether runs end as recorded: python -m results.same FOLDER RECORD, a file of results.kept.

Equal is what agrees in all digits that are kept, which on a CPU of the same kind and the same
versions it should. What differs is listed, the largest differences in accuracy first.
"""

from collections.abc import Mapping, Sequence

from dassl.commands import (
    OneLineParser,
    command_line,
    existing_file,
    existing_folder,
    leave,
    log_to_stderr,
)

from .kept import DIGITS, METRICS, Row, place_of, read_rows, rows_of
from .records import results_in

EXAMPLE = """example:
  python -m results.same output/quickstart docs/records/quickstart.jsonl"""
COMPARED = (*METRICS, "parameters")
MEASURED = ("cloud", "sharpness")  # where both have it
LISTED = 10


def compare(rows: Sequence[Row], recorded: Sequence[Row]) -> tuple[list[str], int]:
    """What to print of runs beside a record, and how many differ or are not in it."""
    theirs = {tuple(place_of(row)): row for row in recorded}
    pairs = [(row, theirs.get(tuple(place_of(row)))) for row in rows]
    new = [row for row, other in pairs if other is None]
    known = [(row, other) for row, other in pairs if other]
    unlike = [pair for pair in known if differences(*pair)]
    unlike.sort(key=lambda pair: abs(pair[0]["accuracy"] - pair[1]["accuracy"]), reverse=True)
    equal = f"{len(known) - len(unlike)} of {len(rows)} results are equal to the record's"
    lines = [f"{equal}, to {DIGITS} decimals; the record has {len(recorded)}"]
    lines += [f"{name_of(row)}: {differences(row, other)}" for row, other in unlike]
    lines += [f"{name_of(row)}: not in the record" for row in new]
    more = len(lines) - 1 - LISTED
    return lines[: 1 + LISTED] + ([f"and {more} more"] if more > 0 else []), len(unlike) + len(new)


def differences(row: Mapping, other: Mapping) -> str:
    """The metrics that are not equal, as words; none: an empty text."""
    unequal = [key for key in COMPARED if row.get(key) != other.get(key)]
    words = [f"{key} {row.get(key)} (recorded {other.get(key)})" for key in unequal]
    both = [key for key in MEASURED if key in row and key in other]
    words += [f"another {key}" for key in both if row[key] != other[key]]
    return ", ".join(words)


def name_of(row: Mapping) -> str:
    """What a reader calls the run."""
    return " ".join(str(part) for part in place_of(row) if part != ".")


# -- the command


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all are equal, 1 if not; leaves with 1 (nothing found) or 2 (wrong arguments)."""
    parser = OneLineParser("python -m results.same", description=__doc__, epilog=EXAMPLE)
    add = parser.add_argument
    add("folder", type=existing_folder, metavar="FOLDER", help="of a sweep's runs")
    add("record", type=existing_file, metavar="RECORD", help="as docs/records/NAME.jsonl")
    args = parser.parse_args(argv)
    log_to_stderr()
    try:
        recorded = read_rows(args.record)
        found = rows_of(results_in([args.folder]), [args.folder])
    except (OSError, ValueError) as error:
        leave(f"cannot compare: {error}", 1)
    lines, unlike = compare(found, recorded)
    print("\n".join(lines))
    return 1 if unlike else 0


if __name__ == "__main__":
    command_line(main)
