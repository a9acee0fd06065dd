"""scripts/protocol.sh: which runs there are, which are still to be done, and the tables; expected
numbers by hand."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from results.layout import place_of
from results.protocols import VARIANTS
from runs import plan, pool, protocol, starter, sweep

from .runs import HANG, wait_for
from .test_parse import EPOCH, block, trained

REPO = Path(__file__).resolve().parents[1]
JOB = pool.Job
P2C, MAPLE, ZERO = (
    "P2C/vit_tiny_ep5_batch4",
    "MaPLe/vit_tiny_c2_ep5_batch4_2ctx",
    "ZeroshotCLIP/vit_tiny",
)


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch) -> Path:
    """The output folder of the runs, which are asked for as from the repository's folder."""
    monkeypatch.chdir(REPO)
    for name in (*plan.ENVIRONMENT, "SHOW_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUTPUT", str(tmp_path))
    return tmp_path


def write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(text)


def main(words: str) -> int:
    return protocol.main(words.split())


def dry(words: str, capsys) -> list[str]:
    assert main(words.replace(" ", " --dry-run ", 1)) == 0
    usual = f"OUTPUT={os.environ['OUTPUT']} "
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(usual) for line in lines)
    return [line.removeprefix(usual) for line in lines]


def instead(monkeypatch: pytest.MonkeyPatch, script: Callable[[plan.Run], str]) -> list[str]:
    """Runs do this, in bash, in place of their commands; returns their names as they start."""
    started = []

    class Job(JOB):
        def __init__(self, how: starter.Starter, run: plan.Run, *rest):
            started.append(str(run))
            real, run.command = run.command, ["bash", "-c", script(run)]
            super().__init__(how, run, *rest)
            run.command = real

    monkeypatch.setattr(pool, "Job", Job)
    monkeypatch.setattr(
        starter, "what_is_executed", lambda *_: None
    )  # bash is not asked, which would do them
    return started


def no_luck(run: plan.Run) -> str:
    return "echo a line before >&2; echo error: no luck >&2; exit 1"


def test_the_plain_commands(capsys):
    assert dry(
        "base2new --methods p2c maple --datasets shapes dtd --seeds 2 -- OPTIM.LR 0.1", capsys
    ) == [
        f"bash scripts/{method}/base2new_{part}.sh {dataset} 2 OPTIM.LR 0.1"
        for dataset in ("shapes", "dtd")
        for method in ("p2c", "maple")
        for part in ("train", "test")
    ]
    assert dry("few_shot --methods ZSCLIP --datasets eurosat --seeds 1 1 --shots 4 8", capsys) == [
        "bash scripts/zsclip/few_shot.sh eurosat 4 1",
        "bash scripts/zsclip/few_shot.sh eurosat 8 1",
    ]
    assert dry("xd --methods p2c --datasets shapes --seeds 1", capsys) == [
        "bash scripts/p2c/xd_train.sh shapes 1",
        "SOURCE=shapes bash scripts/p2c/xd_test.sh shapes_background 1",
        "SOURCE=shapes bash scripts/p2c/xd_test.sh shapes_count 1",
    ]
    assert dry("dg --methods p2c --datasets image_folder dtd --seeds 1", capsys)[1:] == [
        "SOURCE=image_folder bash scripts/p2c/xd_test.sh dtd 1",
    ]


def test_the_usual_datasets_methods_and_seeds(capsys):
    assert len(dry("base2new --methods zsclip --seeds 1", capsys)) == 11 * 2
    assert len(dry("few_shot --datasets shapes", capsys)) == 3 * 3 * 5
    assert len(dry("xd --methods p2c --seeds 1", capsys)) == 1 + 10
    lines = dry("dg --methods p2c --seeds 1", capsys)
    assert [line.split()[3] for line in lines[1:]] == list(VARIANTS)


def test_a_log_says_whether_a_run_is_finished(out, capsys):
    train, test = (
        out / f"base2new/{side}/shapes/shots_16/{P2C}/seed1" for side in ("train_base", "test_new")
    )
    words = "base2new --methods p2c --datasets shapes --seeds 1"
    both = dry(words, capsys)
    write(test, block(50.0))
    assert dry(words, capsys) == both  # an older model's result
    write(train, f"{EPOCH}\n")
    assert dry(words, capsys) == both
    write(train, trained(60.0))
    assert dry(words, capsys) == []
    write(test, "Evaluate on the *test* set\n")
    assert dry(words, capsys) == both[1:]


