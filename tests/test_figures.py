"""results.figures. Numbers are worked out by hand here, or come from scipy or numpy."""

import ast
import json
import shutil
import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from scipy import integrate
from scipy import stats as st

from results import figures
from results.attribute_figure import told_apart
from results.curves import curves_of_logs
from results.panels import TRAINERS, Page, styles
from results.plots import KINDS, caption, describe, draw
from results.protocols import dataset_name
from results.records import find_results
from results.schedule import draw_schedule, schedule_config

from .runs import REPO
from .test_parse import RERUN, block, write

NEW = (
    "epoch [{e}/{n}] batch [{b}/{B}] time 0.071 ({t}) data 0.000 (0.012) "
    "loss 1.2031 ({loss}) lr 1.0e-05 eta 0:00:15\n"
)
OLD = (
    "epoch [{e}/{n}][{b}/{B}]\ttime 0.071 ({t})\tdata 0.000 (0.012)\teta 0:00:15\t"
    "loss 1.2031 ({loss})\tlr 1.0e-05\n"
)


def record(
    accuracy,
    trainer="P2C",
    seed=1,
    side="base",
    dataset="DescribableTextures",
    loss=(2.0, 1.0),
    **changes,
):
    config = {
        "TRAINER": {
            "ATPROMPT": {"USE_ATPROMPT": trainer == "P2C", **{f"N_ATT{i}": 2 for i in (1, 2, 3)}}
        }
    }
    config |= {
        "OPTIM": {"MAX_EPOCH": 2},
        "SEED": seed,
        "DATASET": {},
        "OUTPUT_DIR": f"o/seed{seed}",
    }
    base = {
        "format": 1,
        "trainer": trainer,
        "dataset": dataset,
        "seed": seed,
        "shots": 16,
        "subsample": side,
    }
    base |= {
        "metrics": {"accuracy": accuracy, "error_rate": 100 - accuracy, "macro_f1": accuracy - 1}
    }
    base |= {
        "eval_only": side == "new",
        "loss": list(loss),
        "epoch_seconds": [4.0, 2.0],
        "train_seconds": 6.0,
    }
    base |= {
        "log": "log.txt",
        "parameters": 9,
        "device": "a CPU",
        "config": config,
        "command": "python train.py",
    }
    return base | changes


def put(root, method, seed, accuracy, side="base", dataset="dtd", **changes):
    top = "test_new" if side == "new" else "train_base"
    path = root / f"base2new/{top}/{dataset}/shots_16/{method}/c/seed{seed}/results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(record(accuracy, method, seed, side, dataset_name(dataset), **changes))
    )
    return path.parent


@pytest.fixture
def runs(tmp_path):
    """Two methods × two seeds on the base and the new classes of one dataset."""
    for seed, base, new, loss in ((1, 80.0, 60.0, [3.0, 1.0]), (2, 90.0, 60.0, [5.0, 2.0])):
        put(tmp_path, "P2C", seed, base, loss=loss)
        put(tmp_path, "P2C", seed, new, "new", loss=[])
        put(tmp_path, "MaPLe", seed, base - 10, epoch_seconds=[1.0, 1.0])
    return tmp_path


def lines(figure, panel=0):
    """{label: (x, y)} of a panel's labelled lines."""
    found = {}
    for line in figure.axes[panel].get_lines():
        if not line.get_label().startswith("_"):
            found[line.get_label()] = (list(line.get_xdata()), list(line.get_ydata()))
    return found


def the_line(capsys, text):
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and text in error[0], error


# losses and times


def test_losses_from_a_record_and_from_logs_of_both_forms(tmp_path):
    """The last line of each epoch counts; its seconds are mean time × batches."""
    for form, folder in ((NEW, "new"), (OLD, "old")):
        text = form.format(e=1, n=2, b=20, B=50, t=0.5, loss=9.0) + form.format(
            e=1, n=2, b=40, B=50, t=0.4, loss=3.5
        )
        text += (
            form.format(e=2, n=2, b=40, B=50, t=0.3, loss="1.5") + f"Finish training\n{block(50.0)}"
        )
        write(tmp_path, {f"{folder}/log.txt": text})
        assert curves_of_logs(tmp_path / folder) == ([3.5, 1.5], pytest.approx([20, 15]))
    assert curves_of_logs(write(tmp_path / "test", {"log.txt": block(50.0)})) is None


