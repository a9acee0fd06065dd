"""scripts/sweep.sh: files of sweeps, and doing runs side by side; in most tests the runs are a few
lines of bash."""

import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import datasets
import trainers
from dassl.config import get_cfg_default
from results.layout import Place
from results.protocols import TEN, VARIANTS
from runs import plan, pool, starter, sweep

from .runs import HANG, python_path, wait_for

REPO = Path(__file__).resolve().parents[1]
ALL = "zsclip coop cocoop kgcoop prograd promptsrc tcp mma maple".split()
ALL += "coop_atp cocoop_atp maple_atp p2c bpl empl mmrl mmrlpp vamp vamp_mmrl".split()
ALL += "rebapl_coop rebapl_maple rebapl_mmrl rebapl_p2c".split()

# In place of scripts/run.sh, as far as base-to-new goes. Seed 9 fails, seed 8 waits for a file
# `go`; the journal says what began and what ended.
FAKE = """
if [ -n "$SHOW_DIR" ]; then printf '%s\\0' $(($# + 3)) python -m runs.run "$@"; exec env -0; fi
seed=$4
case $1 in *_train) side=train_base ;; *) side=test_new ;; esac
dir=$OUTPUT/base2new/$side/$3/shots_16/$2/${CFG:-vit_tiny}/seed$seed
echo "begin $dir $CUDA_VISIBLE_DEVICES" >> journal
if [ $seed = 8 ]; then while [ ! -e go ]; do sleep 0.05; done; fi
if [ $seed = 9 ]; then
  echo "epoch [2/5] batch [1/2]" > "$dir/log.txt"
  echo "error: no luck" >&2; exit 3
fi
echo "end $dir" >> journal
printf '=> result\\n* accuracy: 50.0%%\\n' > "$dir/log.txt"
"""
# The program without what loads torch.
PROGRAM = (
    "from runs import pool, sweep; sweep.slots = lambda asked: [{}] * (asked or 2); "
    "pool.Starter.fork = lambda *_: None; pool.LOOK_AGAIN = 0.1; "
    "sweep.check_config_keys = lambda *_: None; sweep.command_line(sweep.main)"
)


