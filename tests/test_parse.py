"""parse_test_res.py on logs written by hand in both forms; every expected number is worked out by
hand."""

import csv
import io
import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

import parse_test_res as parser
from dassl.commands import OneLineParser
from results.logs import newest_result, read_log
from results.statistics import harmonic_mean

SCRIPT = Path(parser.__file__)
EPOCH = (
    "epoch [1/1] batch [1/1] time 0.071 (0.085) data 0.000 (0.012) loss 1.2 (1.4) "
    "lr 1.0000e-05 eta 0:00:00"
)
RERUN = "log.txt-2026-01-02-03-04-05"


def block(accuracy, f1=50.0):
    """The result block that an --eval-only log consists of."""
    counts = "* total: 8,100\n* correct: 6,903"
    return f"=> result\n{counts}\n* accuracy: {accuracy}%\n* error: 1.0%\n* macro_f1: {f1}%\n"


def trained(accuracy, f1=50.0):
    """A training log in the new form; the validation result on the way (11.1%) must never count."""
    training = f"** Config **\n{EPOCH}\n{block(11.1, 11.1)}{EPOCH}\nFinish training\n"
    return f"{training}Deploy the last-epoch model\n{block(accuracy, f1)}Elapsed: 0:00:09\n"


def trained_05(accuracy):
    """A training log of Dassl 0.5: tabs, two decimals, "Finished training"."""
    epoch = "epoch [1/1][1/1]\ttime 0.07 (0.08)\teta 0:00:00\tloss 1.2 (1.4)\tlr 1.0e-05\n"
    return f"{epoch}{block('11.11')}{epoch}Finished training\n{block(f'{accuracy:.2f}')}"


def record(accuracy, more=(), **changes):
    base = {
        "format": 1,
        "trainer": "P2C",
        "dataset": "DescribableTextures",
        "seed": 1,
        "shots": 16,
        "subsample": "base",
    }
    base |= {"eval_only": False, "parameters": 1000, "train_seconds": 60.0, "log": "log.txt"}
    base |= {"config": {}, "loss": [1.0], "epoch_seconds": [60.0], "device": "a CPU"}
    base["command"] = "python train.py --config-file configs/trainers/P2C/my_cfg.yaml --seed 1"
    metrics = {"accuracy": accuracy, "error_rate": 20.0, "macro_f1": 70.0, "total": 9, "correct": 8}
    return json.dumps(base | {"metrics": metrics | dict(more)} | changes)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def run(*args):
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, args)], capture_output=True, text=True, encoding="utf-8"
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def base2new(tmp_path):
    """Two datasets × (MaPLe with seeds 1 2, zero-shot with seed 1); zero-shot's base side has no
    training."""

    def put(side, dataset, method, seed, text):
        write(tmp_path, {f"{side}/{dataset}/shots_16/{method}/seed{seed}/log.txt": text})

    for dataset, seed, base, new in [
        ("food", 1, 80, 40),
        ("food", 2, 60, 60),
        ("pets", 1, 90, 90),
        ("pets", 2, 70, 30),
    ]:
        put("train_base", dataset, "MaPLe/vit_b16_c2", seed, trained(float(base), f1=base - 20.0))
        put("test_new", dataset, "MaPLe/vit_b16_c2", seed, block(float(new), f1=new - 20.0))
    for dataset, base, new in [("food", 50, 50), ("pets", 60, 20)]:
        put("train_base", dataset, "ZeroshotCLIP/vit_b16", 1, block(float(base)))
        put("test_new", dataset, "ZeroshotCLIP/vit_b16", 1, block(float(new)))
    return tmp_path


def table_of(root, *args):
    done = run(root, "--hm", "--format", "csv", *args)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    return {(row["dataset"], row["method"]): row for row in rows}, done.stderr


def numbers(row, names="base_mean base_std new_mean new_std hm_mean hm_std"):
    return [float(row[name]) for name in names.split()]


# one log