def log_of(*epochs, finished=True):
    """A training's log, given (epoch, loss)."""
    text = "".join(NEW.format(e=e, n=5, b=4, B=4, t=1.0, loss=loss) for e, loss in epochs)
    return text + f"Finish training\n{block(50.0)}" * finished


@pytest.mark.parametrize(
    ("older", "newer", "expected"),
    [
        (
            log_of((1, 4.0), (2, 3.0), (3, 8.0), finished=False),
            log_of((3, 2.0)),
            [4, 3, 2],
        ),  # resumed
        (
            log_of((1, 4.0), (2, 3.0), finished=False),
            log_of(),
            [4, 3],
        ),  # resumed when only the test was left
        (log_of((1, 4.0), (2, 3.0), (3, 8.0)), log_of((1, 7.0), (2, 6.0)), [7, 6]),  # made anew
        (
            log_of((1, 4.0), (2, 3.0), (3, 2.0)),
            log_of((1, 7.0), (2, 6.0), finished=False),
            [4, 3, 2],
        ),  # failed
        (log_of((1, 4.0), (2, 3.0)), block(60.0), [4, 3]),  # tested again
        (block(60.0), log_of((3, 2.0)), [np.nan, np.nan, 2]),
        (log_of((1, 4.0)), log_of((3, 2.0)), [np.nan, np.nan, 2]),  # did not go on from that
        (log_of((1, 4.0), finished=False), log_of((1, 4.0), finished=False), None),
    ],
)
def test_the_log_that_counts_and_those_it_went_on_from(older, newer, expected, tmp_path):
    curves = curves_of_logs(write(tmp_path, {"log.txt": older, RERUN: newer}))
    assert (
        curves is None
        if expected is None
        else np.array_equal(curves.loss, expected, equal_nan=True)
    )


def test_a_run_resumed_twice_with_a_failed_rerun_in_between(tmp_path):
    logs = log_of((1, 9.0), (2, 8.0), finished=False), log_of((2, 7.0), (3, 6.0), finished=False)
    logs += log_of((1, 1.0), finished=False), log_of((4, 5.0))
    write(tmp_path, {f"log.txt-2026-01-0{i}": text for i, text in enumerate(logs)})
    assert curves_of_logs(tmp_path).loss == [9, 7, 6, 5]


def test_a_log_that_cannot_be_read_is_warned_of(tmp_path, caplog):
    """A folder of its name, as root may read any file."""
    write(tmp_path, {RERUN: log_of((2, 2.0))})
    (tmp_path / "log.txt").mkdir()
    assert np.array_equal(curves_of_logs(tmp_path).loss, [np.nan, 2], equal_nan=True)
    assert [r.getMessage() for r in caplog.records] == [
        f"cannot read [Errno 21] Is a directory: '{tmp_path}/log.txt'"
    ]


def test_the_loss_figure(runs):
    """Its lines are the means over seeds and its band their population std: (3, 5) and (1, 2) for
    P2C."""
    figure = draw("loss", find_results([runs]))
    assert [ax.get_title() for ax in figure.axes] == ["DescribableTextures"]
    assert lines(figure) == {"P2C": ([1, 2], [4.0, 1.5]), "MaPLe": ([1, 2], [2.0, 1.0])}
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert sorted({tuple(v) for v in band.tolist()}) == [(1, 3), (1, 5), (2, 1), (2, 2)]


