"""Makes the documents' tables of docs/records: python -m results.docs.

In README.md and docs' RESULTS.md, SHAPES.md, METHODS.md and BENCHMARKS.md, between

    <!-- made: WHAT WORDS -->
    <!-- end -->

stands what WHAT makes; nothing that is measured stands elsewhere. WHAT is one of

  quickstart NAME              the table that the quickstart prints
  table KIND NAME [BASELINE]   a table of results.tables, with the differences to a method
  rows NAME [COLUMN=VALUE …]   measurements without runs; only the rows that have these values
  about NAME                   by which command, of which commit, on which machine they were taken
  runs NAME                    how many runs, of which commit, on which machine
  answer FAMILY, effects FAMILY, ranks, afterwards
                               what docs/PLAN.md's questions come to
  figure NAME                  a picture, drawn anew by this command

and NAME is a file of docs/records, without .jsonl.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path

from dassl.commands import OneLineParser, command_line, say

from . import answers, base_new
from .answers import record
from .doc_figures import FIGURES
from .kept import read_kept, read_lines, read_rows
from .panels import STYLE
from .protocols import dataset_names
from .table_kinds import make_table
from .tables import find_baseline
from .text_table import markdown, render

ROOT = Path(__file__).parents[1]
PAGES = ("RESULTS", "SHAPES", "METHODS", "BENCHMARKS")
DOCUMENTS = ("README.md", *(f"docs/{page}.md" for page in PAGES))
MADE = re.compile(r"(<!-- made: (?P<words>.+?) -->\n).*?(?P<end>^<!-- end -->$)", re.S | re.M)
ABOUT = "accuracy in %: mean ± population std over seeds. Bold: best, underlined: second best"

SCREEN = 150  # dots per inch
RANKED = ("place", "method", "mean HM", "rank", "95% interval", "parameters", "train s")


# -- what stands between the markers


def quickstart(name: str) -> str:
    """As the terminal shows it."""
    folders = {registered: folder for folder, registered in dataset_names().items()}
    sides: dict[str, dict[base_new.Run, float]] = {"base": {}, "new": {}}
    for r in read_kept(record(name)):
        run = base_new.Run(folders[r.dataset], r.trainer, r.cfg, r.seed)
        sides[r.side][run] = r.metrics["accuracy"]
    return f"```\n{base_new.render(base_new.hm_table(sides['base'], sides['new']), 'text')}\n```"


def table(kind: str, name: str, baseline: str = "") -> str:
    """As `python -m results.tables KIND` of the runs' folders, in markdown."""
    made = make_table(kind, read_kept(record(name)))
    if made is None:
        raise LookupError(f"{name} has nothing for the table {kind}")
    if baseline:
        made = made.against(find_baseline(made, baseline))
    return render(replace(made, caption=[f"{ABOUT}.", *made.caption]), "markdown", marked=True)


def rows(name: str, *conditions: str) -> str:
    """A table of measurements, without the columns that the conditions name."""
    about, found = read_lines(record(name))
    wanted = dict(condition.split("=", 1) for condition in conditions)
    found = [row for row in found if all(row.get(key) == value for key, value in wanted.items())]
    if not found:
        raise LookupError(f"{name} has no rows with {' '.join(conditions)}")
    found = [{k: v for k, v in row.items() if k not in wanted} for row in found]
    return markdown(found)


def about(name: str) -> str:
    """One line about measurements without runs."""
    first, _ = read_lines(record(name))
    said = [f"commit {first.get('commit', 'not noted')}", first["machine"]]
    if "time" in first:
        said.append(f"{first['time'][:16].replace('T', ' ')} UTC")
    if "converted" in first:
        said.append(f"converted {first['converted']}")
    return f"`{first['command']}`: {'; '.join(said)} (`docs/records/{name}.jsonl`)."


def runs(name: str) -> str:
    """One line about the runs of a record."""
    about, _ = read_lines(record(name))
    shared, every = about["shared"], read_rows(record(name))
    commits = sorted({row["commit"][:7] + " with changes" * row["dirty"] for row in every})
    devices = sorted({row["device"] for row in every})
    torch = sorted({row["versions"]["torch"] for row in every})
    first, last = (f(row["finished"][:16].replace("T", " ") for row in every) for f in (min, max))
    made_by = f"`{about['command']}`: " if about["command"] else ""
    measured = []
    for what in ("cloud", "sharpness"):
        if how := shared.get(f"{what}_by"):
            noise = f"{how.get('noise', '')} noise, " * ("noise" in how)
            later = f"{noise}{how['draws']} draws, commit {(how['commit'] or 'unknown')[:7]}"
            measured.append(f"; `inference.{what}` later: {later}")
    said = f"{made_by}{len(every)} results, {first} to {last} UTC, commit {', '.join(commits)}"
    said += f", {'; '.join(devices)}, PyTorch {', '.join(torch)}{''.join(measured)}"
    return f"{said} (`docs/records/{name}.jsonl`)."


