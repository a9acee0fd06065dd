"""results.report on records written by hand: what a browser would read is parsed again and compared
with them."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from results import report
from results.names import name_methods, with_methods
from results.protocols import TEN, dataset_name
from results.records import find_results

from .test_figures import put, record
from .test_parse import write

VOID = {"meta", "link", "img", "input", "wbr"}
CHROMIUM = shutil.which("chromium")
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

    def runs(self):
        """{method: its table of runs}."""
        methods = [a["data-method"] for a in self.all("details") if "data-method" in a]
        tables = [table for table in self.tables if "commit" in table["rows"][0]]
        return dict(zip(methods, tables, strict=True))


@pytest.fixture
def runs(tmp_path):
    """P2C: base 80, 90, new 60, 60; MaPLe: base 70, 80, new 50, 60; HM 68.57, 72; 58.33, 68.57."""
    about = {
        "versions": {"python": "3.12.1", "torch": "2.14.1"},
        "machine": "Linux <x>",
        "finished": "2026-01-02T03:04:05+00:00",
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
    assert list(page.runs()) == ["MaPLe", "P2C"]
    for table in page.runs().values():
        header, body = table["rows"][0], table["rows"][1:]
        assert body[1::2] == [[COMMAND]] * 4
    header, body = page.runs()["MaPLe"]["rows"][0], page.runs()["MaPLe"]["rows"][1:]
    got = [dict(zip(header, row, strict=True)) for row in body[::2]]
    assert [(r["classes"], r["seed"], r["accuracy"], r["macro F1"]) for r in got] == [
        ("base", "1", "70.0", "69.0"),
        ("base", "2", "80.0", "79.0"),
        ("new", "1", "50.0", "49.0"),
        ("new", "2", "60.0", "59.0"),
    ]
    assert (got[0]["train s"], got[0]["images/s"], got[0]["peak MiB"]) == ("6.0", "1234", "800")
    assert (got[0]["commit"], got[0]["finished"]) == ("0123456789+", "2026-01-02 03:04")
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
    assert page.all("script") == [{}] and not page.all("iframe") and not page.all("base")
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
    [script] = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.endswith(f"script-src 'sha256-{digest}'") and policy.count("script-src") == 1


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
    assert page.all("script") == [{}] and not page.all("i")
    assert any(row[1:5] == [name, "80.0", "60.0", "68.6"] for row in page.tables[0]["rows"])
    assert r"<i>caf\udce9/seed1: empty folder" in page.text


def test_configs_that_differ_are_shown_once_each(runs, capsys):
    _, page = make(runs)
    assert page.text.count("USE_ATPROMPT: true") == page.text.count("USE_ATPROMPT: false") == 1
    section = page.text.split("Configs")[-1]
    assert section.count("P2C (4 runs)") == section.count("MaPLe (4 runs)") == 1


def test_a_config_is_its_method_s_where_the_record_tells(tmp_path, capsys):
    config = {"TRAINER": {"NAME": "P2C", "P2C": {"N": 61}, "COOP": {"N": 62}}, "LOSS": {"T": 63}}
    put(tmp_path, "P2C", 1, 80.0, config=config, config_of_others=["LOSS", "TRAINER.COOP"])
    section = make(tmp_path)[1].text.split("Configs")[-1]
    assert "N: 61" in section and "62" not in section and "LOSS" not in section
    put(tmp_path, "P2C", 1, 80.0, config=config)
    section = make(tmp_path)[1].text.split("Configs")[-1]
    assert all(value in section for value in ("N: 61", "N: 62", "T: 63"))


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


def test_a_config_nested_too_deep_is_a_damaged_record(runs, capsys):
    path = runs / "base2new/train_base/dtd/shots_16/P2C/c/seed3/results.json"
    path.parent.mkdir()
    damaged, deep = record(80.0), {}
    for _ in range(400):
        deep = {"MORE": deep}
    path.write_text(json.dumps(damaged | {"config": damaged["config"] | deep}))
    _, page = make(runs)
    assert "seed3/results.json: its config has more than 50 levels: not read" in page.text


def test_a_warning_is_said_once(runs):
    """Tables and figures find the same; each command's first lines are its own."""
    program = (
        "import logging; from dassl.commands import log_to_stderr; log_to_stderr()\n"
        "for line in 'one', 'two', 'one': logging.getLogger('a').warning('%s', line)\n"
        "logging.getLogger('b').warning('%s', 'one')\n"
        "logging.getLogger('b').warning('%d', 'no number')\n"
        "logging.getLogger('b').warning('three')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("WARNING: ")]
    assert lines == ["WARNING: one", "WARNING: two", "WARNING: three"] and done.returncode == 0


def test_what_others_wrote_cannot_end_the_script_or_turn_the_page(tmp_path, capsys):
    evil = "</script></details><script>x</script>"
    put(tmp_path, "P2C", 1, 80.0, command=f"{evil} \x1b[2J \u202e --x", machine="a\x00\x9bb")
    text, page = make(tmp_path)
    assert page.all("script") == [{}] and not page.open
    assert rf"{evil} \x1b[2J \u202e --x" in page.text and r"a\x00\x9bb" in page.text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


# One name for a run


def put_elsewhere(root, folder, accuracy, **changes):
    """A record in a folder of another protocol's layout."""
    path = root / folder / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record(accuracy, **changes)))


