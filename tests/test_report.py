"""results.report on records written by hand: what a browser would read is parsed again and compared
with them."""

import base64
import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from results import report
from results.protocols import TEN

from .test_figures import put, record
from .test_parse import write

VOID = {"meta", "link", "img", "br", "hr"}
COMMAND = "python train.py --seed 1 --root 'my <data>' DATASET.NAME \"DTD\""


class Page(HTMLParser):
    """The page's elements; tables as {section and caption's beginning: rows of texts}."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.links, self.ids = [], [], [], []
        self.tables, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        attributes = dict(attributes)
        self.tags.append((name, attributes))
        if name not in VOID:
            self.open.append(name)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if name == "table":
            self.tables.append({"caption": "", "rows": []})
        elif name == "tr":
            self.tables[-1]["rows"].append([])
        elif name in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")

    def handle_endtag(self, name):
        assert self.open.pop() == name, f"</{name}> closes nothing"

    def handle_data(self, data):
        self.text += data
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        elif "td" in self.open or "th" in self.open:
            self.tables[-1]["rows"][-1][-1] += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture
def runs(tmp_path):
    """P2C: base 80, 90, new 60, 60; MaPLe: base 70, 80, new 50, 60; HM 68.57, 72; 58.33, 68.57."""
    about = {
        "versions": {"python": "3.12.1", "torch": "2.14.1"},
        "machine": "Linux <x>",
        "finished": "2026-01-02",
    }
    about |= {
        "commit": "0123456789abcdef",
        "dirty": True,
        "peak_memory_mb": {"process": 800.0, "gpu": None},
    }
    about |= {"command": COMMAND, "images_per_second": {"train": 9.0, "test": 1234.4}}
    for method, numbers in {
        "P2C": [(80.0, 60.0), (90.0, 60.0)],
        "MaPLe": [(70.0, 50.0), (80.0, 60.0)],
    }.items():
        for seed, (base, new) in enumerate(numbers, 1):
            put(tmp_path, method, seed, base, **about)
            put(tmp_path, method, seed, new, "new", **about | {"loss": []})
    return tmp_path


def make(folder, *args):
    """The page's text and what a parser makes of it."""
    out = folder / "page" / "report.html"
    assert report.main([str(folder), "--out", str(out), *args]) == 0
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


def test_numbers_in_the_tables_are_the_records(runs, capsys):
    _, page = make(runs, "--baseline", "MaPLe")
    rows = {tuple(row[:2]): row[2:] for row in page.tables[0]["rows"]}
    assert rows["dataset", "method"] == ["base", "new", "HM", "seeds", "Δ HM to MaPLe", "runs"]
    assert rows["DescribableTextures", "P2C"][:4] == ["85.0 ± 5.0", "60.0 ± 0.0", "70.3 ± 1.7", "2"]
    assert rows["DescribableTextures", "MaPLe"] == [
        "75.0 ± 5.0",
        "55.0 ± 5.0",
        "63.5 ± 5.1",
        "2",
        "",
        "4",
    ]
    # differences 10.24 and 3.43: mean 6.83, s 4.81, half of the interval 12.706 · 4.81 / √2 = 43.3
    assert rows["DescribableTextures", "P2C"][4:] == ["+6.8 [−36.4, +50.1] (n=2)", "4"]
    assert (
        "population std" in page.tables[0]["caption"]
        and "95% interval" in page.tables[0]["caption"]
    )
    best = [a for a in page.all("span") if a.get("class") == "best"]
    assert len(best) == 3


def test_every_run_has_its_command_and_what_it_ran_on(runs, capsys):
    _, page = make(runs)
    [table] = [
        table
        for table in page.tables
        if table["rows"][0][0] == "method" and "commit" in table["rows"][0]
    ]
    header, body = table["rows"][0], table["rows"][1:]
    got = [dict(zip(header, row, strict=True)) for row in body[::2]]
    assert body[1::2] == [[COMMAND]] * 8
    numbers = [(r["method"], r["classes"], r["seed"], r["accuracy"], r["macro F1"]) for r in got]
    assert numbers[:4] == [
        ("MaPLe", "base", "1", "70.0", "69.0"),
        ("MaPLe", "base", "2", "80.0", "79.0"),
        ("MaPLe", "new", "1", "50.0", "49.0"),
        ("MaPLe", "new", "2", "60.0", "59.0"),
    ]
    assert (got[0]["train s"], got[0]["images/s"], got[0]["peak MiB"]) == ("6.0", "1234", "800")
    assert (got[0]["commit"], got[0]["finished"]) == ("0123456789+", "2026-01-02")
    [machine] = page.tables[-1]["rows"][1:]
    assert machine == ["a CPU", "Linux <x>", "python 3.12.1, torch 2.14.1", "8"]


def test_the_links_of_a_line_lead_to_its_runs(runs, capsys):
    text, page = make(runs)
    targets = [a["href"] for a in page.all("a")]
    assert all(target.startswith("#") and target[1:] in page.ids for target in targets)
    assert len(page.ids) == len(set(page.ids))
    assert {"#r1", "#r5"} <= set(targets)  # MaPLe's first run and P2C's