@pytest.fixture
def repo(tmp_path, monkeypatch) -> Path:
    """A repository with two methods and two datasets whose runs are FAKE; the working directory."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "fake.sh").write_text(FAKE)
    for method in ("p2c", "zsclip"):
        folder = tmp_path / "scripts" / method
        folder.mkdir()
        for name in ("base2new_train", "base2new_test", "xd_train", "xd_test"):
            (folder / f"{name}.sh").write_text(f'exec bash scripts/fake.sh {name} {method} "$@"\n')
    (tmp_path / "configs" / "datasets").mkdir(parents=True)
    for name in ("dtd", "shapes"):
        (tmp_path / "configs" / "datasets" / f"{name}.yaml").touch()
    for method in ("p2c", "zsclip"):
        folder = tmp_path / "configs" / "trainers" / method
        folder.mkdir(parents=True)
        for name in ("vit_tiny", "vit_b16", "other", "table4_baseline"):
            (folder / f"{name}.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for name in (*plan.ENVIRONMENT, "SHOW_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sweep, "slots", lambda asked: [{}] * (asked or 2))
    monkeypatch.setattr(pool.Starter, "fork", lambda *_: None)  # there is no train.py
    plan.ask.cache_clear()
    return tmp_path


def file(repo: Path, **keys) -> str:
    usual = {"protocol": "base2new", "methods": ["p2c"], "datasets": ["shapes"], "seeds": [1]}
    (repo / "my.yaml").write_text(yaml.safe_dump(usual | keys, sort_keys=False))
    return "my.yaml"


def journal(repo: Path, what: str) -> list[str]:
    """The folders of the runs that began, or ended."""
    lines = (repo / "journal").read_text().splitlines() if (repo / "journal").exists() else []
    words = [line.split() for line in lines]
    return [folder for event, folder, *_ in words if event == what]


def folder_of(side: str, seed: int, setting: str = "", cfg: str = "vit_tiny") -> str:
    """Of a run of p2c on shapes: `side` is train_base or test_new."""
    out = Path("output/my", setting)
    return f"{out}/base2new/{side}/shapes/shots_16/p2c/{cfg}/seed{seed}"


def start(repo: Path, *words: str, stderr=subprocess.PIPE) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": python_path(REPO)}
    command = [sys.executable, "-c", PROGRAM, *words]
    return subprocess.Popen(
        command, cwd=repo, env=env, stderr=stderr, text=True, start_new_session=True
    )


# -- files


def dry(words: str, capsys) -> list[str]:
    assert sweep.main([*words.split(), "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_command_for_each_model(repo, capsys):
    settings = {"small": ["TRAINER.P2C.AUX.LAMBDA", -0.5], "other": "table4_baseline"}
    name = file(repo, seeds=[2, 2, 1], datasets=["shapes", "dtd"], settings=settings)
    assert dry(name, capsys) == [
        f"{env} bash scripts/protocol.sh base2new --methods p2c --datasets {dataset} "
        f"--seeds {seed}{opts}"
        for seed in (2, 1)
        for env, opts in (
            ("OUTPUT=output/my/small", " -- TRAINER.P2C.AUX.LAMBDA -0.5"),
            ("OUTPUT=output/my/other CFG=table4_baseline", ""),
        )
        for dataset in ("shapes", "dtd")
    ]
    name = file(repo, protocol="xd", targets=["dtd"], output="there")
    assert dry(name, capsys) == [
        "OUTPUT=there bash scripts/protocol.sh xd --methods p2c --datasets shapes dtd --seeds 1"
    ]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"dataset": ["dtd"]}, "key: there is no dataset; did you mean datasets?"),
        ({"methods": ["p2cc"]}, "methods: there is no p2cc; did you mean p2c?"),
        ({"datasets": ["mnist"]}, "datasets: there is no mnist; choose from dtd, shapes"),
        ({"protocol": "base2knew"}, "protocol: there is no base2knew; did you mean base2new?"),
        ({"seeds": []}, "seeds: must be a list of at least one value"),
        ({"methods": "p2c"}, "methods: must be a list of at least one value"),
        ({"seeds": [1, "two"]}, "seeds: must be whole numbers, 0 or more"),
        ({"seeds": [True]}, "seeds: must be whole numbers, 0 or more"),
        ({"seeds": [-1]}, "seeds: must be whole numbers, 0 or more"),
        ({"shots": [1]}, "shots: goes with few_shot"),
        ({"targets": ["dtd"]}, "targets: goes with xd and dg"),
        ({"protocol": "xd", "datasets": ["dtd"]}, "targets: dtd has no usual ones"),
        ({"protocol": "dg", "targets": ["dtd"]}, "targets: dtd is one of xd, in whose table its"),
        ({"output": ["a"]}, "output: must be a folder"),
        ({"settings": {}}, "settings: must be one or more `name: "),
        ({"settings": {"../up": []}}, "settings: ../up: the name is to be a folder's"),
        ({"settings": {0.1: []}}, "settings: 0.1: the name is to be a folder's"),
        ({"settings": {"a": None}}, "settings: a: must be [KEY, VALUE, …] or a config file's name"),
        (
            {"settings": {"a": ["KEY"]}},
            "settings: a: keys and values come in pairs, but KEY has no value",
        ),
        (
            {"settings": {"a": ["OPTIM.LR", 1, "SEED", 2]}},
            "settings: a: SEED is no setting: each run has its own",
        ),
    ],
)
def test_a_wrong_file_is_one_line(repo, keys, line, capsys):
    with pytest.raises(SystemExit) as caught:
        sweep.main([file(repo, **keys)])
    err = capsys.readouterr().err
    assert (
        caught.value.code == 2
        and err.startswith(f"error: my.yaml: {line}")
        and err.count("\n") == 1
    )
    assert not (repo / "journal").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "my.yaml: nothing in it: it needs the keys protocol, "),
        ("protocol: base2new\n", "my.yaml: methods: is missing"),
        ("a: [", "my.yaml: while parsing"),
        ("settings:\n  a: [K, 1]\n  a: [K, 2]\n", "my.yaml: a: is there twice"),
        ("a: \x00", "my.yaml: unacceptable character"),
        (None, "my.yaml: No such file or directory; ready sweeps are "),
    ],
)
def test_what_is_no_sweep_is_one_line(repo, text, line, capsys):
    if text is not None:
        (repo / "my.yaml").write_text(text)
    with pytest.raises(SystemExit) as caught:
        sweep.main(["my.yaml"])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.startswith(f"error: {line}") and err.count("\n") == 1


def test_a_setting_that_train_py_would_refuse_is_found_first(repo, capsys):
    name = file(repo, settings={"good": ["OPTIM.LR", 1e-3], "typo": ["TRAINER.P2C.DPD.SIGMA", 0.1]})
    with pytest.raises(SystemExit) as caught:
        sweep.main([name])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and not (repo / "journal").exists()
    assert (
        "my.yaml: settings: typo: TRAINER.P2C.DPD.SIGMA 0.1: there is no config key "
        "TRAINER.P2C.DPD.SIGMA; did you mean" in err
    )


def ready(name: str) -> sweep.Sweep:
    return sweep.read_sweep(REPO / "configs" / "sweeps" / f"{name}.yaml")


def config(name: str, setting: plan.Plan):
    """P2C's config in a setting."""
    cfg = get_cfg_default()
    datasets.add_config(cfg)
    trainers.add_configs(cfg)
    cfg.merge_from_file(f"{REPO}/configs/trainers/P2C/{setting.env.get('CFG', name)}.yaml")
    cfg.merge_from_list(list(setting.opts))
    return cfg.TRAINER