@pytest.mark.parametrize("text, accuracy", [(trained(85.2), 85.2), (trained_05(85.25), 85.25)])
def test_both_log_forms(tmp_path, text, accuracy):
    result = read_log(write(tmp_path, {"log.txt": text}) / "log.txt")
    assert result.metrics["accuracy"] == accuracy and result.trained


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{EPOCH}\n{block(85.2)}",  # validation of a run that was killed
        f"{block(85.2)}{EPOCH}\n",  # tested before training
        f"{EPOCH}\nFinish training\n",  # killed before the test
        f"{EPOCH}\nFinish training\n=> result\n* total: 8,100\n",  # killed while printing
        f"{trained(85.2)}{EPOCH}\n",  # trains on
    ],
)
def test_unfinished_log_has_no_result(tmp_path, text):
    assert read_log(write(tmp_path, {"log.txt": text}) / "log.txt") is None


@pytest.mark.parametrize("value", ["250.0", "100.1", "-5.0", "nan", "1e5"])
def test_what_is_no_share_of_a_hundred_is_no_result(tmp_path, value):
    write(tmp_path, {"seed1/log.txt": trained(value)})
    done = run(tmp_path)
    assert (
        done.returncode == 1
        and done.stdout == ""
        and "no accuracy of a finished run in log.txt" in done.stderr
    )


