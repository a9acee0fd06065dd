"""One HTML page about runs: python -m results.report FOLDER …

It has tables, figures, each run's command, configs and versions. It is one file that needs nothing
else: it opens offline, on a phone, and prints. How it looks is in report.html.j2, its search in
report.js.
"""

import argparse
import base64
import hashlib
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from dassl.commands import OneLineParser, command_line, existing_folder, leave, log_to_stderr, plain

from . import plots, tables
from .names import BREAKS, with_methods
from .paper import with_paper
from .records import Result, results_in, setting_of
from .table_kinds import KINDS, make_table
from .text_table import Table, show_delta

EXAMPLE = """example:
  python -m results.report output/shapes_table4 --out table4.html --baseline baseline"""
HERE = Path(__file__).parent
SIDES = ("base", "new", "all")
WIDE = 5.0  # inches: figures that a phone's width would make too small to read


class Notes(logging.Handler):
    """Keeps the warnings, for the page to say them too."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning once."""
        if (line := record.getMessage()) not in self.lines:
            self.lines.append(line)


# -- the page's sections, as report.html.j2 takes them


def results(
    found: Sequence[Result], baseline: str | None, paper: bool
) -> list[tuple[str, str, Table]]:
    """(kind, title, table) of all there is something for; leaves if no table has the baseline."""
    made, problems = [], []
    for kind, text in KINDS.items():
        table = make_table(kind, found)
        if table is None:
            continue
        against = None
        if kind == "ablation":
            if len({line.trainer for line in table.lines}) == len(table.lines):
                continue  # each line is of another trainer
            against = tables.usual_baseline(table)
        if baseline:
            try:
                against, problem = tables.find_baseline(table, baseline), ""
            except LookupError as error:
                against, problem = None, error.args[0]
            problems.append(problem)
        table = with_paper(table, kind) if paper else table
        table = table.against(against) if against else table
        made.append((kind, text[0].upper() + text[1:], table))
    if problems and all(problems):
        leave(problems[0], 2)
    return made


def pictures(found: Sequence[Result]) -> list[dict]:
    """All figures there is something for, as SVG in base64."""
    import matplotlib  # slow, and not needed for what is said before

    made = []
    for kind, about in plots.KINDS.items():
        if figure := plots.draw(kind, found):
            out = io.BytesIO()
            with matplotlib.rc_context(plots.STYLE):
                figure.savefig(out, format="svg", metadata={"Date": None})
            svg = base64.b64encode(out.getvalue()).decode()
            made.append({
                "kind": kind, "text": plots.caption(figure, about.text), "svg": svg,
                "described": plots.describe(figure, about.text),
                "wide": figure.get_figwidth() > WIDE,
            })  # fmt: skip
    return made


def runs_by_method(found: Sequence[Result]) -> dict[str, list[tuple]]:
    """{method: (run, its row, its command) of every run}."""
    groups = defaultdict(list)
    for r in found:
        record = r.record or {}
        memory = record.get("peak_memory_mb", {})
        row = [r.dataset, r.side, r.shots, r.seed]
        row += [number(r.metrics.get("accuracy")), number(r.metrics.get("macro_f1"))]
        row.append(number(record.get("train_seconds")))
        row.append(number(record.get("images_per_second", {}).get("test"), 0))
        row.append(number(memory.get("gpu") or memory.get("process"), 0))
        row.append((record.get("commit") or "–")[:10] + "+" * bool(record.get("dirty")))
        row.append(record.get("finished", "–").replace("T", " ")[:16])
        command = record.get("command") or f"no results.json in {r.folder}"
        groups[r.method].append((r, row, command))
    return groups


def counted(n: int, what: str) -> str:
    """1 run, 2 runs."""
    return f"{n} {what}{'s' * (n != 1)}"


def number(x: float | None, digits: int = 1) -> str:
    """A number with so many digits behind the point; – if it is not known."""
    return "–" if x is None else f"{x:.{digits}f}"