@pytest.fixture
def here(monkeypatch) -> None:
    """In the repository; the scripts are not asked for their folders, which takes long for so many
    runs."""
    monkeypatch.chdir(REPO)
    monkeypatch.delenv("OUTPUT", raising=False)

    def ask(command: tuple, settings: tuple) -> tuple[Place, str]:
        words = [word.replace("/", " ") for word in (*command, *sum(settings, ()))]
        return Place("", "base2new_train", "-".join(words), "cfg", "dataset", "16", "0"), ""

    monkeypatch.setattr(plan, "ask", ask)


@pytest.mark.parametrize("name", sorted(p.stem for p in (REPO / sweep.SWEEPS).glob("*.yaml")))
def test_ready_sweeps(here, name):
    found = ready(name)
    bundled = name.startswith("shapes_")
    of_p2c = name.endswith(("table4", "table5", "fig3", "bf16", "open_questions", "tasks_p2c"))
    of_vamp = name.endswith("vamp")
    methods = ["p2c"] if of_p2c else ["vamp", "vamp_mmrl"] if of_vamp else ALL
    assert sorted(found.methods) == sorted(methods)
    datasets = 5 if name.startswith("five_tasks") else 11
    assert len(found.datasets) == (1 if bundled or found.protocol in ("xd", "dg") else datasets)
    five = (
        "shapes_table4",
        "shapes_table5",
        "shapes_fig3",
        "shapes_bf16",
        "fig3",
        "shapes_open_questions",
    )
    seeds = 10 if name == "five_tasks_p2c" else 5 if name in five else 3
    assert len(found.seeds) == seeds
    sweep.check_config_keys(Path(name), found)
    folders = [run.folder for run in found.runs()]
    assert len(set(folders)) == len(folders)  # no two runs in one folder


def test_commands_have_what_was_set(repo, capsys, monkeypatch):
    monkeypatch.setenv("DATA", "/my data")
    monkeypatch.setenv("SHOTS", "4")
    assert dry(file(repo), capsys)[0] == (
        "DATA='/my data' SHOTS=4 OUTPUT=output/my bash scripts/protocol.sh base2new "
        "--methods p2c --datasets shapes --seeds 1"
    )


def test_every_method_has_its_part_in_the_bundled_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("VENV", sys.prefix)
    monkeypatch.setenv("OUTPUT", str(tmp_path))  # where nothing is finished yet
    assert len(dry("shapes_table1", capsys)) == len(ALL) * 3


def test_tables_2_and_3_share_their_models(here):
    for names in (("table2", "table3"), ("shapes_table2", "shapes_table3")):
        trained = [
            {str(run.folder) for run in ready(name).runs() if not run.trained} for name in names
        ]
        assert trained[0] == trained[1] and len(trained[0]) == len(ALL) * 3
    assert ready("table2").targets == list(VARIANTS) and ready("table3").targets == list(TEN)


