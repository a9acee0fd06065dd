"""results.latex: its text, and what pdflatex says of the tables where there is one."""

import shutil
import subprocess

import pytest

import parse_test_res
from results import tables
from results.latex import BOLD, UNDERLINED, escape, latex_table
from results.protocols import TEN

from .test_parse import block, trained, write
from .test_tables import pair

HOSTILE = "\\input{x} {$&#_%^~<>|\"}`?`--'\n\x1b[31m\u202e\ue000Δ±−–×…éŁ\u00a0\u0301花😀%"
DOCUMENT = r"\documentclass[twocolumn]{article}\usepackage{%s}\begin{document}%s\end{document}"


def test_a_table_to_be_edited_by_hand():
    rows = [
        [["DTD", "P2C", BOLD + "71.0 ± 1.0", "5–9", "+1.2 [−0.3, +2.7] (n=6)"]],
        [
            ["A_B", "P2C", "9.5 ± 10.2", "3", ""],
            ["A_B", "[x]", UNDERLINED + "8.0", "3", "−11.2 (n=1)"],
            ["*", "y", "–", "", ""],
        ],
    ]
    headers = ["dataset", "method", "base", "seeds", "Δ to P2C"]
    text = latex_table(headers, rows, ["accuracy in %:", "mean ± std."], "base2new")
    assert text.splitlines()[:6] == [
        r"% \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering",
        r"\caption{Accuracy in \%: mean $\pm$ std.}",
        r"\label{tab:base2new}",
        r"\medskip",
    ]
    # widest in their columns: 71.0 and ± 10.2; −11.2 and [−0.3, +2.7] (n=6)
    number, rest = r"\textbf{71.0 $\pm$ 1.0}\phantom{0}", r"\phantom{0}+1.2 [$-$0.3, +2.7] (n=6)"
    assert [" ".join(line.split()) for line in text.splitlines()[6:]] == [
        r"\begin{tabular}{llclc}",
        r"\toprule",
        r"dataset & method & base & seeds & $\Delta$ to P2C \\",
        r"\midrule",
        rf"DTD & P2C & {number} & 5--9 & {rest} \\",
        r"\midrule",
        r"A\_B & P2C & \phantom{0}9.5 $\pm$ 10.2 & 3 & \\",
        r"& [x] & \phantom{0}\underline{8.0}\phantom{ $\pm$ 10.2} & 3 & "
        r"$-$11.2 (n=1)\phantom{0000000000000} \\",
        r"{}* & y & -- & & \\",  # \\* would be a command
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]


@pytest.mark.parametrize(
    "name, shown",
    [
        (r"a\b{c}", r"a\textbackslash{}b\{c\}"),
        ("$&#_%", r"\$\&\#\_\%"),
        ("^~<>|", r"\textasciicircum{}\textasciitilde{}\textless{}\textgreater{}\textbar{}"),
        ('"`', r"\symbol{34}{`}"),
        ("a\nb\x1b\u202e", r"a\textbackslash{}nb\textbackslash{}x1b\textbackslash{}u202e"),
        ("a--b–c---", r"a-{}-b--c-{}-{}-"),
        ("Δ ± −", r"$\Delta$ $\pm$ $-$"),
        ("été e\u0301", "été é"),
        (f"λ花ı{BOLD}", "U+03BBU+82B1ıU+E000"),
    ],
)
def test_names_are_escaped(name, shown):
    assert escape(name) == shown


def test_a_name_is_no_mark():
    [row] = [line for line in latex_table("ab", [[[BOLD + "name", "1"]]], [], "").splitlines()
             if "name" in line]  # fmt: skip
    assert row.startswith("U+E000name")


def latex(capsys, program, *args):
    assert program.main([*map(str, args), "--format", "latex"]) == 0
    return capsys.readouterr().out