def answer(name: str) -> str:
    """What is decided of a family, and what was planned and is not in it."""
    said = [answers.answer(answers.FAMILIES[name]())]
    if name == "methods":
        said = [answers.place_of_p2c(), *said, answers.missing()]
    return " ".join(filter(None, said))


def ranks() -> str:
    """The order of the methods, with their costs."""
    found = []
    costs = answers.costs()
    for i, (method, mean, rank) in enumerate(answers.ranked(), start=1):
        interval = f"{rank.low:g} to {rank.high:g}"
        row = [i, method, f"{mean:.1f}", f"{rank.rank:g}", interval, *costs[method]]
        found.append(dict(zip(RANKED, row, strict=True)))
    return markdown(found)


def figure(name: str) -> str:
    """The line that shows it; `draw` makes it."""
    return f"![{FIGURES[name].text}](figures/{name}.png)"


MAKERS: dict[str, Callable[..., str]] = {
    "quickstart": quickstart,
    "table": table,
    "rows": rows,
    "about": about,
    "runs": runs,
    "answer": answer,
    "effects": lambda name: answers.table(answers.FAMILIES[name]()),
    "ranks": ranks,
    "afterwards": answers.by_tasks_alone,
    "figure": figure,
}


# -- documents


def made(words: str) -> str:
    """What stands between markers with these words. Raises LookupError if it cannot be made."""
    what, *rest = shlex.split(words)
    if what not in MAKERS:
        raise LookupError(f"nothing makes {what!r}; there are {', '.join(MAKERS)}")
    try:
        signature(MAKERS[what]).bind(*rest)
    except TypeError as error:
        raise LookupError(f"{words}: {error}") from error
    try:
        return MAKERS[what](*rest)
    except KeyError as error:  # a record of another kind, or no such family or figure
        raise LookupError(f"{words}: there is no {error}") from error


def rewritten(text: str) -> str:
    """A document with all its tables made anew. Raises LookupError as `made`."""
    begins, ends = (len(re.findall(f"^<!-- {word}", text, re.M)) for word in ("made: ", "end -->"))
    if {begins, ends} != {len(MADE.findall(text))}:
        raise LookupError("a marker has no end, or an end no marker")

    def anew(found: re.Match) -> str:
        try:
            return f"{found[1]}{made(found['words'])}\n{found['end']}"
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            line = text.count("\n", 0, found.start()) + 1
            raise LookupError(f"line {line}: {error}") from error

    return MADE.sub(anew, text)


def draw(text: str, folder: Path) -> list[Path]:
    """Draw the figures of a document; the files."""
    import matplotlib  # slow, and not needed to check

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for found in MADE.finditer(text):
        what, *words = shlex.split(found["words"])
        if what == "figure":
            path = folder / f"{words[0]}.png"
            with matplotlib.rc_context(STYLE):
                FIGURES[words[0]].draw().savefig(path, dpi=SCREEN)
            drawn.append(path)
    return drawn


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 if a table cannot be made or, with --check, differs from its records."""
    parser = OneLineParser("python -m results.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, name what differs")
    args = parser.parse_args(argv)
    differ, wrong = [], 0
    for name in DOCUMENTS:
        path = ROOT / name
        try:
            text = path.read_text(encoding="utf-8")
            new = rewritten(text)
        except (LookupError, OSError, UnicodeDecodeError) as error:
            say(f"error: {name}: {getattr(error, 'strerror', error)}")
            wrong += 1
            continue
        if new != text:
            differ.append(name)
        if not args.check:
            path.write_text(new, encoding="utf-8")
            for file in draw(text, ROOT / "docs" / "figures"):
                print(file.relative_to(ROOT))
    for name in differ:
        print(f"{name}: {'differs' if args.check else 'rewritten'}")
    return 1 if wrong or (args.check and differ) else 0


if __name__ == "__main__":
    command_line(main)