def test_table_4_is_the_same_on_the_bundled_benchmark(here):
    ours, papers = ready("shapes_table4"), ready("table4")
    assert list(ours.settings) == list(papers.settings) and len(ours.settings) == 5
    for small, large in zip(ours.plans(), papers.plans(), strict=True):
        nodes = [config("vit_tiny_ep5_batch4", small), config("vit_b16_ep5_batch4", large)]
        for node in nodes:
            del node.P2C["PROMPT_DEPTH"]  # the small CLIP has 4 blocks
        assert nodes[0].P2C == nodes[1].P2C and nodes[0].ATPROMPT == nodes[1].ATPROMPT


def test_table_5_has_the_papers_rows(here):
    """By hand from the paper: schedule, σ_max, σ_aux, λ, s_H."""
    usual = ("sigmoid", 0.015, 0.01, 0.1, 2)
    rows = [(s, *usual[1:]) for s in ("constant", "linear", "cosine", "sigmoid")]
    rows += [("sigmoid", x, 0.01, 0.1, 2) for x in (0.005, 0.01, 0.015, 0.02, 0.03)]
    rows += [("sigmoid", 0.015, x, 0.1, 2) for x in (0.01, 0.02, 0.1)]
    rows += [("sigmoid", 0.015, 0.01, x, 2) for x in (-1.0, -0.5, -0.2, -0.1, 0.1, 0.2, 0.5, 1.0)]
    rows += [("sigmoid", 0.015, 0.01, 0.1, x) for x in (1, 2, 4, 6, 8, 16)]
    assert len(rows) == 26 and len(set(rows)) == 22

    def row(base: str, setting: plan.Plan) -> tuple:
        node = config(base, setting).P2C
        return (
            node.DPD.SCHEDULE,
            node.DPD.SIGMA_MAX,
            node.AUX.SIGMA,
            node.AUX.LAMBDA,
            node.MAPPER.HIDDEN_SCALE,
        )

    ours = [row("vit_b16_ep5_batch4", setting) for setting in ready("table5").plans()]
    assert len(ours) == 22 and set(ours) == set(rows)
    reduced = [row("vit_tiny_ep5_batch4", setting) for setting in ready("shapes_table5").plans()]
    assert len(reduced) == len(set(reduced)) == 13 and set(reduced) < set(rows)


def test_the_open_questions_are_asked_one_by_one(here):
    """By hand from the README: schedule, standardised, what F sees, stop-gradient."""
    usual = ("sigmoid", True, "ctx", True)
    others = [
        ("sigmoid_rising", *usual[1:]),
        ("sigmoid", False, *usual[2:]),
        (*usual[:2], "all", True),
    ]
    others += [(*usual[:3], False), (*usual[:2], "all", False)]
    for name, base in (
        ("open_questions", "vit_b16_ep5_batch4"),
        ("shapes_open_questions", "vit_tiny_ep5_batch4"),
    ):
        nodes = [config(base, setting).P2C for setting in ready(name).plans()]
        asked = [
            (n.DPD.SCHEDULE, n.DPD.GMM_STANDARDIZE, n.AUX.PROMPTS, n.AUX.STOP_GRADIENT)
            for n in nodes
        ]
        assert asked == [usual, *others]


def test_figure_3_varies_the_attributes_length(here):
    for name, base in (("fig3", "vit_b16_ep5_batch4"), ("shapes_fig3", "vit_tiny_ep5_batch4")):
        for setting in ready(name).plans():
            att = config(base, setting).ATPROMPT
            assert (
                f"length_{att.N_ATT1}" == setting.setting and att.N_ATT1 == att.N_ATT2 == att.N_ATT3
            )


# -- doing them


