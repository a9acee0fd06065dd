"""results.records and results.tables on logs in upstream's forms and on results.json files, all
written by hand here.

Expected numbers are worked out in the comments or come from scipy.stats.
"""

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path

import pytest
from scipy import stats

import parse_test_res
from results import tables
from results.names import name_methods
from results.paper import paper_ablations
from results.protocols import TEN, dataset_name
from results.records import find_results, place_by_record
from results.statistics import paired_difference
from results.text_table import show_delta
from runs import plan, protocol

from .test_parse import EPOCH, RERUN, block, record, trained, trained_05, write

REPO = Path(__file__).resolve().parents[1]
P2C = "P2C/vit_b16_ep5_batch4"
MAPLE = "MaPLe/vit_b16_c2"


def pair(root, dataset, method, seed, base, new, log=trained, shots=16):
    """A training and its test on the new classes, as logs."""
    place = f"{dataset}/shots_{shots}/{method}/seed{seed}/log.txt"
    write(
        root, {f"base2new/train_base/{place}": log(base), f"base2new/test_new/{place}": block(new)}
    )


@pytest.fixture
def logs(tmp_path):
    """Two datasets × two methods × three seeds; P2C's logs are of Dassl 0.5."""
    numbers = {
        ("dtd", P2C): [(80.0, 60.0), (82.0, 62.0), (84.0, 58.0)],
        ("dtd", MAPLE): [(80.0, 58.0), (80.0, 60.0), (80.0, 59.0)],
        ("eurosat", P2C): [(90.0, 80.0), (92.0, 70.0), (94.0, 75.0)],
        ("eurosat", MAPLE): [(96.0, 70.0), (94.0, 72.0), (92.0, 71.0)],
    }
    for (dataset, method), seeds in numbers.items():
        for seed, (base, new) in enumerate(seeds, 1):
            pair(
                tmp_path, dataset, method, seed, base, new, trained_05 if method == P2C else trained
            )
    return tmp_path, numbers


def call(*args):
    command = [sys.executable, "-m", "results.tables", *map(str, args)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, encoding="utf-8")
    assert "Traceback" not in done.stderr
    return done


def rows_of(capsys, *args):
    """The csv table by (dataset, method), and what was warned of."""
    assert tables.main([*map(str, args), "--format", "csv"]) == 0
    out = capsys.readouterr().out
    return {(row["dataset"], row["method"]): row for row in csv.DictReader(io.StringIO(out))}


def floats(row, names):
    return [float(row[name]) if row[name] else None for name in names.split()]


def hm(base, new):
    return 2 * base * new / (base + new)


# finding runs


def test_the_familys_folders(tmp_path):
    files = {
        "o/base2new/train_base/dtd/shots_16/P2C/c/seed1/log.txt": trained(80.0),
        "o/base2new/test_new/dtd/shots_16/P2C/c/seed1/log.txt": block(60.0),
        "o/imagenet/P2C/c_cross_16shots/seed2/log.txt": trained_05(70.0),
        "o/evaluation/P2C/c_cross_16shots/dtd/seed2/log.txt": block(45.0),
        "o/evaluation/P2C/c_cross_16shots/imagenet_a/seed2/log.txt": block(50.0),
        "o/caltech101/CoOp/rn50_ctxv1_4shots/seed3/log.txt": trained(90.0),
        "o/my_data/CoOp/c_4shots/seed3/log.txt": trained(91.0),
    }
    found = find_results([write(tmp_path, files)])
    got = {
        (
            r.dataset,
            r.trainer,
            r.cfg,
            r.shots,
            r.seed,
            r.protocol,
            r.side,
            r.metrics["accuracy"],
            r.root.name,
        )
        for r in found
    }
    assert got == {
        ("DescribableTextures", "P2C", "c", 16, 1, "base2new", "base", 80.0, "o"),
        ("DescribableTextures", "P2C", "c", 16, 1, "base2new", "new", 60.0, "o"),
        ("ImageNet", "P2C", "c_cross", 16, 2, "few_shot", "all", 70.0, "o"),
        ("DescribableTextures", "P2C", "c_cross", 16, 2, "xd", "all", 45.0, "o"),
        ("ImageNetA", "P2C", "c_cross", 16, 2, "dg", "all", 50.0, "o"),
        ("Caltech101", "CoOp", "rn50_ctxv1", 4, 3, "few_shot", "all", 90.0, "o"),
        ("my_data", "CoOp", "c", 4, 3, "few_shot", "all", 91.0, "o"),
    }
    assert all(
        r.record is None and r.metrics["error_rate"] == 1.0 and r.metrics["macro_f1"] == 50.0
        for r in found
    )
    assert all((r.folder / "log.txt").is_file() for r in found)


def test_a_folder_is_found_once_and_from_anywhere(tmp_path, monkeypatch):
    pair(tmp_path, "dtd", P2C, 1, 80.0, 60.0)
    seed = tmp_path / f"base2new/train_base/dtd/shots_16/{P2C}/seed1"
    write(
        seed, {"old/dtd/P2C/c_16shots/seed1/log.txt": trained(1.0)}
    )  # what is put aside in a run's folder
    assert len(find_results([tmp_path, tmp_path / "base2new", seed])) == 2
    monkeypatch.chdir(seed)
    [result] = find_results([Path(".")])
    assert (result.dataset, result.side, result.folder) == (
        "DescribableTextures",
        "base",
        seed.resolve(),
    )


def test_a_folder_may_have_any_name(tmp_path):
    pair(tmp_path / "a\nb\x1b[2J", "evil\x1b[31m", "P2C/a\nb", 1, 80.0, 60.0)
    found = find_results([tmp_path])
    assert len(found) == 2
    for result in found:
        assert (result.dataset, result.cfg) == (r"evil\x1b[31m", r"a\nb")
        assert result.root.name == "a\nb\x1b[2J"  # a folder to be opened