def test_log_with_progress_bars_and_broken_bytes(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(
        b"\xff 50%|#####\r" + trained(85.2).replace("\n", "\r\n").encode() + b"\xe2\x96"
    )
    assert read_log(path).metrics == {"accuracy": 85.2, "error": 1.0, "macro_f1": 50.0}


def test_a_record_has_more_digits_than_its_log(tmp_path):
    metrics = {
        "accuracy": 85.25,
        "error_rate": 14.75,
        "macro_f1": 70.0,
    }  # the last one is another run's
    write(
        tmp_path,
        {
            "seed1/log.txt": trained(85.2),
            "seed1/results.json": json.dumps({"format": 1, "metrics": metrics}),
        },
    )
    assert newest_result(tmp_path / "seed1", "accuracy", False).metrics["accuracy"] == 85.25
    assert newest_result(tmp_path / "seed1", "accuracy", False).metrics["macro_f1"] == 50.0
    other = json.dumps({"format": 2, "metrics": metrics})
    for text in (
        "{",
        "[]",
        other,
        '{"format": 1, "metrics": {}}',
        '{"format": 1, "metrics": {"accuracy": "85.25"}}',
    ):
        write(tmp_path, {"seed1/results.json": text})
        assert newest_result(tmp_path / "seed1", "accuracy", False).metrics["accuracy"] == 85.2


# seeds of one experiment


def test_summary(tmp_path):
    write(
        tmp_path,
        {
            "seed10/log.txt": trained(86.0),
            "seed2/log.txt": trained_05(84),
            "seed1_old/log.txt": trained(1.0),
        },
    )
    done = run(tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [
        f"Parsing files in {tmp_path}",
        f"file: {tmp_path}/seed2/log.txt. accuracy: 84.00%.",
        f"file: {tmp_path}/seed10/log.txt. accuracy: 86.00%.",
        "===",
        f"Summary of directory: {tmp_path}",
        "* accuracy: 85.00% +- 1.00%",
        "===",
    ]


def test_ci95(tmp_path):
    files = {
        f"seed{seed}/log.txt": trained(value) for seed, value in enumerate((84.0, 86.0, 84.0, 86.0))
    }
    # population std 1, four seeds: 1.96 · 1 / 2
    assert "* accuracy: 85.00% +- 0.98%" in run(write(tmp_path, files), "--ci95").stdout


def test_keyword(tmp_path):
    write(
        tmp_path, {"seed1/log.txt": trained(85.2, f1=70.0), "seed2/log.txt": trained(85.2, f1=74.0)}
    )
    assert "* macro_f1: 72.00% +- 2.00%" in run(tmp_path, "--keyword", "macro_f1").stdout


MORE = {"macro_precision": 71.0, "macro_recall": 72.0, "top5_accuracy": 99.0, "ece": 4.25}


def test_keyword_of_a_record(tmp_path):
    """What a log does not show is in the results.json of the same run."""
    for seed, ece in ((1, 4.25), (2, 6.25)):
        text = record(85.23, {"macro_f1": 50.0, "error_rate": 1.0} | MORE | {"ece": ece})
        files = {"log.txt": trained(85.2), "results.json": text}
        write(tmp_path / f"seed{seed}", files)
    for keyword, value in (MORE | {"ece": 5.25, "accuracy": 85.23}).items():
        done = run(tmp_path, "--keyword", keyword)
        assert f"\n* {keyword}: {value:.2f}% +- {1.0 * (keyword == 'ece'):.2f}%\n" in done.stdout
    for text in (
        record(85.23, MORE, log=RERUN),  # of another run
        record(85.23, MORE | {"ece": "4.25"}),
        record(85.23),  # an older one
    ):
        write(tmp_path, {"seed2/results.json": text})
        done = run(tmp_path, "--keyword", "ece")
        assert "\n* ece: 4.25% +- 0.00%\n" in done.stdout
        assert "seed2: no ece of a finished run in log.txt" in done.stderr


def test_keyword_of_a_log_with_more_metrics(tmp_path):
    more = "".join(f"* {name}: {value:.1f}%\n" for name, value in MORE.items())
    classes = "=> per-class result\n* class: 0 (a)\ttotal: 2\tcorrect: 1\tacc: 50.0%\t"
    classes += "precision: 33.3%\trecall: 50.0%\n* average: 72.0%\n"
    write(tmp_path, {"seed1/log.txt": trained(85.2) + more + classes})
    assert "\n* ece: 4.20% +- 0.00%\n" in run(tmp_path, "--keyword", "ece").stdout
    assert "\n* accuracy: 85.20% +- 0.00%\n" in run(tmp_path).stdout
    text = record(85.23, MORE | {"macro_f1": 50.0, "error_rate": 1.0, "perclass_accuracy": 72.0})
    write(tmp_path, {"seed1/results.json": text})
    assert "\n* ece: 4.25% +- 0.00%\n" in run(tmp_path, "--keyword", "ece").stdout
    assert "\n* accuracy: 85.23% +- 0.00%\n" in run(tmp_path).stdout


def test_eval_only_logs_count_only_when_asked_for(tmp_path):
    write(tmp_path, {"seed1/log.txt": block(60.0), "seed2/log.txt": block(64.0)})
    assert "* accuracy: 62.00% +- 2.00%" in run(tmp_path, "--test-log").stdout
    done = run(tmp_path)
    assert done.returncode == 1 and done.stdout == "" and "--test-log" in done.stderr


def test_killed_training_does_not_count_as_a_test_log(tmp_path):
    write(tmp_path, {"seed1/log.txt": block(60.0), "seed2/log.txt": f"{EPOCH}\n{block(11.1)}"})
    done = run(tmp_path, "--test-log")
    assert "* accuracy: 60.00% +- 0.00%" in done.stdout and "seed2" in done.stderr


def test_newer_finished_rerun_wins_over_stale_log(tmp_path):
    write(tmp_path, {"seed1/log.txt": trained(10.0), f"seed1/{RERUN}": trained(85.0)})
    os.utime(tmp_path / "seed1" / RERUN, (0, 0))  # as after copying: file times say nothing
    done = run(tmp_path)
    assert f"{RERUN}. accuracy: 85.00%" in done.stdout and done.stderr == ""


def test_unfinished_rerun_does_not_hide_a_finished_run(tmp_path):
    write(tmp_path, {"seed1/log.txt": trained(85.0), f"seed1/{RERUN}": f"{EPOCH}\n{block(11.1)}"})
    done = run(tmp_path)
    assert "seed1/log.txt. accuracy: 85.00%" in done.stdout
    assert done.stderr.count("\n") == 1 and RERUN in done.stderr and "using log.txt" in done.stderr


def test_failed_and_empty_seeds_are_warned_of(tmp_path):
    write(
        tmp_path,
        {"seed1/log.txt": trained(85.0), "seed2/log.txt": f"{EPOCH}\nRuntimeError: boom\n"},
    )
    (tmp_path / "seed3").mkdir()
    write(tmp_path, {"seed4/checkpoint": ""})
    write(tmp_path, {"seed6/log.txt": EPOCH, "seed6/failure.txt": "Traceback\nerror: no luck\n"})
    (tmp_path / "seed5/log.txt").mkdir(parents=True)  # cannot be read
    done = run(tmp_path)
    assert done.returncode == 0 and "* accuracy: 85.00% +- 0.00%" in done.stdout
    for part in (
        "seed2: no accuracy of a finished run in log.txt",
        "seed3: empty folder",
        "seed4: no log.txt\n",
        "seed6: no accuracy of a finished run in log.txt: error: no luck\n",
    ):
        assert part in done.stderr
    assert "cannot read" in done.stderr and "seed1" not in done.stderr


def test_multi_exp(tmp_path):
    write(
        tmp_path,
        {
            "a/seed1/log.txt": trained(80.0),
            "a/seed2/log.txt": trained(90.0),
            "b/seed1/log.txt": trained(60.0),
        },
    )
    (tmp_path / "c").mkdir()
    done = run(tmp_path, "--multi-exp")
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.startswith("*")] == [
        "* accuracy: 85.00% +- 5.00%",
        "* accuracy: 60.00% +- 0.00%",
        "* accuracy: 72.50%",  # each experiment counts once
    ]
    assert done.stdout.splitlines()[-2] == "Average performance"
    assert f"{tmp_path}/c: no result" in done.stderr


# base, new, HM


def test_hm_table(base2new):
    rows, warnings = table_of(base2new)
    assert warnings == ""
    assert list(rows) == [
        (d, m) for d in ("food", "pets", "Average") for m in ("MaPLe", "ZeroshotCLIP")
    ]
    # HM per seed: 2·80·40/120 = 53.3333 and 60; 90 and 2·70·30/100 = 42
    assert numbers(rows["food", "MaPLe"]) == [70, 10, 50, 10, 56.6667, 3.3333]
    assert numbers(rows["pets", "MaPLe"]) == [80, 10, 60, 30, 66, 24]
    means = "base_mean new_mean hm_mean"
    assert numbers(rows["food", "ZeroshotCLIP"], means) == [50, 50, 50]
    assert numbers(rows["pets", "ZeroshotCLIP"], means) == [60, 20, 30]
    assert rows["food", "ZeroshotCLIP"]["base_std"] == ""  # one seed has no spread
    # HM of the averages: 2·75·55/130 = 63.4615, where the average of the HMs would be 61.3333.
    # Its spread over seeds: HM(85, 65) = 73.6667 and HM(65, 45) = 53.1818, half their difference.
    assert numbers(rows["Average", "MaPLe"]) == [75, 10, 55, 10, 63.4615, 10.2424]
    assert numbers(rows["Average", "ZeroshotCLIP"], means) == [55, 35, 42.7778]
    assert [row["seeds"] for row in rows.values()] == ["2", "1", "2", "1", "2", "1"]


def test_hm_keyword_and_ci95(base2new):
    rows, _ = table_of(base2new, "--keyword", "macro_f1", "--ci95")
    # F1 is 20 below accuracy; 1.96 · 10 / √2 = 13.8593
    got = numbers(rows["food", "MaPLe"], "base_mean base_ci95 new_mean new_ci95")
    assert got == [50, 13.8593, 30, 13.8593]


def test_hm_counts_only_seeds_with_both_sides(base2new):
    write(base2new, {"train_base/food/shots_16/MaPLe/vit_b16_c2/seed3/log.txt": trained(99.0)})
    write(base2new, {"test_new/pets/shots_16/MaPLe/vit_b16_c2/seed2/log.txt": "killed\n"})
    rows, warnings = table_of(base2new)
    assert numbers(rows["food", "MaPLe"])[:2] == [70, 10]
    assert "food, MaPLe vit_b16_c2, seed 3: no new result" in warnings
    assert "pets, MaPLe vit_b16_c2, seed 2: no new result" in warnings
    # the datasets now have different seeds: the average has means, but no spread over seeds
    average = rows["Average", "MaPLe"]
    assert (
        numbers(average, "base_mean new_mean hm_mean") == [80, 70, 74.6667]
        and average["hm_std"] == ""
    )


def test_hm_missing_dataset_marks_the_average(base2new):
    for seed in (1, 2):
        (base2new / f"test_new/pets/shots_16/MaPLe/vit_b16_c2/seed{seed}/log.txt").unlink()
    rows, warnings = table_of(base2new)
    assert "MaPLe: no result on pets" in warnings
    assert numbers(rows["Average", "MaPLe (over 1 of 2 datasets)"])[4] == 58.3333  # 2·70·50/120


def test_hm_killed_training_is_not_taken_for_zero_shot(base2new):
    write(
        base2new,
        {"train_base/food/shots_16/MaPLe/vit_b16_c2/seed2/log.txt": f"{EPOCH}\n{block(11.1)}"},
    )
    rows, warnings = table_of(base2new)
    assert (
        numbers(rows["food", "MaPLe"], "base_mean") == [80] and "seed 2: no base result" in warnings
    )


def test_hm_names_cfg_and_shots_only_where_needed(tmp_path):
    runs = [
        ("shots_16", "P2C", "a"),
        ("shots_16", "P2C", "b"),
        ("shots_4", "P2C", "b"),
        ("shots_4", "CoOp", "c"),
    ]
    for shots, trainer, cfg in runs:
        place = f"shapes/{shots}/{trainer}/{cfg}/seed1/log.txt"
        write(tmp_path, {f"train_base/{place}": trained(60.0), f"test_new/{place}": block(60.0)})
    rows, _ = table_of(tmp_path)  # one dataset: no average row
    assert [method for _, method in rows] == ["CoOp", "P2C a", "P2C b", "P2C b shots_4"]
    assert {dataset for dataset, _ in rows} == {"shapes"}


def test_hm_settings_for_one_dataset_are_the_same_method(tmp_path):
    """As the scripts take them; on one dataset they are different methods."""

    def put(dataset, cfg):
        place = f"{dataset}/shots_16/TCP/{cfg}/seed1/log.txt"
        write(tmp_path, {f"train_base/{place}": trained(60.0), f"test_new/{place}": block(60.0)})

    for dataset, cfg in (("dtd", "x"), ("imagenet", "x_imnet"), ("sun397", "x_sun397")):
        put(dataset, cfg)
    rows, _ = table_of(tmp_path)
    assert list(rows) == [(dataset, "TCP") for dataset in ("dtd", "imagenet", "sun397", "Average")]
    put("imagenet", "x")
    assert {method.split(" (")[0] for _, method in table_of(tmp_path)[0]} == {
        "TCP x",
        "TCP x_imnet",
        "TCP x_sun397",
    }


def test_hm_of_zeros():
    assert harmonic_mean(0.0, 0.0) == 0


# formats


def test_text(base2new):
    done = run(base2new, "--hm")
    assert done.stdout.splitlines()[:7] == [
        "dataset    method        base         new          HM           seeds",
        "---------  ------------  -----------  -----------  -----------  -------",
        "food       MaPLe         70.0 ± 10.0  50.0 ± 10.0  56.7 ± 3.3   2",
        "food       ZeroshotCLIP  50.0         50.0         50.0         1",
        "---------  ------------  -----------  -----------  -----------  -------",
        "pets       MaPLe         80.0 ± 10.0  60.0 ± 30.0  66.0 ± 24.0  2",
        "pets       ZeroshotCLIP  60.0         20.0         30.0         1",
    ]
    assert "HM of the average base and the average new" in done.stdout


def test_markdown(base2new):
    lines = run(base2new, "--hm", "--format", "markdown").stdout.splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "food", "MaPLe", "70.0 ± 10.0", "50.0 ± 10.0", "56.7 ± 3.3", "2",
    ]  # fmt: skip
    assert (
        sum(line.startswith("|-") for line in lines) == 1
    )  # a second rule would be a row of dashes