@pytest.mark.parametrize("was", ["xd_train.sh shapes 1", "few_shot.sh shapes 16 1"])
def test_a_training_on_all_classes_is_of_both_protocols(was, out, capsys):
    """Cross-dataset trains as few-shot does, in the same folder; other settings are refused."""
    folder = out / f"shapes/{P2C}_16shots/seed1"
    write(folder, trained(60.0))
    for added in ("", " OPTIM.LR 0.1"):
        (folder / ".lock").write_text(f"bash scripts/p2c/{was}{added}")
        of_both = {
            "few_shot --shots 16": [],
            "xd": ["xd_test.sh shapes_background 1", "xd_test.sh shapes_count 1"],
        }
        for words, left in of_both.items():
            words = f"{words} --methods p2c --datasets shapes --seeds 1"
            if added:
                with pytest.raises(SystemExit, match="2"):
                    dry(words, capsys)
                assert f"holds another run (bash scripts/p2c/{was} OPTIM" in capsys.readouterr().err
                words += f" --{added}"
            assert [line.split("p2c/")[1].split(" OPTIM")[0] for line in dry(words, capsys)] == left


def refused(words: str, capsys) -> str:
    """The line with which a protocol's runs are refused."""
    with pytest.raises(SystemExit, match="2"):
        main(f"{words} --dry-run")
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("words", ["few_shot --shots 16", "xd"])
def test_a_training_with_settings_of_the_protocol_s_script_is_of_it_alone(
    words, out, capsys, monkeypatch
):
    """CoOp's few_shot.sh trains ImageNet for 50 epochs, its xd_train.sh for the file's 200."""
    monkeypatch.setenv("CFG", "vit_b16_few_shot")
    folder = out / "imagenet/CoOp/vit_b16_few_shot_16shots/seed1"
    write(folder, trained(60.0))
    was = "few_shot.sh imagenet 16 1" if words == "xd" else "xd_train.sh imagenet 1"
    (folder / ".lock").write_text(f"bash scripts/coop/{was}")
    words += " --methods coop --datasets imagenet --seeds 1"
    assert f"holds another run (bash scripts/coop/{was}; now" in refused(words, capsys)


def by_hand(folder: Path, *words: str, root: str = "data") -> None:
    """A run of base2new_train.sh, which keeps no command but that of train.py."""
    config = f"configs/trainers/{P2C}.yaml"
    command = f"train.py --root {root} --seed 1 --trainer P2C --output-dir {folder}".split()
    command += ["--dataset-config-file", f"configs/datasets/{folder.parents[3].name}.yaml"]
    command += ["--config-file", config, *words]
    command += "DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base".split()
    write(folder, trained(60.0))
    (folder / ".lock").touch()
    dataset = "ImageFolder" if folder.parents[3].name == "image_folder" else "Shapes"
    record = {"command": shlex.join(["python", *command]), "dataset": dataset, "model": None}
    (folder / "results.json").write_text(json.dumps(record))


def test_what_a_script_ran_by_hand_counts_if_it_is_the_same(out, capsys, monkeypatch):
    words = "base2new --methods p2c --datasets shapes --seeds 1"
    folder = out / f"base2new/train_base/shapes/shots_16/{P2C}/seed1"
    by_hand(folder, root="/moved")  # the same images anywhere
    assert dry(words, capsys) == ["bash scripts/p2c/base2new_test.sh shapes 1"]
    by_hand(
        folder, *"--resume x TRAIN.PRINT_FREQ 1 USE_CUDA False DATALOADER.NUM_WORKERS 0".split()
    )
    assert len(dry(words, capsys)) == 1  # what changes no result
    by_hand(folder, "TEST.FINAL_MODEL", "best_val")
    assert "(TEST.FINAL_MODEL best_val; now without)" in refused(words, capsys)
    by_hand(folder, "OPTIM.MAX_EPOCH", "2")
    assert f"{folder} holds another run (OPTIM.MAX_EPOCH 2; now without)" in refused(words, capsys)
    assert dry(f"{words} -- OPTIM.MAX_EPOCH 2", capsys)[0].startswith("bash scripts/p2c/base2new_t")
    with pytest.raises(SystemExit, match="2"):
        dry(f"{words} -- OPTIM.MAX_EPOCH 3", capsys)
    assert "(OPTIM.MAX_EPOCH 2; now OPTIM.MAX_EPOCH 3)" in capsys.readouterr().err