def test_a_record_goes_before_its_log_and_a_later_log_before_the_record(tmp_path, caplog):
    folder = tmp_path / "dtd/P2C/c_16shots/seed1"
    write(folder, {"log.txt": trained(85.2), "results.json": record(85.2345, subsample="all")})
    [result] = find_results([tmp_path])
    assert (
        result.metrics["accuracy"] == 85.2345
        and result.record["parameters"] == 1000
        and not caplog.text
    )
    write(folder, {RERUN: f"{EPOCH}\n{block(11.1)}"})  # a rerun that was killed
    [result] = find_results([tmp_path])
    assert (
        result.metrics["accuracy"] == 85.2345
        and f"no finished run in the newer {RERUN}" in caplog.text
    )
    write(folder, {RERUN: trained(70.0)})  # as upstream's code leaves it
    [result] = find_results([tmp_path])
    assert result.metrics["accuracy"] == 70.0 and result.record is None
    assert f"{RERUN} is newer than results.json" in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"format": 2, "metrics": {"accuracy": 1}}', '{"format": 1}', record("51.5"),
        record(float("nan")), record(250.0), record(-1.0),
        record(80.0, log=1), record(80.0, parameters=None), record(80.0, metrics={"accuracy": 1}),
        "[" * 99999, record(80.0, loss=["low"]), record(80.0, epoch_seconds=[{}]),
        record(80.0, versions=["torch 2"]), record(80.0, more={"ece": "low"}),
        record(80.0, more={"ece": float("nan")}), record(80.0, more={"top5_accuracy": 100.1}),
        record(80.0, per_class_metrics=[]), record(80.0, per_class_metrics={"cat": 7}),
        record(80.0, per_class_metrics={"cat": {"recall": None}}),
        record(80.0, images_per_second=7), record(80.0, peak_memory_mb={"process": "much"}),
        record(80.0, commit=7),
        record(80.0, finished=None), record(80.0, machine=[]), record(80.0, config={"OPTIM": 3}),
        record(80.0, config={"TRAINER": {"P2C": []}}),
        record(80.0, config={"TRAINER": {"ATPROMPT": None}}),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_used(tmp_path, caplog, text):
    write(tmp_path / "dtd/P2C/c_16shots/seed1", {"log.txt": trained(85.2), "results.json": text})
    [result] = find_results([tmp_path])
    assert result.metrics["accuracy"] == 85.2 and "results.json" in caplog.text


def test_records_in_folders_of_ones_own(tmp_path, caplog):
    files = {
        "a/results.json": record(80.0),
        "b/results.json": record(60.0, subsample="new", eval_only=True),
    }
    files["c/results.json"] = record(50.0, dataset="ImageNetR", subsample="all", eval_only=True)
    files["d/seed1/log.txt"] = trained(1.0)  # nothing says what this is
    base, new, variant = find_results([write(tmp_path, files)])
    assert (base.cfg, base.protocol, base.side, new.side) == ("my_cfg", "base2new", "base", "new")
    assert (variant.protocol, variant.dataset) == (
        "dg",
        "ImageNetR",
    ) and base.root == new.root == tmp_path.resolve()
    assert f"{tmp_path}/d/seed1: what was run is not known" in caplog.text


def test_the_same_run_twice_counts_once(tmp_path, caplog):
    write(tmp_path, {"a/results.json": record(80.0), "b/results.json": record(70.0)})
    [result] = find_results([tmp_path])
    assert (
        result.metrics["accuracy"] == 80.0 and "hold the same run; the first counts" in caplog.text
    )


def test_a_record_that_contradicts_its_folder_is_named(tmp_path, caplog):
    write(
        tmp_path / "dtd/P2C/c_16shots/seed2",
        {"results.json": record(80.0, subsample="all", seed=7, shots=4)},
    )
    [result] = find_results([tmp_path])
    assert (result.seed, result.shots) == (2, 16)
    for key, value in (("seed", 7), ("shots", 4)):
        assert (
            f"results.json says {key} {value}, and not what its folder's name says" in caplog.text
        )


def test_runs_with_different_settings_are_named(tmp_path, caplog):
    def put(side, seed, lr, n_ctx):
        config = {"TRAINER": {"P2C": {"N_CTX": n_ctx}}, "OPTIM": {"LR": lr}, "SEED": seed}
        text = record(
            80.0,
            config=config,
            seed=seed,
            eval_only=side == "test_new",
            subsample=side.split("_")[1],
        )
        write(tmp_path / side / "dtd/shots_16/P2C/c" / f"seed{seed}", {"results.json": text})

    put("train_base", 1, 0.1, 2), put("train_base", 2, 0.1, 2), put("test_new", 1, 0.2, 2)
    find_results([tmp_path])
    assert not caplog.text  # a test has no learning rate
    put("train_base", 2, 0.3, 4)
    find_results([tmp_path])
    for line in (
        "made with different settings: TRAINER.P2C.N_CTX 2 / 4",
        "settings: OPTIM.LR 0.1 / 0.3",
    ):
        assert line in caplog.text