def test_latex(tmp_path):
    for (cfg, new), seed in product((("c_1", 60.0), ("c_2", 62.0)), (1, 2)):
        place = f"caltech_101/shots_16/MaPLe/{cfg}/seed{seed}/log.txt"
        write(
            tmp_path,
            {f"train_base/{place}": trained(58.0 + 2 * seed), f"test_new/{place}": block(new)},
        )
    lines = run(tmp_path, "--hm", "--format", "latex", "--fit", "page").stdout.splitlines()
    assert lines[1] == r"\begin{table*}[t]" and r"\label{tab:base2new}" in lines
    [caption] = [line for line in lines if line.startswith(r"\caption{Accuracy in \%: mean")]
    assert "Bold: best, underlined: second best" in caption
    row = next(line for line in lines if "MaPLe" in line)
    assert " ".join(row.split()) == (
        r"caltech\_101 & MaPLe c\_1 & \textbf{61.0 $\pm$ 1.0} & \underline{60.0 $\pm$ 0.0} & "
        r"\underline{60.5 $\pm$ 0.5} & 2 \\"
    )


def test_a_terminal_without_plus_minus(base2new):
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, SCRIPT, base2new, "--hm"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0 and "70.0 ? 10.0" in done.stdout


# errors


def test_hm_warns_of_mixed_settings_and_changed_models(tmp_path):
    """As the other tables do, once each."""
    seeds = {seed: f"dtd/shots_16/P2C/my_cfg/seed{seed}" for seed in (1, 2)}
    files = {}
    for seed, place in seeds.items():
        config = {"OPTIM": {"MAX_EPOCH": seed}}
        files[f"train_base/{place}/log.txt"] = trained(60.0)
        files[f"train_base/{place}/results.json"] = record(60.0, seed=seed, config=config)
        files[f"test_new/{place}/log.txt"] = block(50.0)
    model = "learner/model.pth.tar-1"
    files[f"train_base/{seeds[1]}/{model}"] = "trained anew"
    tested = {"folder": f"../../../../../../train_base/{seeds[1]}", "epoch": None}
    tested["files"] = {"learner": ["model.pth.tar-1", "0" * 64]}
    changes = {"seed": 1, "subsample": "new", "eval_only": True, "model": tested}
    files[f"test_new/{seeds[1]}/results.json"] = record(50.0, **changes)
    done = run(write(tmp_path, files), "--hm")
    stale, mixed = done.stderr.splitlines()
    assert "made with different settings: OPTIM.MAX_EPOCH 1 / 2" in mixed
    assert stale.endswith("its model has been trained further, or anew, since: test again")
    assert done.returncode == 0 and "60.0" in done.stdout