def test_photos_of_another_folder_are_another_run(out, capsys, monkeypatch, tmp_path):
    """Also for what the protocol itself ran: DATA is no part of its command."""
    monkeypatch.setenv("CFG", "vit_tiny_ep5_batch4")
    folder = out / f"base2new/train_base/image_folder/shots_16/{P2C}/seed1"
    (tmp_path / "cats").mkdir()
    by_hand(folder, root=f"{tmp_path}/cats/../cats/")
    words = "base2new --methods p2c --datasets image_folder --seeds 1"
    (folder / ".lock").write_text("bash scripts/p2c/base2new_train.sh image_folder 1")
    monkeypatch.setenv("DATA", f"{tmp_path}/cats")
    assert main(f"{words} --dry-run") == 0 and len(capsys.readouterr().out.splitlines()) == 1
    monkeypatch.setenv("DATA", f"{tmp_path}/dogs")
    assert f"(DATA={tmp_path}/cats; now DATA={tmp_path}/dogs)" in refused(words, capsys)
    (tmp_path / "cats").rename(tmp_path / "dogs")  # moved
    assert main(f"{words} --dry-run") == 0 and len(capsys.readouterr().out.splitlines()) == 1


def test_the_test_of_a_model_of_another_source_is_refused(out, capsys):
    words = "xd --methods p2c --seeds 1 --datasets"
    test = out / f"evaluation/{P2C}_16shots/shapes_count/seed1"
    write(test, block(50.0))
    for source in ("shapes", "shapes_background"):
        write(out / f"{source}/{P2C}_16shots/seed1", trained(60.0))
    model = f"../../../../../shapes/{P2C}_16shots/seed1"
    (test / "results.json").write_text(json.dumps({"model": {"folder": model}}))
    assert dry(f"{words} shapes shapes_count", capsys) == []
    for _ in ("finished", "to be trained"):
        line = refused(f"{words} shapes_background shapes_count", capsys)
        assert f"{test} holds the test of another model ({out}/shapes/{P2C}_16shots/seed1; " in line
        shutil.rmtree(out / f"shapes_background/{P2C}_16shots", ignore_errors=True)


def test_two_runs_of_one_folder_are_refused(out, capsys, tmp_path):
    """Two sources' tests of one target, which a sweep can ask for."""
    file = tmp_path / "two.yaml"
    file.write_text(
        "protocol: xd\nmethods: [p2c]\nseeds: [1]\n"
        "datasets: [shapes, shapes_fog]\ntargets: [shapes_count]\n"
    )
    with pytest.raises(SystemExit, match="2"):
        sweep.main([str(file)])
    assert "shapes_count/seed1 would be the folder of two runs (" in capsys.readouterr().err


def test_base_to_new_table(out, capsys):
    for seed, base, new in ((1, 80, 40), (2, 60, 60)):  # HM 53.3, 60.0
        write(out / f"base2new/train_base/shapes/shots_16/{P2C}/seed{seed}", trained(base))
        write(out / f"base2new/test_new/shapes/shots_16/{P2C}/seed{seed}", block(new))
    assert main("base2new --methods p2c --datasets shapes --seeds 1 2 --format markdown") == 0
    done = capsys.readouterr()
    assert "| shapes    | P2C      | 70.0 ± 10.0 | 50.0 ± 10.0 | 56.7 ± 3.3 | 2       |" in done.out
    assert done.err == "4 of 4 runs are finished\n"


def test_cross_dataset_table(out, capsys):
    for seed, source, one, other in ((1, 50, 40, 20), (2, 70, 50, 30)):
        write(out / f"shapes/{MAPLE}_16shots/seed{seed}", trained(source))
        for target, accuracy in (("shapes_background", one), ("shapes_count", other)):
            write(out / f"evaluation/{MAPLE}_16shots/{target}/seed{seed}", block(accuracy))
    words = "xd --methods maple --datasets shapes --seeds 1 2"
    assert main(words) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[1].split() == [
        "dataset",
        "method",
        "shapes",
        "shapes_background",
        "shapes_count",
        "average",
    ]
    assert text[3].split(maxsplit=2)[2].split("  ")[0] == "60.0 ± 10.0"
    assert main(f"{words} --format csv") == 0
    header, row = capsys.readouterr().out.splitlines()[1:]
    names = ("shapes", "shapes_background", "shapes_count", "average")
    assert header == ",".join(
        ["dataset,method", *(f"{n}_{p}" for n in names for p in ("mean", "std", "seeds"))]
    )
    assert (
        row == "shapes,MaPLe,60.0000,10.0000,2,45.0000,5.0000,2,25.0000,5.0000,2,35.0000,5.0000,2"
    )