def test_nothing_is_asked_of_the_network(runs, capsys):
    text, page = make(runs)
    assert not page.all("script") and not page.all("iframe") and not page.all("base")
    for name, attributes in page.tags:
        for key in ("src", "href", "srcset", "data", "action", "poster"):
            if key in attributes:
                assert attributes[key].startswith("#" if name == "a" else "data:"), (name, key)
        assert not any(key.startswith("on") for key in attributes)
    assert (
        "@import" not in text
        and "url(" not in text
        and "http:" not in text
        and "https:" not in text
    )
    [policy] = [
        a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'")


def test_figures_are_whole_images_with_words_for_them(runs, capsys):
    _, page = make(runs)
    images = page.all("img")
    assert len(images) == 3  # loss, time, f1
    for image in images:
        kind, data = image["src"].split(",")
        assert (
            kind == "data:image/svg+xml;base64" and len(image["alt"]) > 20 and "P2C" in image["alt"]
        )
        drawing = ElementTree.fromstring(base64.b64decode(data))
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        links = [v for e in drawing.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert all(link.startswith("#") or link.startswith("data:") for link in links)


def test_it_is_a_well_formed_page_for_phone_and_print(runs, capsys):
    text, page = make(runs, "--title", "A & B <i>")
    assert text.startswith("<!DOCTYPE html>") and not page.open
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    names = [name for name, _ in page.tags]
    assert names.count("h1") == 1 and names.count("caption") == names.count("table") == len(
        page.tables
    )
    levels = [int(name[1]) for name in names if name in ("h1", "h2", "h3")]
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert "A & B <i>" in page.text and not page.all("i")


def test_names_of_others_are_text(tmp_path, capsys):
    """Of a method, and in a warning; a byte that is no UTF-8 is shown as its escape."""
    name = "<script>alert('&amp;')"
    put(tmp_path, name, 1, 80.0)
    put(tmp_path, name, 1, 60.0, "new")
    (tmp_path / "<i>caf\udce9" / "seed1").mkdir(parents=True)
    text, page = make(tmp_path)
    assert not page.all("script") and not page.all("i")
    assert any(row[1:5] == [name, "80.0", "60.0", "68.6"] for row in page.tables[0]["rows"])
    assert r"<i>caf\udce9/seed1: empty folder" in page.text


def test_configs_that_differ_are_shown_once_each(runs, capsys):
    _, page = make(runs)
    assert page.text.count("USE_ATPROMPT: true") == page.text.count("USE_ATPROMPT: false") == 1
    assert page.text.count("P2C (4 runs)") == page.text.count("MaPLe (4 runs)") == 1


def test_runs_without_a_record_and_a_failed_one(tmp_path, capsys):
    place = "base2new/{}/dtd/shots_16/CoOp/c/seed{}/log.txt"
    result = "=> result\n* total: 8\n* accuracy: {}%\n* error: 1.0%\n* macro_f1: 50.0%\n"
    files = {
        place.format("train_base", 1): result.format(81.5),
        place.format("test_new", 1): result.format(60.5),
    }
    text, page = make(write(tmp_path, files | {place.format("train_base", 2): "Traceback\n"}))
    assert ["DescribableTextures", "CoOp", "81.5", "60.5", "69.4", "1", "2"] in page.tables[0][
        "rows"
    ]
    assert "Warnings" in page.text and "seed2: no accuracy of a finished run" in page.text
    assert "no results.json in" in page.text


def test_ablations_and_a_paper_row(tmp_path, capsys):
    for setting, accuracy in (("baseline", 70.0), ("dpd_gmm", 80.0)):
        put(tmp_path / setting, "P2C", 1, accuracy)
        put(tmp_path / setting, "P2C", 1, accuracy, "new")
    _, page = make(tmp_path, "--paper")
    rows = [row[:4] for table in page.tables for row in table["rows"]]
    assert ["P2C baseline", "70.0", "70.0", "70.0"] in rows and {"class": "paper"} not in page.all(
        "tr"
    )
    for dataset in ("imagenet", *TEN):
        for side in ("base", "new"):
            put(tmp_path / "dpd_gmm", "P2C", 2, 80.0, side, dataset)
    _, page = make(tmp_path, "--paper")
    rows = [row[:4] for table in page.tables for row in table["rows"]]
    assert ["P2C dpd_gmm (paper)", "–", "–", "78.3"] in rows and {"class": "paper"} in page.all(
        "tr"
    )


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("/nowhere",), 2, "/nowhere: no such folder"),
        (("{empty}",), 1, "no results of runs in"),
        (
            ("{runs}", "--baseline", "CoOp"),
            2,
            "--baseline CoOp is no method here; give one of: MaPLe, P2C",
        ),
        (("{runs}", "--out", "{empty}"), 1, "cannot write"),
        ((), 2, "required: FOLDER"),
    ],
)
def test_bad_input(args, code, text, runs, tmp_path_factory, capsys):
    places = {"runs": runs, "empty": tmp_path_factory.mktemp("empty")}
    with pytest.raises(SystemExit) as left:
        report.main([arg.format(**places) for arg in args])
    assert left.value.code == code
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and text in error[0]


def test_a_damaged_record_is_said_on_the_page(runs, capsys):
    path = runs / "base2new/train_base/dtd/shots_16/P2C/c/seed3/results.json"
    path.parent.mkdir()
    path.write_text(json.dumps(record(80.0))[:99])
    _, page = make(runs)
    assert "seed3/results.json cannot be read" in page.text