def test_a_newer_test_in_a_trainings_folder_is_called_so(tmp_path):
    """Its log is passed over, since a test has no training, not since it did not end."""
    files = {"seed1/log.txt": trained(60.0), f"seed1/{RERUN}": block(50.0)}
    done = run(write(tmp_path, files))
    line = f"no finished run in the newer {RERUN} (--test-log reads the logs of --eval-only runs)"
    assert line in done.stderr and "60.0" in done.stdout


@pytest.mark.parametrize("mode", [[], ["--multi-exp"], ["--hm"]])
def test_error_lines_and_exit_codes(tmp_path, mode):
    with pytest.raises(SystemExit, match="2"):
        parser.main(["x" * 256, *mode])
    missing = run(tmp_path / "nowhere", *mode)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert (
        missing.stderr
        == f"error: argument DIR: {tmp_path}/nowhere: no such folder; --help tells more\n"
    )
    empty = run(tmp_path, *mode)
    assert (empty.returncode, empty.stdout) == (1, "")
    assert (
        empty.stderr.startswith(f"ERROR: no result in {tmp_path}") and empty.stderr.count("\n") == 1
    )


def test_wrong_arguments(tmp_path):
    for words in (
        ["--format", "csv"],
        ["--hm", "--multi-exp"],
        ["--keyword", "acuracy"],
        ["--keyword", "ece", "--hm"],
        ["--hmm"],
    ):
        done = run(tmp_path, *words)
        assert (
            done.returncode == 2
            and done.stderr.startswith("error: ")
            and done.stderr.count("\n") == 1
        )


