"""Whole runs through train.py, on a small drawing of the bundled benchmark."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

import train
from clip.model import build_model
from clip.weights import BUNDLED, read_state_dict
from dassl.config import check_output_dir
from dassl.engine import build_trainer
from dassl.utils import UsageError, set_random_seed
from reference.clip_plain import PlainCLIP
from reference.maple_plain import maple_forward, prompts_from_checkpoint
from reference.optim_plain import lr_at_epoch
from reference.optim_plain import train as train_plainly
from results.logs import read_log
from tests.runs import arguments, run
from trainers.base import CLIPTrainer


def checkpoint(out: Path, epoch: int = 3) -> dict:
    return torch.load(out / "MultiModalPromptLearner" / f"model.pth.tar-{epoch}", weights_only=True)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("trainer", ["MaPLe", "P2C"])
def test_a_seed_gives_one_result_whether_or_not_it_is_interrupted(
    trainer, data, tmp_path, monkeypatch, capsys
):
    assert run(trainer, data, tmp_path / "a") == 0
    assert run(trainer, data, tmp_path / "b") == 0
    assert same(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b"))

    forward_backward = CLIPTrainer.forward_backward

    def interrupted(self, batch):
        if (self.epoch, self.batch_idx) == (1, 3):
            raise KeyboardInterrupt
        return forward_backward(self, batch)

    monkeypatch.setattr(CLIPTrainer, "forward_backward", interrupted)
    assert run(trainer, data, tmp_path / "c") == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    monkeypatch.setattr(CLIPTrainer, "forward_backward", forward_backward)
    assert run(trainer, data, tmp_path / "c") == 0
    assert "will resume training" in capsys.readouterr().out
    assert same(checkpoint(tmp_path / "a"), checkpoint(tmp_path / "c"))

    assert run(trainer, data, tmp_path / "d", "SEED", "2") == 0
    assert not same(
        checkpoint(tmp_path / "a")["state_dict"], checkpoint(tmp_path / "d")["state_dict"]
    )


def test_the_log_and_the_test_of_what_was_saved(data, tmp_path):
    out = tmp_path / "train"
    assert run("P2C", data, out) == 0
    log = (out / "log.txt").read_text()
    assert log.count("\nAttributes: color, shape\n") == 1  # the config's ATT_NUM is 0
    rates = [float(r) for r in re.findall(r"batch \[2/4\] .* lr (\S+) eta", log)]
    assert rates == pytest.approx([lr_at_epoch(e, 0.0035, 3) for e in range(3)], rel=1e-4)
    assert re.search(
        r"^epoch \[1/3\] batch \[2/4\] time \S+ \(\S+\) data \S+ \(\S+\) loss \S+ \(\S+\) aux ",
        log,
        re.M,
    )
    assert "Finish training" in log and "* total: 64\n" in log
    trained = read_log(out / "log.txt").metrics

    flags = ("--eval-only", "--model-dir", str(out))
    assert run("P2C", data, tmp_path / "test", flags=flags) == 0
    assert read_log(tmp_path / "test" / "log.txt").metrics == trained
    assert "Note: trained with" not in (tmp_path / "test" / "log.txt").read_text()
    file = out / "MultiModalPromptLearner" / "model.pth.tar-3"
    model = json.loads((tmp_path / "test" / "results.json").read_text())["model"]
    assert model["files"] == {
        file.parent.name: [file.name, hashlib.sha256(file.read_bytes()).hexdigest()]
    }
    assert (tmp_path / "test" / model["folder"]).resolve() == out and model["epoch"] is None
    assert run("P2C", data, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new", flags=flags) == 0
    assert read_log(tmp_path / "new" / "log.txt").metrics != trained
    other = ("TRAINER.P2C.AUX.SIGMA", "0.5")
    assert run("P2C", data, tmp_path / "other", *other, flags=flags) == 0
    line = "Note: trained with TRAINER.P2C.AUX.SIGMA 0.01, tested with 0.5\n"
    assert (tmp_path / "other" / "log.txt").read_text().count("Note: trained with") == 1
    assert line in (tmp_path / "other" / "log.txt").read_text()


def small_cfg(trainer: str, data: Path, out: Path, *more: str):
    return train.setup_cfg(train.parse_args(arguments(trainer, data, out, *more)))


@pytest.mark.parametrize("trainer", ["MaPLe", "P2C"])
def test_only_prompts_learn_and_all_of_them_do(trainer, data, tmp_path):
    cfg = small_cfg(trainer, data, tmp_path)
    built = build_trainer(cfg)
    clip = built.model.clip
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    built.train()
    after = clip.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(p.requires_grad for p in clip.parameters())
    for name, p in built.model.named_parameters():
        if name == "learner.ctx_att3" or trainer == "MaPLe" and "att" in name:
            # Shapes have two attributes; the third's vectors exist for the file's sake.
            assert p.grad is None
        else:
            assert p.grad.norm() > 0, name


def test_training_steps_are_the_plain_optimizers(data, tmp_path):
    """MaPLe's 20 steps, with its own batches, against hand-written SGD on the reference model.

    In double precision, as rounding grows from step to step: in single precision they are 1e-3 of
    the way apart then.
    """
    built = build_trainer(small_cfg("MaPLe", data, tmp_path, "OPTIM.MAX_EPOCH", "5"))
    built.model.double(), built.model.clip.double()

    def prompts():
        saved = built.model.learner.state_dict(prefix="prompt_learner.")
        return {k: v.clone() for k, v in prompts_from_checkpoint(saved).items()}

    initial = prompts()
    plain = PlainCLIP(read_state_dict(BUNDLED / "vit_tiny_8.safetensors"), torch.float64)
    steps, losses = [], []
    forward_backward = built.forward_backward

    def recorded(batch):
        image, label = batch["img"].double(), batch["label"]

        def loss(prompts):
            return maple_forward(
                plain, prompts, built.dm.dataset.classnames, image, label, frozen_words="of a"
            ).loss

        if len(steps) < 20:
            steps.append((built.get_current_lr(), loss))
            losses.append(forward_backward(batch)["loss"])
            if len(steps) == 20:
                recorded.state = prompts()
            return {"loss": losses[-1]}
        return forward_backward(batch)

    built.forward_backward = recorded
    (
        built.optim.step(),
        built.sched.step(),
    )  # past the warm-up's tiny rate; there are no gradients yet
    built.train()
    expected, expected_losses = train_plainly(initial, steps)
    assert steps[0][0] == 0.0035
    assert torch.stack(losses).tolist() == pytest.approx(
        [float(x) for x in expected_losses], rel=1e-9
    )
    for name, value in expected.items():
        moved = (value - initial[name]).norm()
        assert moved > 0, name
        assert (recorded.state[name] - value).norm() < 1e-9 * moved, name


def test_zero_shot_is_the_reference_with_one_template(data, tmp_path):
    assert run("ZeroshotCLIP", data, tmp_path) == 0
    ours = read_log(tmp_path / "log.txt").metrics["accuracy"]
    built = build_trainer(small_cfg("ZeroshotCLIP", data, tmp_path / "again"))
    plain = PlainCLIP(read_state_dict(BUNDLED / "vit_tiny_8.safetensors"), torch.float32)
    from clip import tokenize

    text = plain.encode_text(
        tokenize([f"a photo of a {name}." for name in built.dm.dataset.classnames])
    )
    right = total = 0
    for batch in built.test_loader:
        logits = plain.logits(plain.encode_image(batch["img"]), text)
        torch.testing.assert_close(
            built.model_inference(batch["img"]), logits, rtol=1e-4, atol=1e-4
        )
        right += int((logits.argmax(1) == batch["label"]).sum())
        total += len(logits)
    assert ours == pytest.approx(100 * right / total, abs=0.05)


def test_each_epoch_draws_its_batches_anew(data, tmp_path):
    built, seen = build_trainer(small_cfg("P2C", data, tmp_path)), []
    forward_backward = built.forward_backward
    built.forward_backward = lambda batch: seen.append(batch) or forward_backward(batch)
    built.train()
    labels = [[batch["label"].tolist() for batch in seen[i : i + 4]] for i in (0, 4, 8)]
    assert len(seen) == 12 and labels[0] != labels[1] != labels[2] != labels[0]
    assert all(sorted(sum(epoch, [])) == list(range(16)) for epoch in labels)


@pytest.mark.parametrize("trainer", ["P2C", "CoOp"])
def test_a_run_can_start_from_another_ones_weights(trainer, data, tmp_path):
    first = build_trainer(small_cfg(trainer, data, tmp_path))
    first.save_model(0, str(tmp_path))
    [name] = first.get_model_names()
    file = str(tmp_path / name / "model.pth.tar-1")
    second = build_trainer(
        small_cfg(trainer, data, tmp_path, "SEED", "5", "MODEL.INIT_WEIGHTS", file)
    )
    assert same(dict(first.model.state_dict()), dict(second.model.state_dict()))


def test_bf16_runs_on_a_cpu(data, tmp_path):
    assert run("P2C", data, tmp_path, "OPTIM.MAX_EPOCH", "2", "TRAINER.P2C.PREC", "bf16") == 0
    state = checkpoint(tmp_path, 2)["state_dict"]
    assert all(v.dtype == torch.float32 for v in state.values())  # the masters


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "sigmoid", "sigmoid_rising"])
def test_the_noise_of_each_epoch(schedule, data, tmp_path, monkeypatch):
    from reference.p2c_plain import sigma_at_epoch

    built = build_trainer(small_cfg("P2C", data, tmp_path, "TRAINER.P2C.DPD.SCHEDULE", schedule))
    built.max_epoch, seen = 3, []
    for built.epoch in range(3):
        built.before_epoch()
        seen.append(built.model.learner.sigma.item())
    assert seen == pytest.approx(
        [sigma_at_epoch(schedule, e, 3, 0.015) for e in range(3)], abs=1e-12
    )


def test_the_trainers_loss_is_the_sum_of_both(data, tmp_path):
    """L_cls + λ L_aux, with λ and both parts as configured; the log has L_aux itself."""

    def parts(*opts):
        set_random_seed(1)
        built = build_trainer(small_cfg("P2C", data, tmp_path, *opts))
        built.max_epoch = 3
        built.before_epoch()
        built.set_model_mode("train")
        torch.manual_seed(3)
        batch = next(iter(built.train_loader_x))
        return built.loss(batch["img"], batch["label"]), built.model.learner.sigma.item()

    (cls, nothing), sigma = parts("TRAINER.P2C.AUX.ENABLED", "False")
    assert nothing == {} and sigma == 0.015
    (total, log), _ = parts("TRAINER.P2C.AUX.LAMBDA", "-300.0", "TRAINER.P2C.AUX.SIGMA", "0.5")
    assert log["aux"] > 0
    assert (total - cls).item() == pytest.approx(-300 * log["aux"].item(), rel=1e-3)
    assert parts("TRAINER.P2C.DPD.ENABLED", "False")[1] == 0


WRONG_PATHS = {
    "~nosuchuser/x": "~nosuchuser/x: there is no user nosuchuser; "
    "a folder that is called so is ./~nosuchuser",
    "x" * 256: f"{'x' * 80}… is no path: File name too long",
}


@pytest.mark.parametrize("path", WRONG_PATHS)
@pytest.mark.parametrize(
    "key",
    [
        "root",
        "output_dir",
        "resume",
        "model_dir",
        "backbone",
        "MODEL.INIT_WEIGHTS",
        "MODEL.BACKBONE.WEIGHTS",
    ],
)
def test_paths_that_cannot_be(key, path, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = arguments(
        "CoOp",
        data,
        tmp_path / "out",
        flags=("--eval-only" if key == "model_dir" else "--no-train",),
    )
    flag = f"--{key.replace('_', '-')}"
    if flag in words:
        words[words.index(flag) + 1] = path
    else:
        words = [*words, key, path] if "." in key else [flag, path, *words]
    try:
        code = train.main(words)
    except SystemExit as stopped:
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and WRONG_PATHS[path] in error and error.count("\n") == 1
    assert not list(tmp_path.glob("~*"))


def test_a_home_folder_by_whatever_way(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.yaml").write_text("OUTPUT_DIR: ~/from yaml\nDATASET: {ROOT: ~/data}\n")
    common = ["--trainer", "CoOp", "--dataset-config-file", "~/train.yaml"]
    for words, out in (
        (["DATASET.NAME", "Shapes"], "from yaml"),
        (["--output-dir=~/a", "DATASET.NAME", "Shapes"], "a"),
    ):
        cfg = train.setup_cfg(train.parse_args([*common, *words]))
        assert (
            Path(cfg.OUTPUT_DIR) == tmp_path / out and Path(cfg.DATASET.ROOT) == tmp_path / "data"
        )
    cfg = train.setup_cfg(train.parse_args([*common, "DATASET.NAME", "Shapes", "RESUME", "~/b"]))
    assert Path(cfg.RESUME) == tmp_path / "b"


def test_the_data_folder_is_that_of_the_scripts(monkeypatch):
    words = ["--trainer", "CoOp", "DATASET.NAME", "Shapes"]
    monkeypatch.delenv("DATA", raising=False)
    assert train.setup_cfg(train.parse_args(words)).DATASET.ROOT == "data"
    monkeypatch.setenv("DATA", "/my/datasets")
    assert train.setup_cfg(train.parse_args(words)).DATASET.ROOT == "/my/datasets"
    assert train.setup_cfg(train.parse_args(["--root", "/x", *words])).DATASET.ROOT == "/x"


def test_an_output_folder_of_another_run_is_left_alone(data, tmp_path, capsys):
    assert run("MaPLe", data, tmp_path, "OPTIM.MAX_EPOCH", "2") == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for trainer, more, line in (
        ("P2C", (), "(TRAINER.NAME MaPLe; now P2C)"),
        (
            "MaPLe",
            ("DATASET.SUBSAMPLE_CLASSES", "new"),
            "(DATASET.SUBSAMPLE_CLASSES base; now new)",
        ),
        ("MaPLe", ("OPTIM.LR", "0.1"), "(OPTIM.LR 0.0035; now 0.1)"),
    ):
        assert run(trainer, data, tmp_path, "OPTIM.MAX_EPOCH", "2", *more) == 2
        error = capsys.readouterr().err
        assert "holds another run" in error and error.count("\n") == 1
        assert line in error
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert run("MaPLe", data, tmp_path, "OPTIM.MAX_EPOCH", "2", "TRAIN.PRINT_FREQ", "1") == 0


def test_another_start_or_end_is_another_run_too(data, tmp_path, capsys):
    """A setting that was None is one; which model a run ends with is no matter of taste."""
    opts = ("OPTIM.MAX_EPOCH", "2", "TRAINER.COCOOP.CTX_INIT", "None", "TRAINER.COCOOP.N_CTX", "4")
    assert run("CoCoOp", data, tmp_path, *opts) == 0
    another = ("TRAINER.COCOOP.CTX_INIT", "a photo of a")
    assert run("CoCoOp", data, tmp_path, *opts[:2], *another, *opts[4:]) == 2
    assert "(TRAINER.COCOOP.CTX_INIT None; now a photo of a)" in capsys.readouterr().err
    assert run("CoCoOp", data, tmp_path, *opts, "TEST.FINAL_MODEL", "best_val") == 2
    assert "(TEST.FINAL_MODEL last_step; now best_val)" in capsys.readouterr().err
    assert run("CoCoOp", data, tmp_path, *opts, "TRAIN.COUNT_ITER", "smaller_one") == 2
    assert "(TRAIN.COUNT_ITER train_x; now smaller_one)" in capsys.readouterr().err


def test_a_folder_may_be_called_like_a_file(data, tmp_path):
    assert run("ZeroshotCLIP", data, tmp_path / "my.txt") == 0
    assert (tmp_path / "my.txt/log.txt").is_file() and len(list(tmp_path.iterdir())) == 1


def test_a_random_seed_is_one_run(data, tmp_path):
    """A run that goes on has its seed, and who gives that seed has its run."""
    out = tmp_path / "random"

    def setup(out: Path, seed: str) -> int:
        words = arguments("P2C", data, out, "SEED", seed)
        return train.setup_cfg(train.parse_args(words)).SEED

    assert len({setup(out, "-1") for _ in range(3)}) == 3
    keep = ("TRAIN.CHECKPOINT_FREQ", "1")
    assert run("P2C", data, out, *keep, "SEED", "-1") == 0
    seed = json.loads((out / "results.json").read_text())["seed"]
    assert seed >= 0 and setup(out, "-1") == seed
    resume = arguments("P2C", data, tmp_path / "on", "SEED", "-1", flags=("--resume", str(out)))
    assert seed == train.setup_cfg(train.parse_args(resume)).SEED
    older = tmp_path / "older"
    older.mkdir()
    (older / "config.yaml").write_text("SEED: -1\n")
    assert setup(older, "-1") == -1  # the trainer draws it, as it did then
    whole = checkpoint(out)["state_dict"]
    models = out / "MultiModalPromptLearner"
    for epoch in (2, 3):  # as if it had been stopped after the first
        (models / f"model.pth.tar-{epoch}").unlink()
    (models / "checkpoint").write_text("model.pth.tar-1\n")
    assert run("P2C", data, out, "SEED", "-1") == 0
    assert run("P2C", data, tmp_path / "told", "SEED", str(seed)) == 0
    for folder in (out, tmp_path / "told"):
        assert same(checkpoint(folder)["state_dict"], whole), folder


def test_a_run_that_never_began_claims_no_folder(data, tmp_path, capsys):
    assert run("P2C", data, tmp_path, "TRAINER.P2C.N_CTX", "70") == 2
    assert run("P2C", data, tmp_path, "TRAINER.P2C.N_CTX", "4") == 0


def test_eval_only_needs_a_model(data, tmp_path, capsys):
    assert run("P2C", data, tmp_path, flags=("--eval-only",)) == 2
    assert capsys.readouterr().err.startswith("error: --eval-only needs --model-dir")


def test_a_model_of_another_length_is_refused(data, tmp_path, capsys):
    assert run("P2C", data, tmp_path / "a", "OPTIM.MAX_EPOCH", "2") == 0
    flags = ("--eval-only", "--model-dir", str(tmp_path / "a"))
    assert run("P2C", data, tmp_path / "b", "TRAINER.P2C.N_CTX", "4", flags=flags) == 1
    assert (
        "prompt_learner.ctx has shape (2, 128) in the file, (4, 128) in the model"
        in capsys.readouterr().err
    )


def test_a_loss_that_is_no_number_stops_the_run(data, tmp_path, capsys):
    assert run("P2C", data, tmp_path, "OPTIM.LR", "1e30") == 1
    error = capsys.readouterr().err
    assert "NaN or infinite" in error and error.count("\n") == 1
    assert (
        "lower OPTIM.LR" in error and "another --output-dir" in error
    )  # in this folder another rate is refused
    assert run("P2C", data, tmp_path, "OPTIM.LR", "1e-3") == 2
    assert torch.isfinite(checkpoint(tmp_path, 1)["state_dict"]["prompt_learner.ctx"]).all()


def test_weights_that_build_no_prompt_learner_leave_clip_usable():
    """The bundled file is a whole CLIP in half precision."""
    model = build_model(read_state_dict(BUNDLED / "vit_tiny_8.safetensors"))
    assert model.dtype == torch.float16 and model.transformer.layers == 4


def test_weights_and_mirror_by_config(data, tmp_path, monkeypatch, capsys):
    for name in ("CLIP_WEIGHTS", "CLIP_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    small, opts = str(BUNDLED / "vit_tiny_8.safetensors"), ("MODEL.BACKBONE.NAME", "ViT-B/16")
    assert run("ZeroshotCLIP", data, tmp_path / "a", *opts, "MODEL.BACKBONE.WEIGHTS", small) == 0
    assert run("ZeroshotCLIP", data, tmp_path / "b") == 0
    assert (
        read_log(tmp_path / "a" / "log.txt").metrics == read_log(tmp_path / "b" / "log.txt").metrics
    )
    assert f"CLIP weights: {small}\n" in (tmp_path / "a" / "log.txt").read_text()
    record = json.loads(
        (tmp_path / "a" / "results.json").read_text()
    )  # the model's name alone says nothing
    assert record["clip"] == {
        "name": "ViT-B/16",
        "file": small,
        "sha256": hashlib.sha256(Path(small).read_bytes()).hexdigest(),
    }
    mirror = "http://127.0.0.1:9/copies"  # refused at once
    assert run("ZeroshotCLIP", data, tmp_path / "c", *opts, "MODEL.BACKBONE.MIRROR", mirror) == 1
    assert f"cannot download {mirror}/5806e77c" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "node"),
    [("KgCoOp", "COOP"), ("CoCoOp", "COCOOP"), ("MaPLe", "MAPLE"), ("PromptSRC", "PROMPTSRC")],
)
def test_ctx_init_is_words_or_the_forks_bool(trainer, node, data, tmp_path):
    """Whatever the file has, the command line may have: all are words for the run and its
    record."""
    forms = {"True": "a photo of a", "False": "", "false": "", "itap of a": "itap of a"}
    for in_file, from_file in forms.items():
        file = tmp_path / "own.yaml"
        file.write_text(f"TRAINER:\n  {node}:\n    CTX_INIT: {in_file}\n")
        for given, words in {"": from_file, **forms}.items():
            opts = (f"TRAINER.{node}.CTX_INIT", given) if given else ()
            line = arguments(trainer, data, tmp_path, *opts, flags=("--config-file", str(file)))
            assert words == train.setup_cfg(train.parse_args(line)).TRAINER[node].CTX_INIT, (
                in_file,
                given,
            )


def test_a_run_goes_on_whose_record_has_the_bool(data, tmp_path):
    """As TCP's did once; its file still has it."""
    cfg = small_cfg("TCP", data, tmp_path)
    (tmp_path / "config.yaml").write_text(cfg.dump().replace("CTX_INIT: ''", "CTX_INIT: false", 1))
    assert (
        "    CTX_INIT: false" in (tmp_path / "config.yaml").read_text()
        and cfg.TRAINER.COOP.CTX_INIT == ""
    )
    check_output_dir(cfg)
    with pytest.raises(UsageError, match="CTX_INIT ; now a photo of a"):
        check_output_dir(small_cfg("TCP", data, tmp_path, "TRAINER.COOP.CTX_INIT", "True"))