@pytest.fixture
def runs(tmp_path):
    """Runs for a table of each kind."""
    for i, method in enumerate(("P2C/c", "MaPLe/c")):
        for seed in (1, 2):
            for dataset in ("dtd", "eurosat"):
                pair(tmp_path / "new", dataset, method, seed, 80.0 + 3 * i * seed, 9.0 + seed)
                for shots in (1, 16):
                    place = f"few/{dataset}/{method}_{shots}shots/seed{seed}/log.txt"
                    write(tmp_path, {place: trained(60.0 + shots * seed * i)})
            files = {f"imagenet/{method}_16shots/seed{seed}/log.txt": trained(70.0)}
            for target in TEN:
                files[f"evaluation/{method}_16shots/{target}/seed{seed}/log.txt"] = block(50.0 + i)
            write(tmp_path / "xd", files)
    name = HOSTILE.replace("/", "")
    pair(tmp_path / "odd", f"[{name}", f"{name}/{name}", 1, 50.0, 60.0)
    pair(tmp_path / "odd", "*", f"{name}/{name}2", 1, 50.0, 60.0)
    return tmp_path


def test_fit(runs, capsys):
    asked = tables, "base2new", runs / "new"
    plain = latex(capsys, *asked).splitlines()
    assert plain[0] == r"% \usepackage{booktabs}" and r"\begin{tabular}{llcccc}" in plain
    for fit, environment, width in (
        ("column", "table", r"\columnwidth"),
        ("page", "table*", r"\textwidth"),
    ):
        text = latex(capsys, *asked, "--fit", fit)
        assert text.startswith(r"% \usepackage{booktabs,graphicx}" "\n")
        assert rf"\begin{{{environment}}}[t]" in text and rf"\end{{{environment}}}" in text
        assert rf"\resizebox{{\ifdim\width>{width}{width}\else" in text


def test_label(runs, capsys):
    asked = tables, "base2new", runs / "new"
    assert r"\label{tab:base2new}" in latex(capsys, *asked).splitlines()
    for name in ("ours:b2n_1", "tab:ours:b2n_1"):
        assert r"\label{tab:ours:b2n_1}" in latex(capsys, *asked, "--label", name).splitlines()
    for more, said in (
        (["--format", "latex", "--label", "a}b"], "--label a}b: letters, digits and . : _ - only"),
        (["--label", "a"], "--label goes with --format latex"),
    ):
        with pytest.raises(SystemExit, match="2"):
            tables.main(["base2new", str(runs / "new"), *more])
        assert capsys.readouterr().err == f"error: {said}; --help tells more\n"


@pytest.mark.parametrize("program, words", [(tables, ["base2new"]), (parse_test_res, ["--hm"])])
def test_fit_is_of_latex(program, words, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        program.main([*words, str(tmp_path), "--fit", "page"])
    assert capsys.readouterr().err == "error: --fit goes with --format latex; --help tells more\n"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex with booktabs")
def test_pdflatex_compiles_every_kind_and_they_fit(runs, tmp_path, capsys):
    found = [
        latex(capsys, tables, kind, runs / folder, *more, "--fit", fit)
        for kind, folder, *more in (
            ("base2new", "new", "--baseline", "MaPLe", "--paper", "--cost"),
            ("ablation", "new"),
            ("few_shot", "few", "--baseline", "MaPLe"),
            ("xd", "xd", "--paper"),
            ("base2new", "odd"),
        )
        for fit in ("column", "page")
    ]
    found.append(latex(capsys, parse_test_res, "--hm", runs / "odd/base2new", "--fit", "column"))
    many = [[[f"method {i}", "80.0"] for i in range(90)]]  # higher than a page
    found += [
        latex_table(["method", "base"], many, ["long"], "t", fit) for fit in ("column", "page")
    ]
    text = DOCUMENT % ("booktabs,graphicx", "\\clearpage\n".join(found))
    (tmp_path / "a.tex").write_text(text, "utf-8")
    command = "pdflatex -interaction=nonstopmode -halt-on-error -no-shell-escape a.tex"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True)
    said = done.stdout.decode(errors="replace")
    assert done.returncode == 0, said[-3000:]
    assert "Overfull" not in said and "Float too large" not in said, said[-3000:]