def test_a_run_has_one_name_in_all_sections(tmp_path, capsys):
    """By protocol alone P2C would be P2C, and P2C one and P2C two in the few-shot table."""
    put(tmp_path, "P2C", 1, 80.0)
    put(tmp_path, "P2C", 1, 60.0, "new")
    for cfg in ("one", "two"):
        for shots in (4, 16):
            place = {"side": "all", "shots": shots, "loss": [float(shots)]}
            put_elsewhere(tmp_path, f"dtd/P2C/{cfg}_{shots}shots/seed1", 70.0, **place)
    text, page = make(tmp_path)
    names = {"P2C c", "P2C one", "P2C two"}
    assert set(page.runs()) == names and "; 1 method, 3 settings; " in text
    methods = {
        row[table["rows"][0].index("method")]
        for table in page.tables
        if "method" in table["rows"][0]
        for row in table["rows"][1:]
    }
    assert methods == names
    described = " ".join(image["alt"] for image in page.all("img"))
    shown = re.findall(r"Shown: (.*?)\.", described)
    assert {name for names in shown for name in names.split(", ")} == names
    [config] = re.findall(r"<summary>([^<]*P2C[^<]*)\(6 runs", text)
    assert config == "P2C c, P2C one, P2C two "


def test_shots_are_told_where_no_column_tells_them(tmp_path, capsys):
    """A training is called by its method and has a row of its tests' table all the same."""
    for shots, accuracy in ((4, 70.0), (16, 80.0)):
        place = {"side": "all", "shots": shots, "dataset": "ImageNet"}
        put_elsewhere(tmp_path, f"imagenet/CoOp/c_{shots}shots/seed1", accuracy, **place)
        place |= {"dataset": "EuroSAT", "eval_only": True}
        folder = f"evaluation/CoOp/c_{shots}shots/eurosat/seed1"
        put_elsewhere(tmp_path, folder, accuracy - 30, **place)
    _, page = make(tmp_path)
    assert list(page.runs()) == ["CoOp", "CoOp shots_16", "CoOp shots_4"]
    rows = [row for table in page.tables for row in table["rows"]]
    assert ["CoOp shots_16", "80.0", "50.0", "50.0", "1", "2"] in rows
    assert ["CoOp shots_4", "70.0", "40.0", "40.0", "1", "2"] in rows
    assert ["ImageNet", "CoOp", "70.0", "80.0", "1", "2"] in rows


def test_given_names_stay(runs):
    found = find_results([runs])
    assert {r.method for r in found} == {""}
    assert {r.method for r in with_methods(found)} == {"P2C", "MaPLe"}
    named = [replace(r, method="given") for r in found]
    assert set(name_methods(named).values()) == {"given"}


# In a browser