def test_the_home_folder(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    flags = OneLineParser("x")
    flags.add_argument("--out")
    flags.add_argument("words", nargs="*")
    args = flags.parse_args(["--out=~/a b", "~", "~/x", "a~/b", "a/~", "--", "~{}", "x=~/y"])
    assert args.out == "/home/me/a b"
    assert args.words == ["/home/me", "/home/me/x", "a~/b", "a/~", "~{}", "x=/home/me/y"]
    with pytest.raises(SystemExit, match="2"):
        flags.parse_args(["--out=~nosuchuser/x"])
    error = capsys.readouterr().err
    assert (
        error.startswith("error: --out=~nosuchuser/x: there is no user nosuchuser")
        and error.count("\n") == 1
    )


def test_help_has_examples():
    assert "output/base2new --hm" in run("--help").stdout


@pytest.mark.skipif(os.name == "nt", reason="pipes break differently there")
def test_broken_pipe_is_quiet(base2new):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, SCRIPT, base2new, "--hm"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_full_disk_behind_stdout_is_one_line(tmp_path):
    write(tmp_path, {"seed1/log.txt": block(50.0)})
    with open("/dev/full", "w") as full:
        command = [sys.executable, SCRIPT, tmp_path, "--test-log"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        "error: cannot write what is printed: No space left on device; free some space"
    )