def test_bands_are_drawn_of_few_methods_only(tmp_path):
    """Five methods' bands would hide each other; their seeds are still seen."""
    for i, method in enumerate(("P2C", "MaPLe", "CoOp", "TCP", "KgCoOp"), start=1):
        for seed in (1, 2):
            put(tmp_path, method, seed, 80.0, loss=[seed * i, i])
        figure = draw("loss", find_results([tmp_path]))
        few = i <= 4
        thin = [line for line in figure.axes[0].lines if line.get_label().startswith("_")]
        assert len(figure.axes[0].collections) == i * few and len(thin) == 2 * i
        said = "Lines and bands: mean ± population std over" if few else "Lines: mean over"
        assert f"{said} 2 seeds; thin lines: single seeds." in figure.get_label()


def test_losses_and_times_are_of_one_number_of_shots(tmp_path):
    """The largest that trainings have, which the figure says."""
    for shots in (1, 2, 16):
        for seed in (1, 2):
            text = log_of((1, 3.0 * shots), (2, 2.0))
            write(tmp_path, {f"dtd/P2C/c_{shots}shots/seed{seed}/log.txt": text})
    write(tmp_path, {"dtd/ZeroshotCLIP/c_32shots/seed1/log.txt": block(50.0)})
    for kind in ("loss", "time"):
        figure = draw(kind, find_results([tmp_path]))
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["P2C"]
        assert figure.get_label().startswith("Runs of 16 shots. ")
    assert lines(draw("loss", find_results([tmp_path]))) == {"P2C": ([1, 2], [48, 2])}


def test_losses_that_no_axis_can_show_leave_a_gap(tmp_path, recwarn):
    """Of a run that has diverged; numbers beyond 64 bits are damage."""
    put(tmp_path, "P2C", 1, 80.0, loss=[float("inf"), 2.0, 1.0], epoch_seconds=[10**400, 2, 2])
    put(tmp_path, "P2C", 2, 80.0, loss=[-1e308, 4.0, 3.0])
    assert lines(draw("loss", find_results([tmp_path])))["P2C"] == ([2, 3], [3.0, 2.0])
    assert draw("time", find_results([tmp_path])) and not recwarn.list


def test_bars_of_many_methods_are_told_apart(tmp_path):
    for i in range(20):
        put(tmp_path, f"Method{i:02}", 1, 80.0)
    figure = draw("time", find_results([tmp_path]))
    bars = {(bar.get_facecolor(), bar.get_hatch()) for bar in figure.axes[0].patches}
    assert len(bars) == 20


def test_folders_of_any_name_are_walked(tmp_path):
    put(tmp_path / "²" / "٣", "P2C", 1, 80.0)
    assert len(find_results([tmp_path])) == 1


def test_losses_that_are_not_known_leave_a_gap(tmp_path):
    put(tmp_path, "P2C", 1, 80.0, loss=[None, 2.0, 1.0])
    put(tmp_path, "P2C", 2, 80.0, loss=[None, 4.0])
    assert lines(draw("loss", find_results([tmp_path])))["P2C"] == ([2, 3], [3.0, 1.0])


def test_the_time_figure(runs, caplog):
    figure = draw("time", find_results([runs]))
    assert sorted(bar.get_height() for bar in figure.axes[0].patches) == [1, 3]  # (4 + 2) / 2 s
    assert not caplog.records
    put(runs, "MaPLe", 3, 70.0, device="a GPU")
    draw("time", find_results([runs]))
    assert "different devices: a CPU; a GPU" in caplog.text


def test_the_f1_figure(runs):
    figure = draw("f1", find_results([runs]))
    for panel, less in ((0, 0), (1, 1)):
        assert {k: y for k, (_, y) in lines(figure, panel).items()} == {
            "P2C": [85 - less],
            "MaPLe": [75 - less],
        }