# Opens the page at both widths, uses it, and leaves what it saw in its own text.
MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body><pre></pre><script>
const saw = {};
const later = ms => new Promise(done => setTimeout(done, ms));
async function at(width) {
  const frame = document.createElement("iframe");
  Object.assign(frame, {src: "report.html", width, height: 900, style: "border: 0"});
  const loaded = new Promise(done => frame.onload = done);
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, root = page.documentElement, now = {};
  const groups = [...page.querySelectorAll("#all-runs details")];
  const open = () => groups.filter(group => group.open).map(group => group.dataset.method);
  now.closed = open().length === 0;
  for (const details of page.querySelectorAll("details")) details.open = true;
  await later(50);
  now.page = [frame.contentWindow.innerWidth, root.scrollWidth - root.clientWidth];
  const boxes = [...page.querySelectorAll(".scroll")].filter(box => box.querySelector("table"));
  const wide = box => box.scrollWidth > box.clientWidth;
  const hinted = box => box.querySelector(".hint").getClientRects().length > 0;
  const labels = boxes => boxes.map(box => box.getAttribute("aria-label"));
  const all = () => boxes.every(box => hinted(box) === wide(box));
  for (let i = 0; i < 60 && !all(); i++) await later(50);  // hints come with a frame drawn later
  now.wide = labels(boxes.filter(wide));
  now.hinted = labels(boxes.filter(hinted));
  const box = boxes.find(box => box.getAttribute("aria-label").startsWith("runs of"));
  box.scrollLeft = 1e6;
  const last = box.querySelector("tbody tr").lastElementChild.getBoundingClientRect();
  now.last = [last.left >= 0, last.right <= root.clientWidth];
  const field = page.querySelector("#search input");
  now.found = {};
  for (const words of SEARCHES) {
    field.value = words;
    field.dispatchEvent(new Event("input"));
    const rows = [...page.querySelectorAll("#all-runs tr[id]")];
    const shown = rows.filter(row => row.getClientRects().length > 0).length;
    now.found[words] = [shown, open(), page.querySelector("#search output").textContent];
  }
  field.value = "no run has this";
  field.dispatchEvent(new Event("input"));
  page.querySelector("h3 + .scroll a").click();
  await later(100);
  const run = page.querySelector("tr:target").getBoundingClientRect();
  now.led = [run.height > 0 && run.top >= 0 && run.bottom <= 900, open()];
  saw[width] = now;
  frame.remove();
}
at(1400).then(() => at(400)).catch(error => saw.error = String(error)).then(() => {
  document.querySelector("pre").textContent = JSON.stringify(saw);
});
</script>"""
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --dump-dom
--disable-background-networking --disable-component-update --disable-sync
--allow-file-access-from-files --virtual-time-budget=20000""".split()


def measured(folder, searches):
    """{width: what the page of a folder shows in Chromium}."""
    test = folder / "measure.html"
    test.write_text(MEASURE.replace("SEARCHES", json.dumps(searches)), encoding="utf-8")
    flags = [*FLAGS, f"--user-data-dir={folder}/profile", test.as_uri()]
    done = subprocess.run([CHROMIUM, *flags], capture_output=True, text=True, timeout=600)
    [saw] = re.findall("<pre>(.*?)</pre>", done.stdout) or [done.stderr]
    saw = json.loads(html.unescape(saw))
    assert "error" not in saw, saw
    return saw


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_nothing_is_cut_and_the_search_finds_at_both_widths(runs, capsys):
    """Among names and a command that are long and have no space."""
    about = {"command": f"python train.py --root /{'x' * 300}", "machine": "m" * 300}
    put(runs, "M" * 90, 12, 50.0, **about)
    put(runs, "M" * 90, 12, 50.0, "new", "d" * 90, **about)
    for dataset in ("imagenet", *TEN):
        folder = f"evaluation/P2C/c_16shots/{dataset}/seed1"
        if dataset == "imagenet":
            folder = "imagenet/P2C/c_16shots/seed1"
        place = {"side": "all", "dataset": dataset_name(dataset), "eval_only": True}
        put_elsewhere(runs, folder, 70.0, **place)
    make(runs, "--title", "T" * 200)
    every = ["M" * 90, "MaPLe", "P2C"]
    searches = {
        "": (21, []),
        "maple seed=1": (2, ["MaPLe"]),
        "Seed 1": (15, ["MaPLe", "P2C"]),
        "new": (5, every),
        f"/{'x' * 300}": (2, ["M" * 90]),
        "0123456789+ 'my <data>'": (8, ["MaPLe", "P2C"]),
        "nothing": (0, []),
    }
    saw = measured(runs / "page", list(searches))
    for width in ("1400", "400"):
        page = saw[width]
        assert page["closed"] and page["page"] == [int(width), 0]
        assert page["last"] == [True, True] and page["hinted"] == page["wide"]
        assert page["led"] == [True, ["MaPLe"]]
        for words, (n, methods) in searches.items():
            said = f"{n} of 21 runs" if words else ""
            assert page["found"][words] == [n, methods, said], words
    assert saw["1400"]["wide"] == [] and len(saw["400"]["wide"]) >= 4
