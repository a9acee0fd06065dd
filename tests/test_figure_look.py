"""How figures look: their size, fonts, formats, and what of the runs is seen in them."""

import json

import matplotlib
import numpy as np
import pytest
from PIL import Image

from results import figures
from results.fonts import families_for, find_font
from results.interval_figure import IntervalRow, draw_intervals
from results.names import fold
from results.panels import Page, TooSmall
from results.plots import KINDS, caption, describe, draw
from results.records import find_results

from .test_figures import log_of, put, the_line, write

SERIF = matplotlib.get_data_path() + "/fonts/ttf/DejaVuSerif.ttf"


@pytest.fixture
def runs(tmp_path):
    """Two methods × two seeds on two datasets."""
    for dataset in ("dtd", "eurosat"):
        for seed in (1, 2):
            put(tmp_path, "P2C", seed, 80.0 + seed, dataset=dataset, loss=[3.0 + seed, 1.0])
            put(tmp_path, "MaPLe", seed, 70.0, dataset=dataset)
    return tmp_path


# names in several lines


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("P2C", "P2C"),
        ("BayesianPrompt", "Bayesian\nPrompt"),
        ("MaPLe shots_16", "MaPLe\nshots_16"),
        ("vit_b16_c2_ep5_batch4_2ctx", "vit_b16_\nc2_ep5_\nbatch4_\n2ctx"),
        ("a/longer_word", "a/longer_\nword"),
        ("CoOp+ATPrompt", "CoOp+\nATPrompt"),
        ("ReBaPL_MaPLe", "ReBaPL_\nMaPLe"),
        ("P2C a_0.05", "P2C\na_0.05"),
        ("P2C lambda_0.05", "P2C\nlambda_\n0.05"),
        ("abcdefghijk", "abcdefghi\njk"),  # nowhere else to break
    ],
)
def test_a_long_name_is_broken_between_its_words(name, folded):
    assert fold(name, 9) == folded


def test_a_figure_in_words_has_the_names_in_one_piece(tmp_path):
    for name in ("VaMP", "BayesianPromptOfTheWholeDataset"):
        put(tmp_path, name, 1, 80.0, loss=[3.0, 1.0])
    figure = draw("loss", find_results([tmp_path]), Page(width=1.6))
    [key] = figure.legends
    assert "BayesianPrompt" in "".join(t.get_text() for t in key.get_texts()).replace("\n", "")
    assert any("\n" in t.get_text() for t in key.get_texts())
    assert "BayesianPromptOfTheWholeDataset" in describe(figure, "x")


# size, fonts and formats


def test_a_figure_as_a_paper_asks_for_it(runs, capsys):
    """Of this size, in this font, in these formats, with its caption in a file."""
    asked = ["--width", "3.25", "--height", "3.5", "--font", SERIF, "--format", "svg", "png", "svg"]
    assert figures.main(["loss", str(runs), *asked, "--out", str(runs / "out")]) == 0
    made = [str(runs / f"out/loss.{suffix}") for suffix in ("svg", "png", "txt")]
    assert capsys.readouterr().out.split() == made
    with Image.open(made[1]) as image:
        assert np.array(image.size) / image.info["dpi"] == pytest.approx([3.25, 3.5], abs=0.01)
    assert "DejaVuSerif" in (runs / "out/loss.svg").read_text()
    text = (runs / "out/loss.txt").read_text()
    assert text.startswith(KINDS["loss"].text) and "population std over 2 seeds" in text


def test_a_figure_too_low_for_what_is_in_it(runs, capsys):
    """The height that the line tells is enough."""
    with pytest.raises(SystemExit) as left:
        figures.main(["loss", str(runs), "--height", "1", "--out", str(runs / "out")])
    assert left.value.code == 2 and not (runs / "out").exists()
    line = capsys.readouterr().err
    assert line.startswith("error: --height 1: too low for this figure, which takes ")
    enough = float(line.split()[-1])
    found = find_results([runs])
    assert draw("loss", found, Page(height=enough)).get_figheight() == enough
    with pytest.raises(TooSmall):
        draw("loss", found, Page(height=enough - 0.2))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--font", "DejaVu Sirif"], "no such font is installed; near: DejaVu Serif"),
        (["--font", "{runs}/base2new/train_base/dtd/shots_16/P2C/c/seed1/results.json"], "no font"),
        (["--format", "docx"], "--format docx: choose from avif, eps"),
        (["--format", "pgf"], "--format pgf: choose from avif, eps"),
        (["--width", "nan"], "--width nan: must be 2 to 40 inches"),
        (["--width", "1"], "--width 1: must be 2 to 40 inches"),
    ],
)
def test_bad_options(words, text, runs, capsys):
    with pytest.raises(SystemExit) as left:
        figures.main(["loss", str(runs), *(word.format(runs=runs) for word in words)])
    assert left.value.code == 2
    the_line(capsys, text)


@pytest.mark.filterwarnings("error")
def test_letters_of_other_scripts(tmp_path, caplog):
    """Those that an installed font has are drawn, of the others a warning says which font has."""
    for method in ("Метод", "方法"):
        put(tmp_path, method, 1, 80.0)
    figure = draw("f1", find_results([tmp_path]))
    figure.draw_without_rendering()
    [line] = [r.getMessage() for r in caplog.records if "font" in r.getMessage()]
    assert line.startswith("no installed font has 方法, drawn as boxes; install one")
    assert "Noto Sans CJK SC" in line
    families = figure.legends[0].get_texts()[0].get_fontfamily()
    assert families[0] == "STIXGeneral" and len(families) > 1
    assert families_for(["σ ± – ↦ Ж"], ["STIXGeneral"]) == ["STIXGeneral"]
    assert families_for(["العربية"], ["STIXGeneral"]) == ["STIXGeneral", "DejaVu Sans"]