def test_a_files_values_by_dataset(tmp_path, data, capsys):
    """They win over the file's own and lose to the command line; mistakes in any are found."""
    file = tmp_path / "own.yaml"
    file.write_text(
        "OPTIM: {LR: 0.1, MAX_EPOCH: 4}\n"
        "BY_DATASET: {Shapes: {OPTIM: {LR: 0.2}}, EuroSAT: {OPTIM: {MAX_EPOCH: 60}}}\n"
    )
    shapes = ("--dataset-config-file", "configs/datasets/shapes.yaml")
    flags = ["--trainer", "CoOp", "--config-file", str(file)]

    def read(*words: str) -> tuple[float, int]:
        optim = train.setup_cfg(train.parse_args([*flags, *words])).OPTIM
        return optim.LR, optim.MAX_EPOCH

    assert read(*shapes) == (0.2, 4)
    assert read(*shapes, "OPTIM.LR", "0.3") == (0.3, 4)
    assert read("DATASET.NAME", "EuroSAT") == (0.1, 60)
    assert read("DATASET.NAME", "Caltech101") == (0.1, 4)
    own = file.read_text()
    file.write_text(f"DATASET: {{NAME: Shapes}}\n{own}")  # the file itself says which dataset
    assert read() == (0.2, 4) and read("DATASET.NAME", "EuroSAT") == (0.1, 60)
    file.write_text("BY_DATASET: {EuroSAT: {OPTIM: {LRR: 0.2}}}\n")
    with pytest.raises(UsageError, match=r"own.yaml: there is no config key OPTIM.LRR; did you"):
        read(*shapes)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("[EuroSAT]", "BY_DATASET must have sections, as"),
        ("0", "BY_DATASET must have sections, as"),
        ("{EuroSAT: 3}", "BY_DATASET must have sections, as"),
        ("{EuroSAT: }", "BY_DATASET must have sections, as"),
        (
            "{EuroSta: {OPTIM: {LR: 0.2}}}",
            'Unknown dataset in BY_DATASET "EuroSta": did you mean E',
        ),
        ("{1: {OPTIM: {LR: 0.2}}}", "there is no config key 1"),
    ],
)
def test_a_section_by_dataset_that_is_wrong(section, says, tmp_path):
    """A name with a typo would else be a setting that is silently not there."""
    file = tmp_path / "own.yaml"
    file.write_text(f"BY_DATASET: {section}\n")
    flags = ["--trainer", "CoOp", "--config-file", str(file), "DATASET.NAME", "Shapes"]
    with pytest.raises(UsageError, match=f"own.yaml: {says}"):
        train.setup_cfg(train.parse_args(flags))