def test_what_else_decides_a_result_is_compared(tmp_path, caplog):
    """Seeds of other batches, images or CLIPs; not what changes no result, or is another's."""
    usual = {"TRAINER": {"COOP": {"N_CTX": 4}}, "DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 4}}}
    usual |= {"INPUT": {"TRANSFORMS": "flip", "SIZE": 32}, "MODEL": {"BACKBONE": {"WEIGHTS": "a"}}}
    usual |= {"TEST": {"FINAL_MODEL": "last_step"}, "LOSS": {"GM": 1}}
    usual["DATALOADER"]["K_TRANSFORMS"] = 1
    usual["INPUT"] |= {"INTERPOLATION": "a", "PIXEL_MEAN": "a"}
    clip = {"name": "ViT-B/16", "file": "a", "sha256": "12"}

    def warned(changes: dict, **of_record) -> str:
        caplog.clear()
        for seed, change in ((1, {}), (2, changes)):
            config = {key: usual[key] | change.get(key, {}) for key in usual}
            more = {"seed": seed, "clip": clip, "config_of_others": ["TRAINER.COOP"]}
            text = record(80.0, config=config, **more | (of_record if seed == 2 else {}))
            folder = "train_base/dtd/shots_16/P2C/c"
            write(tmp_path, {f"{folder}/seed{seed}/results.json": text})
        find_results([tmp_path])
        return caplog.text

    assert "DATALOADER.TRAIN_X.BATCH_SIZE 32 / 4" in warned(
        {"DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 32}}}
    )
    assert "INPUT.TRANSFORMS crop / flip" in warned({"INPUT": {"TRANSFORMS": "crop"}})
    final = {"FINAL_MODEL": "best_val"}
    assert "TEST.FINAL_MODEL best_val / last_step" in warned({"TEST": final})
    assert "LOSS.GM 1 / 2" in warned({"LOSS": {"GM": 2}})
    assert "DATALOADER.K_TRANSFORMS 1 / 2" in warned({"DATALOADER": {"K_TRANSFORMS": 2}})
    assert "CLIP 12 / 34" in warned({}, clip=clip | {"sha256": "34"})
    assert "CLIP 12 / 12 gelu" in warned({}, clip=clip | {"activation": "gelu"})
    elsewhere = {"MODEL": {"BACKBONE": {"WEIGHTS": "b", "NAME": "/b"}, "INIT_WEIGHTS": "seed2"}}
    assert not warned(elsewhere, clip=clip | {"file": "b", "name": "/b"})
    assert not warned({"TRAINER": {"COOP": {"N_CTX": 16}}})
    test = {"eval_only": True, "model": {"epoch": 2}}
    assert not warned({"INPUT": {"TRANSFORMS": "crop"}}, **test)
    assert "INPUT.SIZE 224 / 32" in warned({"INPUT": {"SIZE": 224}}, **test)
    for key in ("INTERPOLATION", "PIXEL_MEAN"):
        assert f"INPUT.{key} a / b" in warned({"INPUT": {key: "b"}}, **test)


def test_a_test_of_another_epoch_is_named(tmp_path, caplog):
    for seed, epoch in ((1, None), (2, 5)):
        text = record(80.0, seed=seed, eval_only=True, subsample="new", model={"epoch": epoch})
        write(tmp_path, {f"test_new/dtd/shots_16/P2C/c/seed{seed}/results.json": text})
    find_results([tmp_path])
    assert "made with different settings: --load-epoch 5 / None" in caplog.text


def test_the_config_is_found_in_a_command():
    for words, name in (
        (["--config-file", "/my configs/it's.yaml", "--seed", "1"], "it's"),
        (["--config-file=/my configs/b.yaml"], "b"),
        (["--seed", "1"], ""),
    ):
        run = json.loads(record(80.0, command=shlex.join(["python", "train.py", *words])))
        assert place_by_record(run, tmp := Path("x"))["cfg"] == name
    run["command"] = "python 'train.py --config-file a/c.yaml"
    assert place_by_record(run, tmp)["cfg"] == "c"


def test_settings_for_one_dataset_are_the_same_method(tmp_path, capsys, monkeypatch):
    """In the very folders of Table 1, where the scripts take configs of their own for ImageNet
    and SUN397."""
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    for method, dataset in product(("tcp", "mma", "coop", "p2c"), ("imagenet", "sun397", "dtd")):
        for run in plan.Plan("base2new").runs(method, dataset, 1):
            write(run.folder, {"log.txt": trained(80.0)})
    configs = {r.cfg for r in find_results([tmp_path])}
    assert {"vit_b16_ep100_ctxv1_sun397", "vit_b16_ep5_imnet", "vit_b16_ctxv1_imnet"} < configs
    averages = {
        method for dataset, method in rows_of(capsys, "base2new", tmp_path) if dataset == "Average"
    }
    assert averages == {"TCP", "MultiModalAdapter", "CoOp", "P2C"}


def test_names_tell_variants_apart_with_as_little_as_it_takes(tmp_path):
    for root, method in [
        ("usual", "P2C/c"),
        ("s_h_1", "P2C/c"),
        ("usual", "CoOp/a"),
        ("usual", "CoOp/b"),
        ("usual", "TCP/x"),
        (".", "TCP/x"),
    ]:
        write(tmp_path, {f"{root}/dtd/{method}_16shots/seed1/log.txt": trained(80.0)})
    names = name_methods(find_results([tmp_path])).values()
    assert sorted(names) == ["CoOp a", "CoOp b", "P2C s_h_1", "P2C usual", "TCP", "TCP usual"]


def test_configs_compared_on_one_dataset_keep_their_names(tmp_path):
    for root, cfg in (("a", "x"), ("b", "x_imnet")):
        write(tmp_path, {f"{root}/imagenet/CoOp/{cfg}_16shots/seed1/log.txt": trained(80.0)})
    assert sorted(name_methods(find_results([tmp_path])).values()) == ["CoOp x", "CoOp x_imnet"]


# base to new


def test_base_to_new_by_hand(logs, capsys):
    root, _ = logs
    rows = rows_of(capsys, "base2new", root)
    columns = "base_mean base_std new_mean new_std hm_mean hm_std".replace("hm", "HM")
    # MaPLe on DTD: base 80 ± 0; new 59 ± √(2/3); HM of 80 with 58, 60, 59: 67.2464, 68.5714,
    # 67.9137
    got = floats(rows["DescribableTextures", "MaPLe"], columns)
    assert got == pytest.approx([80, 0, 59, (2 / 3) ** 0.5, 67.9105, 0.5410], abs=1e-4)
    # averages over the two: base (80 + 94) / 2 = 87, new (59 + 71) / 2 = 65; 2 · 87 · 65 / 152 =
    # 74.4079
    assert floats(rows["Average", "MaPLe"], "base_mean new_mean HM_mean") == [87, 65, 74.4079]
    on_eurosat = (hm(96, 70) + hm(94, 72) + hm(92, 71)) / 3
    assert floats(rows["Average of HMs", "MaPLe"], "HM_mean") == [
        pytest.approx((67.9105 + on_eurosat) / 2, abs=1e-3)
    ]
    per_seed = [
        (hm(80, a) + hm(b, c)) / 2 for a, b, c in [(58, 96, 70), (60, 94, 72), (59, 92, 71)]
    ]
    spread = (sum((x - sum(per_seed) / 3) ** 2 for x in per_seed) / 3) ** 0.5
    assert floats(rows["Average of HMs", "MaPLe"], "HM_std") == [pytest.approx(spread, abs=1e-4)]


def test_paired_differences_are_scipys(logs, capsys):
    root, numbers = logs
    rows = rows_of(capsys, "base2new", root, "--baseline", "MaPLe")
    names = "delta_mean delta_low delta_high delta_n"
    everything = [], []
    for folder, dataset in ("dtd", "DescribableTextures"), ("eurosat", "EuroSAT"):
        ours, theirs = ([hm(*seed) for seed in numbers[folder, method]] for method in (P2C, MAPLE))
        everything[0].extend(ours), everything[1].extend(theirs)
        low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        got = floats(rows[dataset, "P2C"], names)
        assert got == pytest.approx([sum(ours) / 3 - sum(theirs) / 3, low, high, 3], abs=1e-4)
    low, high = stats.ttest_rel(*everything).confidence_interval(0.95)
    got = floats(rows["Average of HMs", "P2C"], names)
    assert got[1:] == pytest.approx([low, high, 6], abs=1e-4)
    assert (
        rows["DescribableTextures", "MaPLe"]["delta_n"] == "" == rows["Average", "P2C"]["delta_n"]
    )


def test_pairs_are_of_equal_seeds_and_one_has_no_interval():
    ours = {("a", 1): 5.0, ("a", 2): 7.0, ("b", 1): 9.0}
    assert paired_difference(ours, {("a", 2): 4.0, ("b", 2): 1.0})[::2] == (3.0, 1)
    assert "[" not in show_delta(paired_difference(ours, {("a", 2): 4.0}))
    assert paired_difference(ours, {("c", 1): 4.0}) is None
    # differences 1 and 3: mean 2, s = √2, t(0.975, 1) = 12.7062, so half the interval is 12.7062 ·
    # √2 / √2
    two = paired_difference(ours, {("a", 1): 4.0, ("a", 2): 4.0})
    assert two == (2.0, pytest.approx(12.7062, abs=1e-4), 2)
    assert show_delta(two) == "+2.0 [−10.7, +14.7] (n=2)"


def test_failed_seed_rerun_and_mixed_methods(logs):
    root, _ = logs
    # A seed that failed, in a log of its own; its test is still there from an earlier day.
    write(
        root,
        {f"base2new/train_base/dtd/shots_16/{P2C}/seed3/log.txt": f"{EPOCH}\nRuntimeError: boom\n"},
    )
    write(root, {f"base2new/train_base/dtd/shots_16/{MAPLE}/seed1/{RERUN}": trained(86.0)})
    pair(root, "dtd", "CoOp/vit_b16", 1, 70.0, 50.0)
    done = call("base2new", root, "--format", "csv", "--baseline", "MaPLe")
    assert done.returncode == 0
    rows = {(r["dataset"], r["method"]): r for r in csv.DictReader(io.StringIO(done.stdout))}
    assert floats(rows["DescribableTextures", "P2C"], "base_mean base_seeds") == [
        81,
        2,
    ]  # of 80 and 82
    assert floats(rows["DescribableTextures", "P2C"], "delta_n") == [2]
    assert floats(rows["DescribableTextures", "MaPLe"], "base_mean base_seeds") == [
        82,
        3,
    ]  # of 86, 80 and 80
    assert floats(rows["Average", "CoOp (over 1 of 2 datasets)"], "base_mean") == [70]
    assert rows["Average of HMs", "P2C"]["HM_std"] == ""  # its datasets have different seeds
    warnings = done.stderr.splitlines()
    assert any(
        f"{P2C}/seed3: no accuracy of a finished run in log.txt" in line for line in warnings
    )
    assert any(
        "DescribableTextures, P2C, seed 3: no base result, seed not counted" in line
        for line in warnings
    )
    assert any("CoOp: no result on EuroSAT" in line for line in warnings)
    assert len(warnings) == 3


def cells(text, fmt):
    """The cells of the rows of a laid out table, by method."""
    if fmt == "text":
        rule = next(line for line in text.splitlines() if line.startswith("---"))
        spans = [match.span() for match in re.finditer("-+", rule)]
        table = [[line[a:b].strip() for a, b in spans] for line in text.splitlines()]
    else:
        text = re.sub(r"\\phantom\{.*?\}", "", text)  # only there to be as wide as another
        table = [re.split(r"\||&", line.strip().strip("|\\")) for line in text.splitlines()]
        table = [[c.strip().rstrip("\\").strip() for c in line] for line in table]
        for above, line in pairwise(table):
            line[0] = line[0] or above[0]  # latex does not repeat it
    return {line[1]: line for line in table if len(line) > 4 and line[0] in ("EuroSAT",)}


def test_an_average_over_fewer_datasets_takes_no_mark(logs, capsys):
    root, _ = logs
    pair(root, "eurosat", "CoOp/vit_b16", 1, 99.0, 99.0)
    assert tables.main(["base2new", str(root)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "CoOp" in line]
    marked = {line.split()[0]: "99.0 *" in line for line in lines}
    assert (
        marked == {"EuroSAT": True, "Average": False}
        and sum("over 1 of 2" in line for line in lines) == 2
    )


@pytest.mark.parametrize(
    "fmt, best, second",
    [
        ("text", "95.0 *", "94.0 ± 1.6 _"),
        ("markdown", "**95.0**", "<u>94.0 ± 1.6</u>"),
        ("latex", r"\textbf{95.0}", r"\underline{94.0 $\pm$ 1.6}"),
    ],
)
def test_best_and_second(logs, capsys, fmt, best, second):
    root, _ = logs
    pair(root, "eurosat", "CoOp/vit_b16", 1, 95.0, 75.0)
    assert tables.main(["base2new", str(root), "--format", fmt]) == 0
    rows = cells(capsys.readouterr().out, fmt)
    # base: CoOp 95, MaPLe 94, P2C 92; new: CoOp and P2C 75, MaPLe 71, which is then second
    assert (rows["CoOp"][2], rows["MaPLe"][2]) == (best, second)
    plain = r"92.0 $\pm$ 1.6" if fmt == "latex" else "92.0 ± 1.6"
    assert rows["P2C"][2] == plain
    assert rows["CoOp"][3][:2] == rows["P2C"][3][:2] == best[:2] or fmt == "text"
    if fmt == "text":
        assert [rows[m][3][-1] for m in ("CoOp", "P2C", "MaPLe")] == ["*", "*", "_"]


def test_latex_is_escaped_and_has_no_other_signs(tmp_path, capsys):
    for cfg in ("c_1", "c_2"):
        pair(tmp_path, "my_data", f"MaPLe/{cfg}", 1, 60.0, 50.0)
    assert tables.main(["ablation", str(tmp_path), "--format", "latex"]) == 0
    out = capsys.readouterr().out
    body = "\n".join(line for line in out.splitlines() if not line.startswith("%"))
    assert r"MaPLe c\_2" in body and r"\Delta" in body and body.isascii()


def test_the_papers_numbers_are_marked(logs, capsys):
    root, _ = logs
    pair(root, "food101", P2C, 1, 90.0, 90.0)
    rows = rows_of(capsys, "base2new", root, "--paper")
    assert floats(rows["Food101", "P2C (paper)"], "base_mean new_mean HM_mean") == [
        90.7,
        92.0,
        91.3,
    ]
    assert floats(rows["DescribableTextures", "MaPLe (paper)"], "HM_mean base_std") == [68.2, None]
    assert (
        rows["Food101", "P2C (paper)"]["source"] == "paper"
        and rows["Food101", "P2C"]["source"] == "run"
    )
    assert ("DescribableTextures", "P2C (paper)") not in rows  # not legible in our copy
    assert not any(
        dataset.startswith("Average") and "paper" in method for dataset, method in rows
    )  # not the eleven
    assert tables.main(["base2new", str(root), "--paper", "--format", "markdown"]) == 0
    line = next(
        line
        for line in capsys.readouterr().out.splitlines()
        if "Food101" in line and "(paper)" in line
    )
    assert "**" not in line and "<u>" not in line


def test_the_papers_average_is_over_the_eleven_only_and_for_16_shots(tmp_path, capsys):
    names = "imagenet caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft"
    for dataset in f"{names} sun397 dtd eurosat ucf101".split():
        pair(tmp_path, dataset, P2C, 1, 80.0, 60.0)
        pair(tmp_path / "four", dataset, P2C, 1, 80.0, 60.0, shots=4)
    rows = rows_of(capsys, "base2new", tmp_path / "base2new", "--paper")
    assert floats(rows["Average", "P2C (paper)"], "base_mean new_mean HM_mean") == [
        83.5,
        76.1,
        79.7,
    ]
    assert not any(
        "paper" in method for _, method in rows_of(capsys, "base2new", tmp_path / "four", "--paper")
    )


def test_the_papers_data_say_where_they_are_from():
    data = json.loads((REPO / "docs/paper_results.json").read_text())
    assert "2511.22897" in data["source"] and "78.5 in Table 4" in data["disagreements"]


OTHERS = "MMRL VaMP VaMP_MMRL ReBaPL_MaPLe ReBaPL_MMRL BayesianPrompt".split()


@pytest.mark.parametrize("trainer", OTHERS)
def test_other_papers_numbers_are_near_what_their_averages_say(trainer):
    """Which finds a slip in any of them."""
    other = json.loads((REPO / "docs/paper_results.json").read_text())["others"][trainer]
    assert re.search(r"arXiv \d{4}\.\d{5}", other["source"])
    rows = dict(other["base2new"])
    average = rows.pop("Average")
    for base, new, mean in rows.values():
        assert base is None or abs(mean - hm(base, new)) < 0.11  # MMRL's of DTD is off in its paper
    for i in (0, 1) if rows else ():
        values = [row[i] for row in rows.values() if row[i] is not None]
        assert len(values) == (11 if average[i] is not None else 0)
        assert not values or abs(sum(values) / 11 - average[i]) < 0.015
    for kind in ("xd", "dg"):
        targets = dict(other.get(kind, {}))
        targets.pop("ImageNet", None)
        average = targets.pop("target average", None)
        assert average is None or abs(sum(targets.values()) / len(targets) - average) < 0.015


def test_another_papers_numbers_and_their_source(tmp_path, capsys):
    for dataset in ("imagenet", *TEN):
        pair(tmp_path, dataset, "VaMP_MMRL/vit_b16", 1, 80.0, 60.0)
        pair(tmp_path, dataset, "VaMP/vit_b16", 1, 80.0, 60.0)
    rows = rows_of(capsys, "base2new", tmp_path, "--paper")
    means = "base_mean new_mean HM_mean"
    assert floats(rows["Average", "VaMP_MMRL (paper)"], means) == [86.45, 78.67, 82.37]
    assert floats(rows["EuroSAT", "VaMP_MMRL (paper)"], means) == [95.78, 77.21, 85.49]
    assert floats(rows["Average", "VaMP (paper)"], means) == [85.13, 78.07, 81.45]
    assert ("EuroSAT", "VaMP (paper)") not in rows
    assert tables.main(["base2new", str(tmp_path), "--paper"]) == 0
    assert "VaMP (paper): not P2C's paper: Cheng & Han, NeurIPS 2025" in capsys.readouterr().out


def test_what_empl_is_made_after_stands_below_every_table(tmp_path, capsys):
    pair(tmp_path, "shapes", "EMPL/vit_tiny", 1, 80.0, 60.0)
    for command in tables, parse_test_res:
        words = (
            ["base2new", str(tmp_path)]
            if command is tables
            else ["--hm", str(tmp_path / "base2new")]
        )
        assert command.main(words) == 0
        assert "EMPL: made after the abstract of Chen" in capsys.readouterr().out
    lines = protocol.grid_table({("Shapes", "EMPL"): {"1": {1: 50.0}}}, ["1"], "", "text")
    assert "EMPL: made after the abstract of Chen" in lines


# the other kinds


def test_cross_dataset(tmp_path, capsys):
    values = {
        "imagenet": (70.0, 72.0),
        "dtd": (44.0, 46.0),
        "eurosat": (50.0, 54.0),
        "imagenet_r": (77.0, 78.0),
    }
    for dataset, seeds in values.items():
        for seed, value in enumerate(seeds, 1):
            run = (
                f"P2C/c_16shots/seed{seed}"
                if dataset == "imagenet"
                else f"P2C/c_16shots/{dataset}/seed{seed}"
            )
            folder = f"imagenet/{run}" if dataset == "imagenet" else f"evaluation/{run}"
            write(
                tmp_path,
                {f"{folder}/log.txt": trained(value) if dataset == "imagenet" else block(value)},
            )
    write(tmp_path, {"evaluation/MaPLe/c_16shots/dtd/seed1/log.txt": block(45.0)})
    write(
        tmp_path, {"food101/P2C/c_16shots/seed1/log.txt": trained(99.0)}
    )  # few-shot: no part of this
    rows = rows_of(capsys, "xd", tmp_path, "--paper", "--baseline", "p2c")
    means = "ImageNet_mean DescribableTextures_mean EuroSAT_mean average_mean average_std"
    # average per seed: 47 and 50
    assert floats(rows["", "P2C"], means) == [71, 45, 52, 48.5, 1.5]
    assert floats(rows["", "P2C (paper)"], means) == [
        71.2,
        44.4,
        49.5,
        None,
        None,
    ]  # the paper's is over ten targets
    assert floats(rows["", "MaPLe (over 1 of 2 datasets)"], means)[:4] == [None, 45, None, 45]
    got = floats(rows["", "MaPLe (over 1 of 2 datasets)"], "delta_mean delta_n delta_low")
    assert got == [1, 1, None]
    rows = rows_of(capsys, "dg", tmp_path)
    assert floats(rows["", "P2C"], "ImageNet_mean ImageNetR_mean average_mean") == [71, 77.5, 77.5]


def test_domain_generalisation_with_the_papers_average(tmp_path, capsys):
    for dataset in ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"):
        write(tmp_path, {f"evaluation/MaPLe/c_16shots/{dataset}/seed1/log.txt": block(60.0)})
    write(tmp_path, {"imagenet/MaPLe/c_16shots/seed1/log.txt": trained(70.0)})
    row = rows_of(capsys, "dg", tmp_path, "--paper")["", "MaPLe (paper)"]
    assert floats(row, "ImageNet_mean ImageNetA_mean average_mean") == [70.7, 50.9, 60.3]


def test_few_shot(tmp_path, capsys):
    for dataset, shots, seed, value in [
        ("dtd", 1, 1, 50.0), ("dtd", 1, 2, 54.0), ("dtd", 4, 1, 60.0), ("dtd", 4, 2, 62.0),
        ("eurosat", 1, 1, 70.0), ("eurosat", 1, 2, 72.0),
        ("eurosat", 4, 1, 80.0), ("eurosat", 4, 2, 84.0),
    ]:  # fmt: skip
        write(tmp_path, {f"{dataset}/P2C/c_{shots}shots/seed{seed}/log.txt": trained(value)})
        write(
            tmp_path,
            {f"{dataset}/CoOp/c_{shots}shots/seed{seed}/log.txt": trained(value - 2 * shots)},
        )
    rows = rows_of(capsys, "few_shot", tmp_path, "--baseline", "CoOp")
    assert floats(rows["DescribableTextures", "P2C"], "1_mean 1_std 4_mean 4_std") == [52, 2, 61, 1]
    assert floats(rows["Average", "P2C"], "1_mean 1_std 4_mean 4_std") == [61.5, 1.5, 71.5, 1.5]
    # two pairs of each difference 2 and 8: mean 5, s = √12, n = 4, t(0.975, 3) = 3.1824
    got = floats(rows["DescribableTextures", "P2C"], "delta_mean delta_low delta_high delta_n")
    half = 3.18245 * 12**0.5 / 2
    assert got == pytest.approx([5, 5 - half, 5 + half, 4], abs=1e-3)


def test_a_method_with_fewer_shots_has_a_whole_average(tmp_path, capsys):
    for dataset in ("dtd", "eurosat"):
        for method, shots in (("P2C", 1), ("P2C", 16), ("CoOp", 16)):
            write(tmp_path, {f"{dataset}/{method}/c_{shots}shots/seed1/log.txt": trained(60.0)})
    write(tmp_path, {"dtd/MaPLe/c_16shots/seed1/log.txt": trained(60.0)})
    of_average = {
        method for block, method in rows_of(capsys, "few_shot", tmp_path) if block == "Average"
    }
    assert of_average == {"P2C", "CoOp", "MaPLe (over 1 of 2 datasets)"}


def test_a_baseline_is_also_called_by_its_settings_folder(tmp_path, capsys):
    """As in a sweep whose settings are keys and values, or a config of another name."""
    pair(tmp_path / "baseline", "shapes", "P2C/vit_tiny", 1, 80.0, 50.0)
    pair(tmp_path / "aux", "shapes", "P2C/vit_tiny_other", 1, 80.0, 60.0)
    rows = rows_of(capsys, "ablation", tmp_path, "--baseline", "baseline")
    gain = hm(80, 60) - hm(80, 50)
    assert floats(rows["", "P2C vit_tiny_other"], "delta_mean") == [pytest.approx(gain, abs=1e-4)]
    # but a folder that all methods share names none
    for method, new in (("MaPLe", 50.0), ("P2C", 60.0)):
        pair(tmp_path / "of/maple", "shapes", f"{method}/vit_tiny", 1, 80.0, new)
    of_one = rows_of(capsys, "base2new", tmp_path / "of", "--baseline", "maple")
    assert floats(of_one["Shapes", "P2C"], "delta_mean") == [pytest.approx(gain, abs=1e-4)]


def test_ablation_of_a_sweeps_settings(tmp_path, capsys):
    for setting, new in [("baseline", 50.0), ("dpd_gmm_aux", 60.0)]:
        for seed in (1, 2):
            pair(tmp_path / setting, "shapes", "P2C/vit_tiny", seed, 80.0, new + seed)
    rows = rows_of(capsys, "ablation", tmp_path, "--paper")
    gains = [hm(80, 60 + seed) - hm(80, 50 + seed) for seed in (1, 2)]
    got = floats(rows["", "P2C dpd_gmm_aux"], "base_mean new_mean HM_mean delta_mean delta_n")
    assert got[:3] == pytest.approx([80, 61.5, (hm(80, 61) + hm(80, 62)) / 2], abs=1e-4)
    assert got[3:] == pytest.approx([sum(gains) / 2, 2], abs=1e-4)
    assert not any("paper" in method for _, method in rows)  # whose numbers are of eleven datasets
    other = rows_of(capsys, "ablation", tmp_path, "--baseline", "dpd_gmm_aux")
    assert floats(other["", "P2C baseline"], "delta_mean") == [
        pytest.approx(-sum(gains) / 2, abs=1e-4)
    ]


def test_the_papers_ablation_is_of_its_eleven_datasets(tmp_path, capsys):
    for dataset in ("imagenet", *TEN):
        for setting in ("baseline", "dpd_gmm_aux"):
            pair(tmp_path / setting, dataset, P2C, 1, 80.0, 60.0)
    rows = rows_of(capsys, "ablation", tmp_path, "--paper")
    assert floats(rows["", "P2C dpd_gmm_aux (paper)"], "base_mean HM_mean") == [None, 78.5]
    assert floats(rows["", "P2C baseline (paper)"], "HM_mean") == [77.0]


def test_every_setting_of_the_papers_ablations_has_its_number():
    import yaml

    paper = paper_ablations(json.loads((REPO / "docs/paper_results.json").read_text()))
    for name, total in ("table4", 5), ("table5", 22):
        settings = yaml.safe_load((REPO / f"configs/sweeps/{name}.yaml").read_text())["settings"]
        assert len(settings) == total and not set(settings) - set(paper)
    assert (paper["usual"], paper["sigma_max_0.03"], paper["lambda_-1.0"], paper["dpd_gmm"]) == (
        78.7,
        75.4,
        77.5,
        78.3,
    )


def test_ablation_over_datasets_offers_both_averages(logs, capsys):
    root, numbers = logs
    rows = rows_of(capsys, "ablation", root)
    assert floats(rows["", "MaPLe"], "HM_mean") == [74.4079]
    hms = [hm(*pair) for folder in ("dtd", "eurosat") for pair in numbers[folder, MAPLE]]
    assert rows["", "MaPLe"]["HM (mean)_mean"] == f"{sum(hms) / 6:.4f}"


def test_costs_come_from_the_trainings_records(tmp_path, capsys):
    place = "dtd/shots_16/P2C/c/seed{}/results.json"
    for seed, seconds in (1, 60.0), (2, 80.0):
        trained_one = record(80.0, parameters=4_500_000, train_seconds=seconds, seed=seed)
        tested = record(
            60.0, parameters=9, train_seconds=None, eval_only=True, seed=seed
        )  # as one may only load
        write(
            tmp_path,
            {
                "train_base/" + place.format(seed): trained_one,
                "test_new/" + place.format(seed): tested,
            },
        )
    pair(tmp_path, "dtd", MAPLE, 1, 80.0, 60.0)
    rows = rows_of(capsys, "base2new", tmp_path, "--cost")
    assert floats(rows["DescribableTextures", "P2C"], "parameters train_s") == [4_500_000, 70]
    assert floats(rows["DescribableTextures", "MaPLe"], "parameters train_s") == [None, None]
    assert tables.main(["base2new", str(tmp_path), "--cost"]) == 0
    assert "4,500,000" in capsys.readouterr().out


# the command


def test_captions_say_what_is_what(logs, capsys):
    root, _ = logs
    assert tables.main(["base2new", str(root), "--baseline", "MaPLe", "--paper", "--cost"]) == 0
    out = capsys.readouterr().out
    for part in (
        "mean ± population std over seeds. * best, _ second best",
        "Average: HM of the average base and the average new, as in the paper. ",
        "in the paper. Average of HMs: over datasets.",
        "Δ HM: mean difference to MaPLe over n pairs of equal dataset and seed",
        "(paper): the P2C paper's number for ViT-B/16 and 16 shots, not measured here",
        "parameters: learned.",
    ):
        assert part in out


@pytest.mark.parametrize(
    "args, code, line",
    [
        (["base2new", "nowhere"], 2, "error: argument FOLDER: nowhere: no such folder"),
        (["table9", "."], 2, "error: argument KIND: invalid choice: 'table9'"),
        (["base2new"], 2, "error: the following arguments are required: FOLDER"),
        (["base2new", "{empty}"], 1, "error: no result for the base2new table in {empty}"),
        (["few_shot", "{logs}"], 1, "error: no result for the few_shot table in {logs}"),
        (
            ["base2new", "{logs}", "--baseline", "MaPel"],
            2,
            "error: --baseline MaPel is no method here; give one of: ",
        ),
    ],
)
def test_wrong_usage_is_one_line(logs, tmp_path_factory, args, code, line):
    places = {"empty": tmp_path_factory.mktemp("empty"), "logs": logs[0]}
    done = call(*(arg.format(**places) for arg in args))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert done.stderr.startswith(line.format(**places))


def test_a_transfer_table_is_of_one_source(tmp_path, capsys, caplog):
    """What a tested model was trained on is not in the folders' names, but in the record."""
    cfg = "P2C/c_16shots"
    for source, name, target, accuracies in (
        ("shapes", "Shapes", "Count", (81.0, 42.0)),
        ("shapes_fog", "ShapesFog", "Background", (83.0, 44.0)),
    ):
        test = f"evaluation/{cfg}/shapes_{target.lower()}/seed1"
        model = {"folder": f"../../../../../{source}/{cfg}/seed1"}
        ours, its = {"subsample": "all", "dataset": name}, {"eval_only": True, "model": model}
        its |= {"subsample": "all", "dataset": f"Shapes{target}"}
        files = {f"{source}/{cfg}/seed1/results.json": record(accuracies[0], **ours)}
        write(tmp_path, files | {f"{test}/results.json": record(accuracies[1], **its)})
    assert tables.main(["xd", str(tmp_path), "--format", "csv"]) == 0
    out = capsys.readouterr().out
    [row] = csv.DictReader(io.StringIO(out))
    assert floats(row, "Shapes_mean ShapesCount_mean average_mean") == [81, 42, 42]
    assert "Background" not in out
    [line] = caplog.messages
    assert line.startswith("tests of models that were trained on ShapesFog are not in this table:")
    shutil.rmtree(tmp_path / f"evaluation/{cfg}/shapes_count")
    [row] = rows_of(capsys, "xd", tmp_path).values()
    assert floats(row, "ShapesFog_mean ShapesBackground_mean") == [83, 44]


def test_a_test_on_the_source_is_no_target(tmp_path, capsys):
    """Nor is another output's training a target's result, or its test a source's."""
    cfg = "P2C/c_16shots"
    for out, source, name, accuracies in (
        ("a", "shapes", "Shapes", {"shapes": 80.0, "shapes_count": 40.0}),
        ("b", "shapes_count", "ShapesCount", {"shapes_count": 90.0, "shapes": 60.0}),
    ):
        ours = {"subsample": "all", "dataset": name}
        files = {f"{source}/{cfg}/seed1/results.json": record(accuracies[source], **ours)}
        model = {"folder": f"../../../../../{source}/{cfg}/seed1"}
        for target, accuracy in accuracies.items():
            its = {"subsample": "all", "dataset": dataset_name(target)}
            text = record(accuracy, **its, eval_only=True, model=model)
            files[f"evaluation/{cfg}/{target}/seed1/results.json"] = text
        write(tmp_path / out, files)
    [row] = rows_of(capsys, "xd", tmp_path / "a").values()
    assert floats(row, "Shapes_mean ShapesCount_mean average_mean") == [80, 40, 40]


def test_runs_behind_links_count_once(tmp_path, capsys):
    place = "base2new/{}/dtd/shots_16/P2C/c"
    for side, subsample in (("train_base", "base"), ("test_new", "new")):
        where = tmp_path / "out" / place.format(side)
        for seed in (1, 2):
            text = record(60 + seed, subsample=subsample, seed=seed)
            write(tmp_path / "scratch" / side, {f"{seed}/results.json": text})
            where.mkdir(parents=True, exist_ok=True)
            (where / f"seed{seed}").symlink_to(tmp_path / "scratch" / side / str(seed))
    (tmp_path / "out" / "loop").symlink_to(tmp_path / "out")
    (tmp_path / "linked").symlink_to(tmp_path / "out")
    for top in ("out", "linked"):
        found = {(r.side, r.seed): r.metrics["accuracy"] for r in find_results([tmp_path / top])}
        assert found == {(s, n): 60 + n for s in ("base", "new") for n in (1, 2)}