def test_the_attributes_figure(tmp_path, caplog):
    """HM is taken per seed and dataset, then averaged: a seed without all its datasets does not
    count."""

    def put_pair(n, seed, dataset, base, new):
        for side, accuracy in (("base", base), ("new", new)):
            folder = put(tmp_path / f"any_{n}", "P2C", seed, accuracy, side, dataset)
            path = folder / "results.json"
            path.write_text(path.read_text().replace('"N_ATT1": 2', f'"N_ATT1": {n}'))

    for n, seed, base, new in ((2, 1, 80.0, 60.0), (2, 2, 90.0, 60.0), (4, 1, 50.0, 50.0)):
        put_pair(n, seed, "dtd", base, new)
        put_pair(n, seed, "eurosat", 40.0, 20.0)  # HM 26.67
    put_pair(4, 9, "dtd", 99.0, 99.0)
    figure = draw("attributes", find_results([tmp_path]))
    drawn = [[line.get_ydata().tolist() for line in ax.get_lines()] for ax in figure.axes]
    assert drawn[0] == [[60, 65], [45]] and drawn[1] == [[40, 40], [35]]
    hms = [(9600 / 140 + 1600 / 60) / 2, (10800 / 150 + 1600 / 60) / 2, (50 + 1600 / 60) / 2]
    assert drawn[2] == [pytest.approx(hms[:2]), pytest.approx(hms[2:])]
    assert "seed 9 has not all results" in caplog.text
    shutil.rmtree(tmp_path / "any_2/base2new/test_new")
    shutil.rmtree(tmp_path / "any_4/base2new/test_new")
    assert draw("attributes", find_results([tmp_path])) is None
    shutil.rmtree(tmp_path / "any_4")
    assert draw("attributes", find_results([tmp_path])) is None


def test_the_attributes_figure_names_settings_by_what_they_differ_in(tmp_path):
    for n, weight, trainer in product((2, 4), (0.0, 1.0), ("P2C", "MaPLe_ATP")):
        if trainer == "P2C" or weight:
            for side in ("base", "new"):
                folder = put(tmp_path / f"any_{n}_{weight}", trainer, 1, 50.0, side, "dtd")
                record = json.loads((folder / "results.json").read_text())
                record["config"]["TRAINER"]["ATPROMPT"]["N_ATT1"] = n
                record["config"]["TRAINER"]["P2C"] = {"AUX": {"WEIGHT": weight}}
                (folder / "results.json").write_text(json.dumps(record))
    figure = draw("attributes", find_results([tmp_path]))
    _, names = figure.axes[0].get_legend_handles_labels()
    assert sorted(set(names)) == ["MaPLe_ATP", "P2C AUX.WEIGHT 0.0", "P2C AUX.WEIGHT 1.0"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (({"LR": 1}, {"LR": "1"}), ["P2C LR 1 (1)", "P2C LR 1 (2)"]),
        (({"A": {}}, {"A": {"B": None}}), None),
        (({"A": "x\n\x1b[1m"}, {"A": "y"}), ["P2C A x\\n\\x1b[1m", "P2C A y"]),
        (({"A": {"B": 1}}, {}), ["P2C A.B 1", "P2C A.B –"]),
    ],
)
def test_two_settings_never_have_one_name(settings, expected):
    names = told_apart([("P2C", 16, json.dumps(setting)) for setting in settings])
    assert len(set(names)) == 2 and names == (expected or names)


def test_runs_of_attributes_without_a_record_are_in_no_attributes_figure(tmp_path):
    """Upstream's logs, and records without a config."""
    write(tmp_path, {"base2new/train_base/dtd/shots_16/CoOp_ATP/c/seed1/log.txt": block(50.0)})
    put(tmp_path, "MaPLe_ATP", 1, 80.0, config={})
    found = find_results([tmp_path])
    assert len(found) == 2 and draw("attributes", found) is None


def test_the_shots_figure(tmp_path):
    files = {
        f"{dataset}/{method}/c_{shots}shots/seed{seed}/log.txt": block(50.0 + shots + 2 * seed)
        for dataset in ("dtd", "eurosat")
        for method in ("P2C", "CoOp")
        for shots in (1, 4, 16)
        for seed in (1, 3)
    }
    figure = draw("shots", find_results([write(tmp_path, files)]))
    assert [ax.get_title() for ax in figure.axes] == ["DescribableTextures", "EuroSAT"]
    assert lines(figure, 1) == dict.fromkeys(("P2C", "CoOp"), ([1, 4, 16], [55, 58, 70]))