def test_a_font_by_its_file_or_its_name():
    assert find_font(SERIF) == find_font("DejaVu Serif") == "DejaVu Serif"


# what is seen


@pytest.mark.parametrize("kind", ["loss", "time", "f1"])
def test_every_seed_is_seen(kind, runs):
    """The value of each is drawn, and none lies on another of its method."""
    ax = draw(kind, find_results([runs])).axes[0]
    drawn = np.concatenate([line.get_xydata() for line in ax.get_lines()])
    values = {"loss": [4.0, 5.0], "time": [3.0], "f1": [81.0, 82.0]}[kind]
    for value in values:
        assert value in drawn[:, 1]
    if kind == "time":  # all equal: two methods × two datasets × two seeds
        assert len(np.unique(drawn[:, 0])) == 8
    hollow = [line.get_markerfacecolor() for line in ax.get_lines() if line.get_label()[0] != "_"]
    assert hollow == [] if kind == "time" else set(hollow) == {"none"}


def test_panels_of_one_thing_have_one_range(tmp_path):
    """Losses have their own where that of all would flatten one, which the caption says."""
    for dataset, loss in (("dtd", [3.0, 1.0]), ("eurosat", [2.5, 2.0])):
        for method in ("P2C", "CoOp"):
            put(tmp_path, method, 1, 80.0 + len(dataset), dataset=dataset, loss=loss)
    found = find_results([tmp_path])
    for kind in ("loss", "f1"):
        figure = draw(kind, found)
        one, other = (ax.get_ylim() for ax in figure.axes)
        assert one == other and "own range" not in figure.get_label()
    put(tmp_path, "P2C", 1, 80.0, dataset="food101", loss=[90.0, 30.0])
    figure = draw("loss", find_results([tmp_path]))
    assert len({ax.get_ylim() for ax in figure.axes}) == 3
    assert "Each panel has its own range." in caption(figure, "Losses")


def cloud(folder, sigmas=(0.0, 0.1)):
    accuracy = [[80.0 - i] for i, _ in enumerate(sigmas)]
    about = {"noise": "gaussian", "sigmas": sigmas, "accuracy": accuracy}
    (folder / "cloud.json").write_text(json.dumps(about))


def test_the_cloud_of_no_fair_baseline_says_so(tmp_path):
    """In the figure, unless it is to have no note; its caption always."""
    for method in ("P2C", "MaPLe"):
        cloud(put(tmp_path, method, 1, 80.0))
    found = find_results([tmp_path])
    for page, labels in ((Page(), ["P2C", "MaPLe †"]), (Page(caveats=False), ["P2C", "MaPLe"])):
        figure = draw("cloud", found, page)
        [key] = figure.legends
        assert [text.get_text() for text in key.get_texts()] == labels
        assert ("no fair baseline" in key.get_title().get_text()) == page.caveats
        assert "† MaPLe: no fair baseline" in caption(figure, "")
    for r in found:
        if r.trainer == "P2C":
            (r.folder / "cloud.json").unlink()
    assert "fair" not in draw("cloud", found).get_label()  # there is none beside it


def test_a_figure_of_one_point_is_a_warning(tmp_path, caplog):
    cloud(put(tmp_path / "a", "P2C", 1, 80.0, loss=[1.0]), [0.0])
    few = {f"b/dtd/{m}/c_{n}shots/seed1/log.txt": log_of((1, 2.0))
           for m, n in (("P2C", 1), ("CoOp", 4))}  # fmt: skip
    found = find_results([tmp_path / "a"])
    lines = {
        "loss": "loss: trainings of one epoch; a curve takes two: no figure",
        "time": "time: a single training; a comparison takes two: no figure",
        "f1": "f1: a single run; a comparison takes two: no figure",
        "cloud": "cloud: measured at one σ; a curve takes two: no figure",
    }
    for kind in lines:
        assert draw(kind, found) is None
    assert draw("shots", find_results([write(tmp_path, few) / "b"])) is None
    expected = [*lines.values(), "shots: no run has two numbers of shots; a curve takes two: no"]
    for record, line in zip(caplog.records, expected, strict=True):
        assert record.getMessage().startswith(line)


# intervals


def test_intervals_and_what_they_are_made_of():
    rows = [IntervalRow("a", 2.0, 1.0, 4.0, [0.5, 3.0]), IntervalRow("b", -1.0, -2.0, 0.0)]
    [ax] = draw_intervals(rows, "points").axes
    drawn = [line.get_xdata() for line in ax.get_lines()]
    assert [list(x) for x in drawn] == [[0, 0], [0.5, 3], [1, 4], [2], [-2, 0], [-1]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.yaxis_inverted()  # the first is on top
    assert ax.get_xlabel() == "points"
    [ax] = draw_intervals(rows[1:], "rank", zero=None, width=3.25).axes
    assert [list(line.get_xdata()) for line in ax.get_lines()] == [[-2, 0], [-1]]
    assert ax.figure.get_figwidth() == 3.25
    equal = [IntervalRow("a", 2.0, 0.0, 10.0, [3.0, 1.0, 3.0, 3.0])]
    [ax] = draw_intervals(equal, "rank", zero=None).axes
    shown = ax.get_lines()[0].get_xdata()
    assert sorted(shown) == pytest.approx([1, 2.9, 3, 3.1])  # side by side, none hidden
    with pytest.raises(ValueError, match="no rows"):
        draw_intervals([], "points")