def test_a_test_waits_and_a_failure_stops_nothing_else(repo, capsys):
    name = file(repo, methods=["p2c", "zsclip"], seeds=[9, 1], settings={"a": [], "b": "other"})
    assert sweep.main([name]) == 1
    began, ended = journal(repo, "begin"), journal(repo, "end")
    assert len(began) == len(set(began)) == 4 + 8 and len(ended) == 8
    events = (repo / "journal").read_text().splitlines()
    for setting, cfg in (("a", "vit_tiny"), ("b", "other")):
        train, test = (folder_of(side, 1, setting, cfg) for side in ("train_base", "test_new"))
        assert events.index(f"end {train}") < events.index(f"begin {test} ")
    err = capsys.readouterr().err
    assert err.count("p2c a, shapes, seed 1: train: 50.0% in 0:00:00") == 1
    assert "another process" not in err
    assert (
        "8 of 16 runs failed:\n" in err
        and "4 of them were not run, as their training failed\n" in err
    )
    command = "OUTPUT=output/my/b CFG=other bash scripts/zsclip/base2new_train.sh shapes 9"
    assert f"zsclip b, shapes, seed 9: train: {command}\n  error: no luck\n" in err

    file(repo, methods=["p2c", "zsclip"], seeds=[1], settings={"a": [], "b": "other"})
    assert sweep.main([name]) == 0
    assert journal(repo, "begin") == began and capsys.readouterr().err.startswith(
        "8 of 8 runs are finished\n"
    )


def test_a_methods_script_may_be_ones_own(repo):
    """It sets variables, adds words, and ends in scripts/run.sh as ours do."""
    for part in ("train", "test"):
        text = (
            f'export CFG=other\nexec bash scripts/fake.sh base2new_{part} p2c "$@" OPTIM.LR 0.1\n'
        )
        (repo / "scripts" / "p2c" / f"base2new_{part}.sh").write_text(text)
    assert sweep.main([file(repo)]) == 0
    folders = [folder_of(side, 1, cfg="other") for side in ("train_base", "test_new")]
    assert journal(repo, "end") == folders
    [run, _] = sweep.read_sweep(repo / "my.yaml").runs()
    python, argv, env = starter.what_is_executed(run.command, os.environ | run.env)
    assert python == "python" and argv[argv.index("--output-dir") + 1] == folders[0]
    assert " OPTIM.LR 0.1 " in shlex.join(argv) and env["CFG"] == "other"


def test_a_methods_script_that_does_something_else_is_refused(repo, capsys):
    (repo / "scripts" / "p2c" / "base2new_train.sh").write_text("echo hello\n")
    with pytest.raises(SystemExit) as caught:
        sweep.main([file(repo)])
    line = "error: bash scripts/p2c/base2new_train.sh shapes 0 does not end in scripts/run.sh\n"
    assert caught.value.code == 2 and capsys.readouterr().err == line


def test_a_silent_failure_shows_its_log(repo, capsys):
    fake = FAKE.replace('echo "error: no luck" >&2; exit 3', "kill -9 $$")
    (repo / "scripts" / "fake.sh").write_text(fake)
    assert sweep.main([file(repo, seeds=[9])]) == 1
    assert "\n  epoch [2/5] batch [1/2]\n  ended by SIGKILL\n" in capsys.readouterr().err