def test_the_cloud_figure_pools_seeds_and_draws(runs):
    for seed, accuracy in ((1, [[80.0], [70.0, 60.0]]), (2, [[90.0], [80.0, 70.0]])):
        about = {
            "noise": "gaussian",
            "sigmas": [0.0, 0.1],
            "accuracy": accuracy,
            "trained_sigma": 0.015,
        }
        (runs / f"base2new/train_base/dtd/shots_16/P2C/c/seed{seed}/cloud.json").write_text(
            json.dumps(about)
        )
    (runs / "base2new/train_base/dtd/shots_16/MaPLe/c/seed1/cloud.json").write_text("{")
    figure = draw("cloud", find_results([runs]))
    assert lines(figure)["P2C"] == ([0, 0.1], [85, 70])
    assert lines(figure)["P2C's σ_max in training"][0] == [0.015, 0.015]
    assert [ax.get_title() for ax in figure.axes] == ["DescribableTextures, base classes"]


def test_clouds_by_noise_and_by_a_posterior_are_drawn_apart(tmp_path):
    """Each with its own axis; a star is the draws' averaged prediction, a bar what has one σ."""
    of_noise = {"noise": "gaussian", "sigmas": [0, 0.1], "accuracy": [[80], [70, 60]]}
    of_draws = {"noise": "posterior", "sigmas": [0, 1], "accuracy": [[80], [70, 60]], "average": 75}
    samples = of_draws | {"sigmas": [1], "accuracy": [[66, 70]], "average": 72}
    given = {"P2C": of_noise, "VaMP": of_draws, "ReBaPL_CoOp": samples}
    for method, cloud in given.items():
        folder = put(tmp_path, method, 1, 80.0, dataset="dtd")
        (folder / "cloud.json").write_text(json.dumps(cloud))
    figure = draw("cloud", find_results([tmp_path]))
    place, kinds = "DescribableTextures, base classes", ("gaussian", "posterior")
    titles = [f"{place}, {noise} noise" for noise in kinds]
    assert [ax.get_title().replace("\n", " ") for ax in figure.axes] == titles
    axes = ["σ of the noise on the text prompts", "σ, × the posterior's deviation"]
    assert [ax.get_xlabel().replace("\n", " ") for ax in figure.axes] == axes
    assert lines(figure)["P2C"] == ([0, 0.1], [80, 65])
    assert lines(figure, 1)["VaMP"] == ([0, 1], [80, 65])
    assert lines(figure, 1)["ReBaPL_CoOp"] == ([1], [68])
    stars = [line for line in figure.axes[1].get_lines() if line.get_marker() == "*"]
    assert sorted(y for star in stars for y in star.get_ydata()) == [72, 75]
    assert not any(line.get_marker() == "*" for line in figure.axes[0].get_lines())


# how it looks


def test_methods_look_the_same_in_all_figures_and_like_no_other():
    trainers = dict(zip(TRAINERS, TRAINERS, strict=True))
    alone = styles({"P2C": "P2C", "CoOp": "CoOp"})
    among = styles(trainers | {f"P2C {i}": "P2C" for i in range(20)} | {"Mine": "Mine"})
    assert {m: alone[m] for m in alone} == {m: among[m] for m in alone}
    assert len({tuple(style.values()) for style in among.values()}) == len(among) == 35
    variants = styles({f"P2C {i}": "P2C" for i in range(6)} | {"MaPLe": "MaPLe"})
    assert variants["MaPLe"] == among["MaPLe"] and len({s["color"] for s in variants.values()}) == 7


def many(root, methods, datasets=("dtd",), shots=(16,)):
    """Runs of methods on datasets."""
    for method in methods:
        for dataset in datasets:
            for n in shots:
                put(
                    root / f"a long name of a setting of these {n}",
                    method,
                    1,
                    80.0,
                    dataset=dataset,
                )
    return find_results([root])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["loss", "time", "f1"])