def own_config(record: Mapping) -> dict:
    """Its setting, without other methods' where it says which they are: older records don't."""
    config, others = setting_of(record), {f"{key}" for key in record.get("config_of_others", ())}
    if methods := config.get("TRAINER"):
        config["TRAINER"] = {k: v for k, v in methods.items() if f"TRAINER.{k}" not in others}
    return {key: value for key, value in config.items() if key not in others}


def configs(found: Sequence[Result]) -> list[tuple[str, str]]:
    """(whose, as YAML) of the configs that differ in more than dataset, seed and folders."""
    methods: dict[str, list[str]] = defaultdict(list)
    for r in (r for r in found if r.record):
        methods[yaml.safe_dump(own_config(r.record))].append(r.method)
    return [
        (f"{', '.join(dict.fromkeys(m))} ({counted(len(m), 'run')})", text)
        for text, m in methods.items()
    ]


def machines(found: Sequence[Result]) -> list[tuple]:
    """What the runs ran on and with, and how many of them, for each combination."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for record in (r.record for r in found if r.record):
        packages = ", ".join(f"{name} {v}" for name, v in record.get("versions", {}).items())
        counts[record["device"], record.get("machine", "–"), packages] += 1
    return [(*key, n) for key, n in counts.items()]


def page(found: Sequence[Result], args: argparse.Namespace, notes: Notes) -> str:
    """The whole HTML file."""
    found = with_methods(found)
    found.sort(key=lambda r: (r.method, r.dataset, r.shots, SIDES.index(r.side), r.seed))
    places = {r: i for i, r in enumerate(found, start=1)}
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    folders = ", ".join(str(folder) for folder in args.folders)
    methods, trainers = len({r.method for r in found}), len({r.trainer for r in found})
    about = f"{counted(len(found), 'run')} in {folders}; {counted(trainers, 'method')}"
    about += f", {counted(methods, 'setting')}; " if methods > trainers else "; "
    # names in logs and records are others': escaped, and with their control characters shown
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=shown,
    )  # fmt: skip
    environment.filters["breakable"] = breakable
    script = (HERE / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        title=args.title,
        about=f"{about}written {now} by results/report.py.",
        show_delta=show_delta,
        counted=counted,
        places=places,
        first_of=lambda runs: min(map(places.get, runs)),
        tables=results(found, args.baseline, args.paper),
        figures=pictures(found),
        runs=runs_by_method(found),
        configs=configs(found),
        machines=machines(found),
        warnings=notes.lines,  # also what was said while these were made
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def shown(value: object) -> str:
    """What the page shows of a value: text without control characters."""
    return value if isinstance(value, Markup) else plain(value, keep="\n")


def breakable(name: str) -> Markup:
    """A name that may be broken between its words, also where they have no space."""
    return Markup("<wbr>").join(escape(part) for part in BREAKS.split(shown(name)))


# -- the command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m results.report", description=__doc__, epilog=EXAMPLE)
    add = parser.add_argument
    add("folders", nargs="+", type=existing_folder, metavar="FOLDER",
        help="runs are looked for in and below these")  # fmt: skip
    add("--out", type=Path, default=Path("report.html"), metavar="FILE",
        help="default: %(default)s")  # fmt: skip
    add("--title", default="Points to Clouds: results", help="default: %(default)s")
    add("--baseline", metavar="METHOD", help="show differences to it")
    add("--paper", action="store_true", help="also show the paper's numbers where they are known")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0; leaves with 1 (no results) or 2 (wrong arguments)."""
    args = parse_args(argv)
    log_to_stderr()
    notes = Notes()
    logging.getLogger().addHandler(notes)
    try:
        found = results_in(args.folders)
        text = page(found, args, notes)
    finally:
        logging.getLogger().removeHandler(notes)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        leave(f"cannot write {args.out}: {error.strerror or error}", 1)
    print(args.out)
    return 0


if __name__ == "__main__":
    command_line(main)