def test_the_result_of_other_settings_is_not_taken(repo, capsys):
    assert sweep.main([file(repo, settings={"a": ["OPTIM.LR", 0.1]})]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        sweep.main([file(repo, settings={"a": ["OPTIM.LR", 0.2]})])
    err = capsys.readouterr().err
    assert (
        caught.value.code == 2
        and err.count("\n") == 1
        and "seed1 holds another run (bash scripts/p2c/" in err
    )
    assert "OPTIM.LR 0.1; now bash" in err


def test_the_result_of_other_settings_is_not_taken_from_a_sweep_beside(repo, capsys, monkeypatch):
    """It comes to be after this sweep has looked for what is finished."""
    name = file(repo, settings={"a": ["OPTIM.LR", 0.1]})
    runs = sweep.read_sweep(Path(name)).runs()
    of_this = pool.Pool(runs, [{}], pool.View())
    assert sweep.main([file(repo, settings={"a": ["OPTIM.LR", 0.2]})]) == 0
    with pytest.raises(SystemExit) as caught:
        of_this.run()
    assert (
        caught.value.code == 2
        and "seed1 holds another run (bash scripts/p2c/" in capsys.readouterr().err
    )


def test_two_at_once_share_the_work(repo):
    name = file(repo, methods=["p2c", "zsclip"], seeds=[8, 1, 2, 3])
    both = [start(repo, name), start(repo, name)]
    wait_for(lambda: len(journal(repo, "end")) == 12)  # all but those of seed 8, which wait
    (repo / "go").touch()
    errors = [process.communicate(timeout=HANG)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    began = journal(repo, "begin")
    assert len(began) == len(set(began)) == 16
    assert all("[16/16] " in err for err in errors) and "done by another process" in "".join(errors)


def test_killed_and_started_again(repo):
    """The run that was under way has not been told, and goes on: it is waited for, not repeated."""
    name = file(repo, seeds=[1, 8])
    first = start(repo, name)
    wait_for(lambda: len(journal(repo, "end")) == 2 and len(journal(repo, "begin")) == 3)
    first.kill()
    first.communicate()
    second = start(repo, name)
    assert second.stderr.readline() == "2 of 4 runs are finished\n"
    assert second.stderr.readline() == "another process is at what is left: waiting for it\n"
    (repo / "go").touch()
    assert "[4/4] " in second.communicate(timeout=HANG)[1] and second.returncode == 0
    assert sorted(journal(repo, "begin")) == [
        folder_of(side, seed) for side in ("test_new", "train_base") for seed in (1, 8)
    ]


@pytest.mark.parametrize("polite", [signal.SIGINT, signal.SIGTERM])
def test_stopped_politely(repo, polite):
    name = file(repo, seeds=[8, 1])
    process = start(repo, name)
    wait_for(lambda: len(journal(repo, "end")) == 2)
    process.send_signal(polite)  # to it alone: it has to stop its runs
    err = process.communicate(timeout=HANG)[1]
    assert process.returncode == 130 and err.endswith(
        "\n\nstopped; run the same command again to go on\n"
    )
    assert "Traceback" not in err
    folder = repo / folder_of("train_base", 8)
    # nobody is at it any more
    wait_for(lambda: (lock := pool.try_lock(folder)) and os.close(lock) is None)


def test_a_full_disk_ends_it(repo, capsys, monkeypatch):
    monkeypatch.setattr(pool.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(SystemExit) as caught:
        sweep.main([file(repo, seeds=[9, 1, 2, 3]), "--slots", "1"])
    assert caught.value.code == 1 and len(journal(repo, "begin")) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(
        f"error: no space left for {folder_of('train_base', 9)}: free some"
    )


def test_no_space_for_a_log_of_ours(repo, capsys, monkeypatch):
    def full() -> tuple[int, str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pool.tempfile, "mkstemp", full)
    with pytest.raises(SystemExit) as caught:
        sweep.main([file(repo)])
    assert caught.value.code == 1 and not journal(repo, "begin")
    assert capsys.readouterr().err.startswith(
        "error: cannot start a run: No space left on device; "
    )


def test_a_folder_that_cannot_be_written(repo, capsys):
    (repo / "output").touch()
    with pytest.raises(SystemExit) as caught:
        sweep.main([file(repo)])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(
        f"error: cannot write to {folder_of('train_base', 1)}: "
    )


def test_the_command_of_its_table(repo, capsys):
    assert sweep.main([file(repo)]) == 0
    command, table = capsys.readouterr().out.strip().split("\n\n", 1)
    assert command == "python -m results.tables base2new output/my --cost"
    assert table.splitlines()[2].split()[:5] == ["Shapes", "p2c", "50.0", "50.0", "50.0"]
    assert sweep.Sweep("dg", ["p2c"], ["dtd"], [1], output="a b").table([]) == [
        "dg",
        "a b",
        "--cost",
    ]


def test_an_ablations_baseline_is_its_first_setting(repo, monkeypatch):
    monkeypatch.setattr(plan.Run, "result", lambda run: run.setting != gone)
    place = lambda command, env: SimpleNamespace(folder=f"{env['OUTPUT']}/{command[1]}")  # noqa: E731
    monkeypatch.setattr(plan, "find_place", place)
    monkeypatch.setattr(plan, "epoch_to_test", lambda command, env: "")
    for name, words in (
        ("table4", "ablation output/table4 --baseline baseline --cost"),
        ("shapes_table4", "ablation output/shapes_table4 --baseline baseline --cost"),
        ("table5", "ablation output/table5 --baseline usual --cost"),
        ("open_questions", "ablation output/open_questions --baseline usual --cost"),
    ):
        settings = yaml.safe_load((REPO / "configs" / "sweeps" / f"{name}.yaml").read_text())[
            "settings"
        ]
        made = sweep.Sweep(
            "base2new", ["p2c"], ["dtd"], [1], settings=settings, output=f"output/{name}"
        )
        gone = ""
        assert made.table(made.runs()) == words.split()
        gone = next(iter(settings))  # of which nothing has a result
        assert made.table(made.runs()) == ["ablation", f"output/{name}", "--cost"]


def test_slots(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in sweep.slots(None)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in sweep.slots(3)] == ["3", "5", "3"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert sweep.slots(None) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert sweep.slots(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert sweep.slots(20) == [{"OMP_NUM_THREADS": "1"}] * 20
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert sweep.slots(None) == [{"OMP_NUM_THREADS": "1"}] * 6


def test_each_gpu_has_one_run(repo, monkeypatch):
    monkeypatch.setattr(
        sweep, "slots", lambda asked: [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "46"]
    )
    (repo / "go").touch()
    assert sweep.main([file(repo, seeds=[1, 2])]) == 0
    begins = [
        line.split()[2]
        for line in (repo / "journal").read_text().splitlines()
        if line.startswith("begin")
    ]
    assert begins[:2] == ["4", "6"] or begins[:2] == ["6", "4"]


def test_a_live_table_on_a_terminal(repo):
    ours, its = pty.openpty()
    process = start(repo, file(repo, seeds=[1, 8]), stderr=its)
    os.close(its)
    shown, half = "", r"2 of 4 done, 0 failed \(about \S+ left\)\r\nCPU  p2c, shapes, seed 8: train"
    while not re.search(half, shown):
        shown += os.read(ours, 4096).decode()
    (repo / "go").touch()
    while piece := _read(ours):
        shown += piece
    assert process.wait(HANG) == 0
    assert re.search(r"\[4/4\] p2c, shapes, seed 8: test: 50.0% in 0:00:\d\d", shown)
    assert shown.count("\x1b[2F\x1b[J") >= 1
    assert shown.endswith("\r\n") and shown.rindex("\x1b[J") < shown.rindex(
        "[4/4]"
    )  # the table is gone at the end


def _read(fd: int) -> str:
    try:
        return os.read(fd, 4096).decode()
    except OSError:  # a terminal's end
        return ""


# -- as typed


def test_real_runs(data, tmp_path, monkeypatch, capsys):
    keys = {"protocol": "base2new", "methods": ["p2c"], "datasets": ["shapes"], "seeds": [1]}
    settings = {"lambda_-1.0": ["OPTIM.MAX_EPOCH", 2, "TRAINER.P2C.AUX.LAMBDA", -1.0]}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(keys | {"settings": settings}))
    env = {"VENV": sys.prefix, "OMP_NUM_THREADS": "1", "DATA": str(data), "SHOTS": "1"}
    env["OUTPUT"] = str(tmp_path / "out")
    words = [str(tmp_path / "my.yaml"), "--slots", "2"]
    done = subprocess.run(
        ["bash", "scripts/sweep.sh", *words],
        cwd=REPO, env=os.environ | env, capture_output=True, text=True, timeout=HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs" not in done.stderr and "new" in done.stdout and "P2C" in done.stdout
    below = "lambda_-1.0/base2new/train_base/shapes/shots_1/P2C/vit_tiny_ep5_batch4/seed1"
    recorded = yaml.safe_load((tmp_path / "out" / below / "config.yaml").read_text())
    assert recorded["TRAINER"]["P2C"]["AUX"]["LAMBDA"] == -1

    monkeypatch.chdir(REPO)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    plan.ask.cache_clear()
    assert sweep.main(words) == 0
    again = capsys.readouterr()
    assert again.err.startswith("2 of 2 runs are finished\n") and again.out == done.stdout