@pytest.mark.parametrize(
    ("methods", "datasets", "settings"),
    [(1, 2, 1), (2, 3, 1), (13, 1, 1), (13, 11, 1), (13, 1, 5), (1, 2, 7)],
)
def test_nothing_is_cut_and_panels_keep_their_size(kind, methods, datasets, settings, tmp_path):
    """All texts are within the figure, none lies on another; warnings of the layout are errors."""
    names = [f"dataset {i}" for i in range(datasets - 1)] + ["a long name of a dataset"]
    found = many(tmp_path, TRAINERS[:methods], names, range(settings))
    figure = draw(kind, found)
    figure.draw_without_rendering()
    [key] = figure.legends
    assert len(key.get_texts()) == methods * settings
    width, height = figure.bbox.size
    boxes = [key.get_window_extent()]
    for ax in figure.axes:
        assert ax.get_window_extent().height == pytest.approx(1.5 * figure.dpi, rel=0.05)
        boxes += [
            label.get_window_extent() for label in (ax.title, ax.xaxis.label) if label.get_text()
        ]
        ticks = [
            label.get_tightbbox()
            for label in ax.get_xticklabels()
            if ax.get_xlim()[0] <= label.get_position()[0]
        ]
        boxes += [] if ax.get_xticklabels()[0].get_rotation() else ticks
        box = ax.get_tightbbox()
        assert (
            box.x0 >= 0
            and box.y0 >= key.get_window_extent().y1 - 1
            and box.x1 <= width + 1
            and box.y1 <= height
        )
    assert boxes[0].x0 >= 0 and boxes[0].x1 <= width
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_names_with_signs_of_mathematics(tmp_path):
    for kind in ("loss", "time", "f1"):
        figure = draw(kind, many(tmp_path, ["P2C", r"b$\y$"], [r"a$\x$", "c"]))
        figure.draw_without_rendering()
        assert r"b$\y$" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_figures_have_labels_and_a_description(runs):
    for kind in ("loss", "time", "f1"):
        figure = draw(kind, find_results([runs]))
        assert figure.axes[0].get_ylabel()
        assert not figure.legends[0].get_title().get_text()  # it is in the caption
        assert "2 seeds" in caption(figure, KINDS[kind].text)
        described = describe(figure, KINDS[kind].text)
        assert described.startswith(KINDS[kind].text) and "P2C, MaPLe" in described


MODULES = sorted((REPO / "results").glob("*.py"))
SLOW = {"torch", "matplotlib", "scipy", "sklearn"}