def test_a_missing_seed_is_said(out, capsys, monkeypatch):
    instead(monkeypatch, no_luck)
    for seed, targets in ((1, ("shapes_background", "shapes_count")), (2, ("shapes_count",))):
        write(out / f"shapes/{ZERO}_16shots/seed{seed}", block(50))
        for target in targets:
            write(out / f"evaluation/{ZERO}_16shots/{target}/seed{seed}", block(20 * seed))
    assert main("xd --methods zsclip --datasets shapes --seeds 1 2 --format markdown") == 1
    row = capsys.readouterr().out.splitlines()[3]
    assert [cell.strip() for cell in row.split("|")[3:-1]] == [
        "50.0 ± 0.0", "20.0 (1 of 2 seeds)", "30.0 ± 10.0", "20.0 (1 of 2 seeds)",
    ]  # fmt: skip


def test_few_shot_table_and_its_average(out, capsys, monkeypatch):
    instead(monkeypatch, no_luck)
    for dataset, shots, accuracy in (("shapes", 1, 30), ("shapes", 2, 50), ("shapes_count", 1, 50)):
        for seed in (1, 2):
            write(out / f"{dataset}/{ZERO}_{shots}shots/seed{seed}", block(accuracy))
    assert (
        main(
            "few_shot --methods zsclip --datasets shapes shapes_count --seeds 1 2 --shots 1 2 "
            "--format latex"
        )
        == 1
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert r"shapes & ZeroshotCLIP & 30.0 $\pm$ 0.0 & 50.0 $\pm$ 0.0 \\" in lines
    assert r"shapes\_count & ZeroshotCLIP & 50.0 $\pm$ 0.0 & -- \\" in lines
    assert r"Average & ZeroshotCLIP & 40.0 $\pm$ 0.0 & -- \\" in lines


def test_a_test_of_a_model_that_is_no_longer_there_is_run_again(out, capsys, monkeypatch):
    train, test = (
        out / f"base2new/{side}/shapes/shots_16/{P2C}/seed1" for side in ("train_base", "test_new")
    )
    write(train, trained(60.0))
    write(test, block(50.0))
    model = train / "MultiModalPromptLearner"
    model.mkdir()
    for epoch in (2, 5):
        (model / f"model.pth.tar-{epoch}").write_text(f"weights {epoch}")
    (model / "checkpoint").write_text("model.pth.tar-5\n")
    words = "base2new --methods p2c --datasets shapes --seeds 1"

    def tested(epoch: int, weights: str, asked: int | None = None) -> list[str]:
        files = {
            model.name: [f"model.pth.tar-{epoch}", hashlib.sha256(weights.encode()).hexdigest()]
        }
        record = {"model": {"folder": os.path.relpath(train, test), "epoch": asked, "files": files}}
        (test / "results.json").write_text(json.dumps(record))
        return dry(words, capsys)

    again = ["bash scripts/p2c/base2new_test.sh shapes 1"]
    assert tested(2, "weights 2") == again and tested(5, "weights of another training") == again
    assert tested(5, "weights 5") == []
    assert tested(2, "weights 2", asked=2) == again  # a test of LOADEP=2 is no test of the newest
    monkeypatch.setenv("LOADEP", "2")
    [line] = again
    assert tested(2, "weights 2", asked=2) == [] and tested(5, "weights 5") == [f"LOADEP=2 {line}"]
    monkeypatch.delenv("LOADEP")
    for broken in ("{", "[]", '{"model": 1}', '{"model": {"epoch": null, "files": []}}'):
        (test / "results.json").write_text(broken)
        assert dry(words, capsys) == []
    shutil.rmtree(model)  # what is no longer needed may go
    assert tested(5, "weights 5") == []


def test_a_failing_run_stops_nothing_else(out, capsys, monkeypatch):
    log = f"'{block(40.0)}'"
    started = instead(
        monkeypatch,
        lambda run: no_luck(run) if run.method == "p2c" else f"echo {log} > {run.folder}/log.txt",
    )
    assert main("base2new --methods p2c zsclip --datasets shapes --seeds 7") == 1
    assert started == [f"{what}, shapes, seed 7: {part}" for what, part in (
        ("p2c", "train"), ("zsclip", "train"), ("zsclip", "test"))]  # fmt: skip
    done = capsys.readouterr()
    assert "ZeroshotCLIP" in done.out and "P2C" not in done.out
    assert done.err.splitlines() == [
        "[1/4] p2c, shapes, seed 7: train",
        "a line before",
        "error: no luck",
        "[3/4] zsclip, shapes, seed 7: train",
        "[4/4] zsclip, shapes, seed 7: test (about 0:00:00 left)",
        "",
        "2 of 4 runs failed:",
        f"p2c, shapes, seed 7: train: OUTPUT={out} bash scripts/p2c/base2new_train.sh shapes 7",
        "  a line before",
        "  error: no luck",
        "1 of them were not run, as their training failed",
    ]
    instead(monkeypatch, lambda run: "true")
    assert (
        main("base2new --methods p2c --datasets shapes --seeds 7") == 1
    )  # it must have left a result
    assert f"exit code 0 and no result in {out}/base2new/train_base" in capsys.readouterr().err


def test_the_time_left(out):
    place = place_of(f"{out}/shapes/{P2C}_16shots/seed1")
    train, train_too, test = (
        plan.Run("p2c", "shapes", 1, part, "", [], {}, place) for part in ("train", "train", "test")
    )
    of_three = pool.Pool([train, train_too, test], [{}], pool.View())
    assert of_three.left() == ""
    of_three.took["p2c", "train"] += [10.0, 20.0]
    assert of_three.left() == " (about 0:00:45 left)"
    of_three.took["p2c", "test"] += [3.0]
    assert of_three.left() == " (about 0:00:33 left)"
    of_three.slots = [{}, {}, {}]
    assert of_three.left() == " (about 0:00:11 left)"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "base2knew",
            "invalid choice: 'base2knew' (choose from 'base2new', 'xd', 'dg', 'few_shot')",
        ),
        ("xd --methods p2c coopp", "invalid choice: 'coopp' (choose from "),
        ("xd --datasets eurosatt", "invalid choice: 'eurosatt' (choose from "),
        ("xd --datasets dtd", "error: dtd has no usual targets: give --datasets dtd TARGET …"),
        ("few_shot --seeds -1", "error: --seeds are 0 or more, --shots 1 or more"),
        ("base2new --seeds one", "invalid int value: 'one'"),
    ],
)
def test_wrong_words_are_one_line(words, line, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    err = capsys.readouterr().err
    # from Python 3.12 on names are listed without quotation marks
    assert (
        caught.value.code == 2
        and line.replace("'", "") in err.replace("'", "")
        and err.count("\n") == 1
    )


def test_a_config_that_a_method_does_not_have_is_found_first(monkeypatch, capsys):
    monkeypatch.setenv("CFG", "vit_tiny_ep5_batch4")
    with pytest.raises(SystemExit) as caught:
        main("base2new --methods p2c maple --datasets shapes")
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.startswith(
        "error: no config configs/trainers/MaPLe/vit_tiny_ep5_batch4.yaml"
    )
    assert err.count("\n") == 1


# -- as typed


def start(data: Path, out: Path, *words: str) -> subprocess.Popen:
    env = os.environ | {
        "VENV": sys.prefix,
        "OMP_NUM_THREADS": "1",
        "DATA": str(data),
        "OUTPUT": str(out),
    }
    command = ["bash", "scripts/protocol.sh", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command,
        cwd=REPO,
        env=env,
        stdout=pipe,
        stderr=pipe,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def test_real_runs_one_of_which_fails(data, out):
    words = [
        "few_shot",
        "--methods",
        "zsclip",
        "--datasets",
        "dtd",
        "shapes",
        "--seeds",
        "1",
        "--shots",
        "2",
    ]
    process = start(data, out, *words)
    stdout, stderr = process.communicate(timeout=HANG)
    assert process.returncode == 1 and "shapes     ZeroshotCLIP" in stdout
    assert (
        stderr.count(f"error: DescribableTextures: no folder {data}/dtd") == 2
    )  # at once, and at the end
    assert "1 of 2 runs failed" in stderr and "Traceback" not in stderr
    words.remove("dtd")
    process = start(data, out, *words)
    stdout, stderr = process.communicate(timeout=HANG)
    assert (
        process.returncode == 0
        and stderr == "1 of 1 runs are finished\n"
        and "ZeroshotCLIP" in stdout
    )


def test_ctrl_c_ends_it_with_one_line(data, out):
    process = start(
        data, out, "base2new", "--methods", "p2c", "--datasets", "shapes", "--seeds", "1"
    )
    assert process.stderr.readline() == "[1/2] p2c, shapes, seed 1: train\n"
    folder = out / "base2new" / "train_base"
    wait_for(lambda: list(folder.rglob("log.txt")))
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=HANG)
    assert process.returncode == 130 and stdout == ""
    assert stderr == "\nstopped; run the same command again to go on\n"
