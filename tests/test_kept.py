"""results.kept: what is kept of runs gives the tables of their folders."""

import json
import re
import shutil
from itertools import product
from pathlib import Path

import pytest

from results import kept, tables
from results.curves import told_by
from results.records import find_results
from results.same import main as results_same
from results.table_kinds import make_table
from results.text_table import render

from .test_parse import record, trained, write

SETTINGS, SIDES, SEEDS = ("dpd", "plain"), ("base", "new"), (1, 2, 10)
CLOUD = {"noise": "gaussian", "sigmas": [1], "accuracy": [[70]]}
OF_SIDE = {"base": "base2new/train_base", "new": "base2new/test_new"}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two settings × base and new × three seeds, with records."""
    files = {}
    for number, (setting, side, seed) in enumerate(product(SETTINGS, SIDES, SEEDS)):
        of_run = {
            "subsample": side,
            "seed": seed,
            "config": {"TRAINER": {"P2C": {"PREC": setting}}, "SEED": seed, "OUTPUT_DIR": "x"},
            "eval_only": side == "new",
            "commit": "0123456789abcdef",
            "dirty": False,
            "machine": "here",
            "versions": {"torch": "9.9"},
            "finished": f"2026-01-01T00:00:{number:02d}+00:00",
        }
        text = record(60 + number + 1 / 3, more={"ece": 5 + number / 7}, **of_run)
        place = f"{setting}/{OF_SIDE[side]}/dtd/shots_16/P2C/c/seed{seed}"
        files[f"{place}/results.json"] = text
        if side == "base":
            cloud = {"noise": "gaussian", "sigmas": [0, 0.06], "accuracy": [[70], [60, 61]]}
            cloud |= {"draws": 2, "commit": "fedcba", "dirty": False}
            files[f"{place}/cloud.json"] = json.dumps(cloud)
            sharp = {
                "commit": "abcdef",
                "dirty": False,
                "loss": 0.5,
                "mean": {"0.06": [0.1, 0.3]},
                "worst": {"0.015": 0.25},
            }
            files[f"{place}/sharpness.json"] = json.dumps(sharp)
    return write(tmp_path / "sweep", files)


def keep(folder: Path, out: Path, *words: str) -> int:
    return kept.main([str(folder), "--out", str(out), *words])


def test_they_give_the_tables_of_their_folders(sweep, tmp_path):
    file = tmp_path / "docs/sweep.jsonl"
    assert keep(sweep, file, "--command", "make them") == 0
    found = kept.read_kept(file)
    assert len(found) == 12
    for kind in ("base2new", "ablation"):
        of_folders, of_file = (
            render(tables.with_costs(make_table(kind, runs).against("P2C plain")), "markdown")
            for runs in (find_results([sweep]), found)
        )
        assert of_file == of_folders and "P2C dpd" in of_file


def test_what_all_share_is_said_once_and_the_rest_of_each_run(sweep, tmp_path):
    file = tmp_path / "sweep.jsonl"
    assert keep(sweep, file, "--command", "make them") == 0
    about, rows = kept.read_lines(file)
    assert about["command"] == "make them" and about["runs"] == len(rows) == 12
    shared = about["shared"]
    assert (shared["commit"], shared["machine"]) == ("0123456789abcdef", "here")
    assert shared["versions"] == {"torch": "9.9"} and shared["dirty"] is False
    assert not set(shared) & {key for row in rows for key in row}
    cloud = {"noise": "gaussian", "draws": 2, "commit": "fedcba", "dirty": False}
    assert shared["cloud_by"] == cloud
    assert shared["sharpness_by"] == {"draws": 2, "commit": "abcdef", "dirty": False}
    assert [row["seed"] for row in rows] == [1, 2, 10] * 4
    # the settings tell configs apart, seeds and folders do not
    assert len({row["config"] for row in rows}) == 2
    base = next(row for row in rows if row["side"] == "base")
    assert base["cloud"] == {"0": 70.0, "0.06": 60.5}
    assert base["sharpness"] == {"loss": 0.5, "mean": {"0.06": 0.2}, "worst": {"0.015": 0.25}}
    first = next(row for row in rows if row["finished"].endswith("00:00:00+00:00"))
    assert (first["accuracy"], first["ece"]) == (60.3333, 5.0)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("cloud.json", '{"noise": "posterior", "sigmas": [1], "accuracy": [[70]]}', ""),
        *(
            ("cloud.json", json.dumps(CLOUD | change), "cannot be read; run inference.cloud again")
            for change in (
                {"accuracy": [["x"]]},
                {"accuracy": [[10**400]]},
                {"sigmas": ["a"]},
                {"sigmas": [None]},
                {"noise": ["gaussian"]},
                {"average": "x"},
                {"trained_sigma": [1]},
            )
        ),
        ("sharpness.json", "[]", "cannot be read; run inference.sharpness"),
        ("sharpness.json", '{"loss": 1, "mean": [1], "worst": {}}', "cannot be read"),
        ("sharpness.json", '{"loss": 1, "mean": {"1": []}, "worst": {}}', "cannot be read"),
    ],
)
def test_what_was_measured_otherwise_or_is_damaged_is_left_out(
    name, text, said, sweep, tmp_path, caplog
):
    [*files] = sweep.rglob(name)
    files[0].write_text(text)
    assert keep(sweep, tmp_path / "out.jsonl") == 0
    key = name.removesuffix(".json")
    there = [row for row in kept.read_lines(tmp_path / "out.jsonl")[1] if key in row]
    assert len(there) == len(files) - 1 and said in caplog.text and bool(said) == bool(caplog.text)


def test_any_sign_may_be_in_a_text(tmp_path):
    lines = [{"machine": "a\u2028b\u0085c"}, {"s": "\x1c"}]
    kept.write_lines(tmp_path / "a.jsonl", lines)
    first, rest = kept.read_lines(tmp_path / "a.jsonl")
    assert [first, *rest] == lines


def test_runs_join_those_of_an_earlier_file(sweep, tmp_path, capsys):
    whole, first, both = (tmp_path / name for name in ("whole", "first", "both"))
    assert keep(sweep, whole) == 0
    gone = list(sweep.rglob("seed10"))
    aside = [folder.rename(tmp_path / str(i)) for i, folder in enumerate(gone)]
    assert keep(sweep, first) == 0 and len(kept.read_rows(first)) == 8
    for folder in sweep.rglob("seed[12]"):
        shutil.rmtree(folder)
    for folder, place in zip(aside, gone, strict=True):
        folder.rename(place)
    assert keep(sweep, both, "--with", str(first)) == 0
    assert both.read_bytes() == whole.read_bytes()
    assert capsys.readouterr().out.endswith(f"{both}: 12 runs\n")
    with pytest.raises(SystemExit, match="1"):
        keep(sweep, both, "--with", str(both))
    said = "a run is there twice: dpd P2C c DescribableTextures 16 base 10 base2new"
    assert said in capsys.readouterr().err and both.read_bytes() == whole.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        keep(sweep, both, "--with", str(tmp_path / "none"))
    assert "none: no such file" in capsys.readouterr().err
    (tmp_path / "rates").write_text('{"machine": "here"}\n')
    with pytest.raises(SystemExit, match="1"):
        keep(sweep, both, "--with", str(tmp_path / "rates"))
    assert "rates has no runs" in capsys.readouterr().err


def test_a_setting_of_its_own_joins_under_its_name(sweep, tmp_path):
    first, both = tmp_path / "first", tmp_path / "both"
    assert keep(sweep, first) == 0
    write(tmp_path, {"aux/base2new/train_base/dtd/shots_16/P2C/c/seed1/results.json": record(60)})
    assert keep(tmp_path / "aux", both, "--with", str(first)) == 0
    assert {row["setting"] for row in kept.read_rows(both)} == {"aux", *SETTINGS}


def test_few_shot_and_transferred_runs_are_two(tmp_path):
    """Of one method on one dataset, which was the one's source and the other's target."""
    ends = {"dtd/P2C/c_16shots": False, "evaluation/P2C/c_16shots/dtd": True}
    files = {
        f"out/{place}/seed1/results.json": record(60 + 10 * test, subsample="all", eval_only=test)
        for place, test in ends.items()
    }
    assert keep(write(tmp_path, files) / "out", tmp_path / "file") == 0
    found = {row["protocol"]: row["accuracy"] for row in kept.read_rows(tmp_path / "file")}
    assert found == {"few_shot": 60, "xd": 70}
    assert {r.classes for r in find_results([tmp_path / "out"])} == {"all", "all (xd)"}


def test_a_setting_alone_has_the_name_that_it_has_beside_others(sweep, tmp_path):
    shutil.rmtree(sweep / "plain")
    assert keep(sweep, tmp_path / "later") == 0
    assert {row["setting"] for row in kept.read_rows(tmp_path / "later")} == {"dpd"}


def test_what_was_kept_stays_if_nothing_can_be_written(sweep, tmp_path, capsys):
    file = tmp_path / "kept.jsonl"
    assert keep(sweep, file, "--command", "make them") == 0
    before = file.read_bytes()
    [path, *_] = sweep.rglob("results.json")
    path.write_text(path.read_text().replace('"machine": "here"', '"machine": "\\udc80"'))
    with pytest.raises(SystemExit, match="1"):
        keep(sweep, file)
    assert "codec can't encode" in capsys.readouterr().err
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir() if p.is_file()] == [
        "kept.jsonl"
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.rsplit("\n", 3)[0], "is of 12 runs and has 10"),
        (lambda text: "5", "has a line that is no row"),
        (lambda text: f"{text}[1]\n", "has a line that is no row"),
        (lambda text: '{"shared": null}\n{}', "has no runs"),
        (lambda text: '{"shared": {}, "runs": 1}\n{}', "has a line that is no run"),
        (lambda text: text.replace('"seed": 2', '"seed": "2"'), "has a line that is no run"),
        (lambda text: text.replace('"accuracy"', '"other"'), "has a line that is no run"),
        (lambda text: "{", "kept.jsonl is damaged: Expecting property name"),
    ],
)
def test_a_damaged_earlier_file_is_one_line(change, said, sweep, tmp_path, capsys):
    file = tmp_path / "kept.jsonl"
    assert keep(sweep, file) == 0
    file.write_text(change(file.read_text()))
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        keep(sweep, tmp_path / "new.jsonl", "--with", str(file))
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "new.jsonl").exists()


def test_the_same_runs_give_the_same_file(sweep, tmp_path):
    for name in ("a", "b"):
        assert keep(sweep, tmp_path / name) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("what", ["nothing", "no record", "no place"])
def test_what_cannot_be_kept(what, tmp_path, capsys):
    folder, out = tmp_path / "runs", tmp_path / "out.jsonl"
    folder.mkdir()
    if what != "nothing":
        write(folder, {"base2new/train_base/dtd/shots_16/P2C/c/seed1/log.txt": trained(80.0)})
    if what == "no place":
        write(folder, {"base2new/train_base/dtd/shots_16/P2C/c/seed1/results.json": record(80.0)})
        out = tmp_path / "file/out.jsonl"
        (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        keep(folder, out)
    said = {
        "nothing": "no results of runs in",
        "no record": "has no results.json",
        "no place": "cannot keep them in",
    }
    line = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 1 and said[what] in line and not out.is_file()


def test_a_measurement_of_an_older_model_does_not_count(sweep, tmp_path, caplog):
    [folder] = sweep.glob(f"dpd/{OF_SIDE['base']}/*/*/*/*/seed1")
    [run] = find_results([folder])
    for name in ("cloud.json", "sharpness.json"):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"of": told_by(run)}))
    assert not caplog.text and {"cloud", "sharpness"} <= kept.row_of(run, "/").keys()
    text = (folder / "results.json").read_text()
    for was, now in (('"macro_f1": 70.0', '"macro_f1": 70.1'), ("60.33", "70.33")):
        (folder / "results.json").write_text(text.replace(was, now))
        [run] = find_results([folder])
        assert not {"cloud", "sharpness"} & kept.row_of(run, "/").keys()
    for name in ("cloud", "sharpness"):
        line = f"{name}.json is of an earlier result of this run; run inference.{name} again"
        assert line in caplog.text


def same(capsys: pytest.CaptureFixture, folder: Path, file: Path) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = results_same([str(folder), str(file)])
    return code, capsys.readouterr().out.splitlines()


def test_results_same_finds_what_differs(sweep, tmp_path, capsys):
    file = tmp_path / "sweep.jsonl"
    assert keep(sweep, file) == 0
    head = "results are equal to the record's, to 4 decimals; the record has 12"
    assert same(capsys, sweep, file) == (0, [f"12 of 12 {head}"])

    seeds = [sweep / "dpd" / OF_SIDE["base"] / f"dtd/shots_16/P2C/c/seed{n}" for n in SEEDS]
    shutil.rmtree(seeds[2])  # what was not run again is no difference
    assert same(capsys, sweep, file) == (0, [f"11 of 11 {head}"])

    changed = seeds[0] / "results.json"
    changed.write_text(changed.read_text().replace("60.33333", "60.33343"))
    cloud = seeds[1] / "cloud.json"
    cloud.write_text(cloud.read_text().replace("61", "62"))
    seeds[1].with_name("seed4").mkdir()
    text = (seeds[1] / "results.json").read_text().replace('"seed": 2', '"seed": 4')
    (seeds[1].with_name("seed4") / "results.json").write_text(text)
    code, lines = same(capsys, sweep, file)
    assert code == 1 and lines == [
        f"9 of 12 {head}",
        "dpd P2C c DescribableTextures 16 base 1 base2new: accuracy 60.3334 (recorded 60.3333)",
        "dpd P2C c DescribableTextures 16 base 2 base2new: another cloud",
        "dpd P2C c DescribableTextures 16 base 4 base2new: not in the record",
    ]


def test_results_same_lists_ten(sweep, tmp_path, capsys):
    file = tmp_path / "sweep.jsonl"
    assert keep(sweep, file) == 0
    code, lines = same(capsys, sweep / "plain", file)  # its settings are not the sweep's then
    assert code == 1 and lines[0].startswith("0 of 6 ") and len(lines) == 7
    file.write_text(re.sub('"accuracy": .', '"accuracy": 5', file.read_text()))
    code, lines = same(capsys, sweep, file)
    assert code == 1 and len(lines) == 12 and lines[-1] == "and 2 more"