def test_what_is_slow_is_imported_only_when_used():
    names = [f"results.{path.stem}" for path in MODULES] + ["parse_test_res"]
    code = f"import sys, {', '.join(names)}; print(*({SLOW} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_results_stand_on_nothing_that_runs_models(path):
    """Also not inside functions; but for the schedule, which asks trainers/p2c.py for its noise."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module)
    ours = {path.stem for path in REPO.iterdir() if path.suffix == ".py" or path.is_dir()}
    ours = {name for name in imported if name.split(".")[0] in ours | {"torch", "torchvision"}}
    light = {f"dassl.{name}" for name in ("commands", "files", "results_json")}
    extra = {"dassl.utils.errors", "train", "trainers.p2c"} if path.stem == "schedule" else set()
    assert ours <= light | extra


# schedule


def test_the_schedule_figure():
    """Linear: σ_max (1 − t/4). The mixture's density is scipy's sum, and has mean 0 and variance
    1."""
    pairs = (
        "OPTIM.MAX_EPOCH 4 TRAINER.P2C.DPD.SCHEDULE linear TRAINER.P2C.DPD.SIGMA_MAX 0.02".split()
    )
    mixture = ["TRAINER.P2C.DPD.GMM_MEANS", "(0.0,4.0)", "TRAINER.P2C.DPD.GMM_STDS", "(1.0,2.0)"]
    mixture += ["TRAINER.P2C.DPD.GMM_WEIGHTS", "(3.0,1.0)"]
    figure = draw_schedule(schedule_config([*pairs, *mixture]), Page())
    left, right = figure.axes
    assert left.get_lines()[1].get_xdata() == pytest.approx([1, 2, 3, 4])  # as a log counts
    assert left.get_lines()[1].get_ydata() == pytest.approx([0.02, 0.015, 0.01, 0.005])
    density = next(line for line in right.get_lines() if line.get_label() == "mixture")
    x, y = density.get_xdata(), density.get_ydata()
    mean, std = 1.0, (0.75 * 1 + 0.25 * (4 + 16) - 1) ** 0.5
    expected = 0.75 * st.norm.pdf(x, -mean / std, 1 / std) + 0.25 * st.norm.pdf(
        x, (4 - mean) / std, 2 / std
    )
    assert y == pytest.approx(expected, abs=1e-6)
    moments = [integrate.simpson(y * x**k, x=x) for k in range(3)]
    assert moments == pytest.approx([1, 0, 1], abs=1e-3)


def test_a_schedule_as_in_a_config_file_and_bad_ones(tmp_path, capsys):
    assert (
        figures.main(
            ["schedule", "configs/trainers/P2C/table4_dpd_gaussian.yaml", "--out", str(tmp_path)]
        )
        == 0
    )
    assert capsys.readouterr().out.split() == [
        str(tmp_path / f"schedule.{suffix}") for suffix in ("png", "pdf", "txt")
    ]
    assert (tmp_path / "schedule.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "schedule.pdf").read_bytes()[:4] == b"%PDF"
    for given, code, text in (
        (["nowhere.yaml"], 2, "no config file nowhere.yaml"),
        (["TRAINER.P2C.DPD.SCHEDULE", "cosinus"], 2, "choose from constant"),
        (["configs/trainers/P2C/table4_baseline.yaml"], 1, "DPD.ENABLED is False"),
    ):
        with pytest.raises(SystemExit) as left:
            figures.main(["schedule", *given, "--out", str(tmp_path)])
        assert left.value.code == code
        the_line(capsys, text)


# the command


def test_all_draws_what_there_is(runs, capsys):
    assert figures.main(["all", str(runs), "--out", str(runs / "figures")]) == 0
    suffixes = ("pdf", "png", "txt")
    made = [f"{kind}.{suffix}" for kind in ("f1", "loss", "time") for suffix in suffixes]
    assert sorted(path.name for path in (runs / "figures").iterdir()) == made


def test_only_the_methods_asked_for(runs, capsys):
    found = figures.only(find_results([runs]), ["MaPLe"])
    assert {r.trainer for r in found} == {"MaPLe"} and len(found) == 2
    with pytest.raises(SystemExit) as left:
        figures.main(["loss", str(runs), "--methods", "CoOp"])
    assert left.value.code == 2
    the_line(capsys, "--methods CoOp: none here; there are MaPLe, P2C")


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("loss", "{empty}"), 1, "nothing to draw in"),
        (("all", "{empty}"), 1, "nothing to draw in"),
        (("cloud", "{runs}"), 1, "run inference.cloud"),
        (("loss", "/nowhere"), 2, "/nowhere: no such folder"),
        (("loss",), 2, "give the folders"),
        (("losses", "{runs}"), 2, "invalid choice"),
        (
            (
                "loss",
                "{runs}",
                "--out",
                "{runs}/base2new/train_base/dtd/shots_16/P2C/c/seed1/results.json",
            ),
            1,
            "write",
        ),
    ],
)
def test_bad_input(args, code, text, runs, tmp_path_factory, capsys):
    places = {"runs": runs, "empty": tmp_path_factory.mktemp("empty")}
    with pytest.raises(SystemExit) as left:
        figures.main([arg.format(**places) for arg in args])
    assert left.value.code == code
    the_line(capsys, text)


def test_a_damaged_record_is_warned_of(tmp_path, caplog, capsys):
    (put(tmp_path, "P2C", 1, 80.0) / "results.json").write_text('{"format": 1, "metr')
    with pytest.raises(SystemExit):
        figures.main(["loss", str(tmp_path)])
    assert "results.json cannot be read" in caplog.text
    the_line(capsys, "nothing to draw")
