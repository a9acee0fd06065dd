r"""Tables in LaTeX, for papers: whole table environments that need no rare package.

Columns of numbers are centred. \phantom digits make the numbers of a column equally wide, which
puts decimal point below decimal point, where they are not so anyway. A cell remains one cell, as
\textbf{71.0 $\pm$ 1.0}, to be edited by hand; siunitx's S columns take no \underline.
"""

import re
import unicodedata
from collections.abc import Sequence

from dassl.commands import plain

BOLD, UNDERLINED = "\ue000", "\ue001"  # in front of a number; in a name they mean nothing
COMMANDS = {"": "{}", BOLD: r"\textbf{{{}}}", UNDERLINED: r"\underline{{{}}}"}
# A mark, a number, and what belongs to it: 71.0 ± 1.0, +1.2 [−0.3, +2.7] (n=6).
NUMBER = re.compile(rf"([{BOLD}{UNDERLINED}]?)([+−]?\d[\d.,]*)( .+)?")
NO_NUMBER = ("", "–")

# Environment and greatest width of a table that has to fit.
FITS = {"column": ("table", r"\columnwidth"), "page": ("table*", r"\textwidth")}
HIGHEST = r"0.85\textheight"  # which leaves room for a caption
ABOUT_FIT = (
    "of a latex table: make it smaller where it is wider than a column of text (column: table), or "
    "than all of a page's columns, which it then spans (page: table*), or higher than a page; "
    "default: its own size"
)
ABOUT_LABEL = r"of a latex table: \ref{tab:NAME}; default: the kind"
LABEL = re.compile(r"[\w.:-]+", re.ASCII)  # what \label takes as it is

SIGNS = {sign: f"\\{sign}" for sign in "{}$&#_%"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",  # babel gives " a meaning
    "`": "{`}",  # else ?` is ¿
    "±": r"$\pm$",
    "−": "$-$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "–": "–",
    "\u00a0": "~",
    "…": r"\dots{}",
}
# What pdfLaTeX's usual fonts have.
KNOWN = re.compile("[ -~¡-ž](?<![«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲų])")


def escape(text: str) -> str:
    """The text as LaTeX prints it, none of it a command; U+03BB for λ, which the fonts lack."""
    text = unicodedata.normalize("NFC", plain(text))
    shown = [SIGNS.get(c) or (c if KNOWN.match(c) else f"U+{ord(c):04X}") for c in text]
    return re.sub("-(?=-)", "-{}", "".join(shown)).replace("–", "--")  # -- is – in LaTeX


def latex_table(
    headers: Sequence[str],
    blocks: Sequence[Sequence[Sequence[str]]],
    caption: Sequence[str],
    label: str,
    fit: str = "",
) -> str:
    """Lay out blocks of rows of cells, with rules between them, below the caption's lines.

    `fit` is a key of FITS or "".
    """
    packages, environment, inner = "booktabs", "table", tabular(headers, blocks)
    if fit:
        packages, (environment, width) = "booktabs,graphicx", FITS[fit]
        # the inner box is no higher than its page, the outer one no wider than the text
        smaller = rf"\resizebox{{\ifdim\width>{width}{width}\else\width\fi}}{{!}}"
        lower = rf"\resizebox*{{!}}{{\ifdim\totalheight>{HIGHEST}{HIGHEST}\else\totalheight\fi}}"
        inner = r"\setlength{\tabcolsep}{4pt}" + f"\n{smaller}{{{lower}{{%\n{inner}}}}}"
    text = escape(" ".join(caption))
    return rf"""% \usepackage{{{packages}}}
\begin{{{environment}}}[t]
\centering
\caption{{{text[:1].upper()}{text[1:]}}}
\label{{tab:{label}}}
\medskip
{inner}
\end{{{environment}}}"""


def tabular(headers: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]]) -> str:
    """The table itself."""
    rows = [row for block in blocks for row in without_repeats(block)]
    kinds, columns = zip(*map(column, headers, zip(*rows, strict=True)), strict=True)
    lines = []
    for cells in zip(*columns, strict=True):
        line = re.sub(r"^(?=[\[*])", "{}", " & ".join(cells))  # which \\ before it would take
        lines.append(rf"{line} \\")
    body = [r"\toprule", lines.pop(0)]
    for block in blocks:
        body += [r"\midrule", *lines[: len(block)]]
        del lines[: len(block)]
    begin = rf"\begin{{tabular}}{{{''.join(kinds)}}}"
    return "\n".join([begin, *body, r"\bottomrule", r"\end{tabular}"])


def without_repeats(block: Sequence[Sequence[str]]) -> list[list[str]]:
    """A block's rows, whose first cell is empty where the row above has the same."""
    firsts = [row[0] for row in block]
    return [
        ["" if above == first else first, *row[1:]]
        for above, first, row in zip([None, *firsts], firsts, block, strict=False)
    ]


def column(header: str, cells: Sequence[str]) -> tuple[str, list[str]]:
    """A column's letter for tabular; its header and cells, equally long in the source too."""
    kind, shown = "l", [*map(escape, cells)]
    numbers = {cell: NUMBER.fullmatch(cell) for cell in cells if cell not in NO_NUMBER}
    if numbers and all(numbers.values()):
        kind = "c"
        widest = [max((n[i] or "" for n in numbers.values()), key=len) for i in (2, 3)]
        shown = [padded(numbers[c], *widest) if c in numbers else escape(c) for c in cells]
    shown = [escape(header), *shown]
    width = max(map(len, shown))
    return kind, [cell.ljust(width) for cell in shown]


def padded(number: re.Match, widest: str, widest_rest: str) -> str:
    """A number as wide as those two, its mark around it."""
    mark, digits, rest = number.groups(default="")
    left = phantom("0" * (len(widest) - len(digits)))
    right = phantom("0" * (len(widest_rest) - len(rest)) if rest else widest_rest)
    return left + COMMANDS[mark].format(escape(digits + rest)) + right


def phantom(text: str) -> str:
    return rf"\phantom{{{escape(text)}}}" if text else ""
