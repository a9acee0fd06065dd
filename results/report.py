"""One HTML page about runs: tables, figures, each run's command, configs, versions: python -m
results.report FOLDER …

The page is one file that needs nothing else: it opens offline, on a phone, and prints.
"""

import argparse
import base64
import io
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import yaml

from dassl.commands import OneLineParser, command_line, existing_folder, leave, log_to_stderr
from parse_test_res import show_stat

from . import figures, tables
from .records import Result, find_results, name_methods

EXAMPLE = "example:\n  python -m results.report output/shapes_table4 --out table4.html --baseline baseline"
# No address may be asked for anything: what the page shows is in it.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; --link: #06c; }
@media (prefers-color-scheme: dark) { :root { --link: #6bf; } }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { border-bottom: 1px solid var(--line); padding-bottom: .2rem; margin-top: 2.5rem; }
a { color: var(--link); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; caption-side: bottom; padding-top: .4rem; min-width: 16rem; max-width: calc(100vw - 2rem); }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); }
tbody + tbody { border-top: 1px solid var(--line); }
tr.paper { font-style: italic; }
tr:target { background: var(--soft); outline: 2px solid var(--link); }
.best { font-weight: bold; }
.second { text-decoration: underline; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
pre, td code { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
tr.command td { white-space: normal; padding: 0 .6rem .6rem 2rem; }
details { margin: .5rem 0; }
@media print {
  body { max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  table { font-size: .65rem; }
  th, td { white-space: normal; padding: .1rem .3rem; }
  tr, figure { break-inside: avoid; }
  td code, pre { font-size: .6rem; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""


class Notes(logging.Handler):
    """Keeps the warnings, for the page to say them too."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if (line := record.getMessage()) not in self.lines:
            self.lines.append(line)


def tag(name: str, content: str, **attributes: str) -> str:
    """An element around content that is HTML already; attribute values are escaped, class_ stands
    for class."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value
    )
    return f"<{name}{words}>{content}</{name}>"


def html_table(headers: Sequence[str], bodies: Sequence[str], caption: str) -> str:
    """A table that scrolls by itself where it is wider than the page. `bodies` are HTML rows,
    `caption` is text."""
    head = tag("tr", "".join(tag("th", escape(h), scope="col") for h in headers))
    rows = "".join(tag("tbody", body) for body in bodies)
    table = tag("table", tag("caption", escape(caption)) + tag("thead", head) + rows)
    return (
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="table") + "\n"
    )


# -- parts of the page


def results_table(table: tables.Table, baseline: str | None, ids: Mapping[Result, str]) -> str:
    """A table of results.tables with a link to the runs of each line."""
    compared = tables.deltas(table, baseline) if baseline else {}
    blocks: dict[str, list[int]] = {}
    for i, line in enumerate(table.lines):
        blocks.setdefault(line.block, []).append(i)
    named = list(blocks) != [""]
    bodies = []
    for name, places in blocks.items():
        lines = [table.lines[i] for i in places]
        marks = [tables.rank(lines, column) for column in range(len(table.columns))]
        body = ""
        for k, (i, line) in enumerate(zip(places, lines, strict=True)):
            row = tag("td", escape(name)) * named + tag(
                "th", escape(line.method + line.note), scope="row"
            )
            for mark, cell in zip(marks, line.cells, strict=True):
                look = {tables.BEST: " best", tables.SECOND: " second"}.get(mark.get(k), "")
                row += tag(
                    "td",
                    tag("span", escape(show_stat(cell.stat)), class_=look.strip()) if cell else "–",
                    class_="n",
                )
            row += tag("td", escape(tables.show_seeds(line)))
            if baseline:
                row += tag("td", escape(tables.show_delta(compared.get(i))))
            first = ids[min(line.runs, key=lambda r: int(ids[r][1:]))] if line.runs else ""
            row += tag("td", tag("a", f"{len(line.runs)}", href=f"#{first}") if first else "")
            body += tag("tr", row, class_="paper" if line.paper else "")
        bodies.append(body)
    headers = ["dataset"] * named + ["method", *table.columns, "seeds"]
    headers += [f"Δ {table.compared} to {baseline}"] * bool(baseline) + ["runs"]
    caption = "Accuracy in %: mean ± population std over seeds. Bold: best, underlined: second best of each column. "
    caption += " ".join(table.caption)
    if baseline:
        caption += f" {table.explain(baseline)}"
    return html_table(headers, bodies, caption)


def results(
    found: Sequence[Result], ids: Mapping[Result, str], baseline: str | None, paper: bool
) -> str:
    """All tables there is something for. Leaves with one line if no table has the baseline."""
    parts, problems = "", []
    for kind, text in tables.KINDS.items():
        table = tables.make_table(kind, found)
        if table is None or (
            kind == "ablation" and len({li.trainer for li in table.lines}) == len(table.lines)
        ):
            continue
        against = table.lines[0].method if kind == "ablation" else None
        if baseline:
            try:
                against, problem = tables.find_baseline(table, baseline), ""
            except LookupError as error:
                against, problem = None, error.args[0]
            problems.append(problem)
        parts += tag("h3", escape(text[0].upper() + text[1:]), id=kind)
        parts += results_table(tables.with_paper(table, kind) if paper else table, against, ids)
    if problems and all(problems):
        leave(problems[0], 2)
    return parts


def pictures(found: Sequence[Result]) -> str:
    """All figures there is something for, as SVG in the page."""
    import matplotlib  # slow, and not needed for what is said before

    parts = ""
    for kind, about in figures.KINDS.items():
        if figure := figures.draw(kind, found):
            out = io.BytesIO()
            with matplotlib.rc_context(figures.STYLE):
                figure.savefig(out, format="svg", metadata={"Date": None})
            source = "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()
            image = f'<img src="{source}" alt="{escape(figures.describe(figure, about.text))}">'
            parts += (
                tag("figure", image + tag("figcaption", escape(about.text)), id=f"figure-{kind}")
                + "\n"
            )
    return parts


def runs_table(
    found: Sequence[Result], names: Mapping[Result, str], ids: Mapping[Result, str]
) -> str:
    """Every run with its numbers and its command."""
    headers = ["method", "dataset", "classes", "shots", "seed", "accuracy", "macro F1", "train s", "images/s",
               "peak MiB", "commit", "finished"]  # fmt: skip
    bodies = []
    for method in dict.fromkeys(names[r] for r in found):
        body = ""
        for r in (r for r in found if names[r] == method):
            x = r.record or {}
            memory = x.get("peak_memory_mb", {})
            numbers = [
                r.shots,
                r.seed,
                number(r.metrics.get("accuracy")),
                number(r.metrics.get("macro_f1")),
            ]
            numbers += [
                number(x.get("train_seconds")),
                number(x.get("images_per_second", {}).get("test"), 0),
            ]
            numbers += [number(memory.get("gpu") or memory.get("process"), 0)]
            sha = (x.get("commit") or "–")[:10] + "+" * bool(x.get("dirty"))
            row = (
                tag("th", escape(method), scope="row")
                + tag("td", escape(r.dataset))
                + tag("td", r.side)
            )
            row += "".join(tag("td", escape(str(n))) for n in numbers)
            row += tag("td", escape(sha)) + tag("td", escape(x.get("finished", "–")))
            body += tag("tr", row, id=ids[r])
            command = escape(x.get("command") or f"no results.json in {r.folder}")
            body += tag(
                "tr", tag("td", tag("code", command), colspan=str(len(headers))), class_="command"
            )
        bodies.append(body)
    caption = "train s: seconds in epochs. images/s: in the test. peak MiB: of the GPU, else of the process. "
    return html_table(headers, bodies, caption + "commit: the code's, + if files differed from it.")


def number(x: float | None, digits: int = 1) -> str:
    return "–" if x is None else f"{x:.{digits}f}"


def configs(found: Sequence[Result], names: Mapping[Result, str]) -> str:
    """The configs that differ in more than dataset, seed and folders, as YAML."""
    different: dict[str, list[str]] = {}
    for r in (r for r in found if r.record):
        config = json.loads(json.dumps(r.record["config"]))
        for key in ("OUTPUT_DIR", "SEED", "RESUME", "DATASET"):
            config.pop(key, None)
        different.setdefault(yaml.safe_dump(config), []).append(names[r])
    parts = ""
    for text, methods in different.items():
        title = f"{', '.join(dict.fromkeys(methods))} ({len(methods)} runs)"
        parts += tag("details", tag("summary", escape(title)) + tag("pre", escape(text))) + "\n"
    return parts


def machines(found: Sequence[Result]) -> str:
    """What the runs ran on and with, a row for each combination."""
    counts: dict[tuple[str, str, str], int] = {}
    for r in (r for r in found if r.record):
        packages = ", ".join(f"{name} {v}" for name, v in r.record.get("versions", {}).items())
        key = r.record.get("device", "–"), r.record.get("machine", "–"), packages
        counts[key] = counts.get(key, 0) + 1
    if not counts:
        return ""
    rows = "".join(
        tag("tr", "".join(tag("td", escape(str(x))) for x in (*key, n)))
        for key, n in counts.items()
    )
    return html_table(
        ["device", "machine", "versions", "runs"],
        [rows],
        "Device and versions as recorded by the runs.",
    )


def page(found: Sequence[Result], args: argparse.Namespace, notes: Notes) -> str:
    """The whole HTML file."""
    names = name_methods(found)
    order = {"base": 0, "new": 1, "all": 2}
    found = sorted(found, key=lambda r: (names[r], r.dataset, r.shots, order[r.side], r.seed))
    ids = {r: f"r{i}" for i, r in enumerate(found, start=1)}
    parts = {
        "Results": results(found, ids, args.baseline, args.paper),
        "Figures": pictures(found),
        "Runs": runs_table(found, names, ids),
        "Configs": configs(found, names),
        "Machines and versions": machines(found),
    }
    if notes.lines:
        parts = {
            "Warnings": tag("ul", "".join(tag("li", escape(line)) for line in notes.lines)),
            **parts,
        }
    parts = {title: content for title, content in parts.items() if content}
    anchors = {title: title.split()[0].lower() for title in parts}
    links = " · ".join(tag("a", title, href=f"#{anchors[title]}") for title in parts)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    folders = ", ".join(str(folder) for folder in args.folders)
    head = f"{len(found)} runs in {folders}; {len(set(names.values()))} methods; written {now} by results/report.py."
    body = (
        tag("h1", escape(args.title))
        + tag("p", escape(head))
        + tag("nav", links, aria_label="sections")
    )
    for title, content in parts.items():
        body += "\n" + tag("section", tag("h2", title, id=anchors[title]) + "\n" + content)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(args.title)}</title>
<style>{STYLE}</style>
</head>
<body><main>{body}</main></body>
</html>
"""


# -- the command


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; leaves with code 2 and one line if it makes no sense."""
    parser = OneLineParser("python -m results.report", description=__doc__, epilog=EXAMPLE)
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        type=existing_folder,
        metavar="FOLDER",
        help="runs are looked for in and below these",
    )
    add(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s"
    )
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
        found = find_results(args.folders)
        if not found:
            leave(f"no results of runs in {' '.join(map(str, args.folders))}", 1)
        text = page(found, args, notes)
    finally:
        logging.getLogger().removeHandler(notes)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    except OSError as error:
        leave(f"cannot write {args.out}: {error.strerror or error}", 1)
    print(args.out)
    return 0


if __name__ == "__main__":
    command_line(main)
