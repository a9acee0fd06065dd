"""Trainers, datasets and a launcher written for Dassl and OpenAI's clip run here as they are."""

import hashlib
import importlib
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from clip import clip
from dassl.data.datasets import Datum
from dassl.engine import build_trainer
from datasets.shapes import combinations
from reference.weights import in_half, openai_state_dict, save_torchscript
from results.logs import read_log
from tests.thirdparty import coop_style, upstream_train

REPO = Path(__file__).resolve().parents[2]
WORDS = "a photo of a"
# What such files use is deprecated (torch.jit.load, torch.cuda.amp), or idle on a CPU (GradScaler).
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("FutureWarning", "DeprecationWarning", "UserWarning")
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch) -> None:
    """The download cache is not the user's."""
    monkeypatch.setenv("HOME", str(home))
    for name in ("CLIP_MIRROR", "CLIP_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def own_data(data, tmp_path_factory) -> Path:
    """The data folder of the third party's datasets: four images of each of two classes."""
    root = tmp_path_factory.mktemp("own_data")
    for classname in list(combinations())[:2]:
        name = classname.replace(" ", "_")
        for folder in (
            "thirdparty_shapes/images",
            *(f"thirdparty_domains/{d}" for d in ("day", "night", "sketch")),
        ):
            (root / folder / name).mkdir(parents=True)
            for image in sorted((data / "shapes" / "images" / name).iterdir())[:4]:
                shutil.copy(image, root / folder / name)
    return root


@pytest.fixture
def vit_b16_keys(random_vit_b16, monkeypatch) -> dict[str, str]:
    """What to set to take a random ViT-B/16, which is in the cache in OpenAI's form."""
    monkeypatch.setitem(clip._MODELS, "ViT-B/16", random_vit_b16)
    return {"MODEL.BACKBONE.NAME": "ViT-B/16", "INPUT.SIZE": "(224, 224)"}


@pytest.fixture(scope="module")
def random_vit_b16(home, vit_b16) -> str:
    path = home / ".cache" / "clip" / "ViT-B-16.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_torchscript(in_half(vit_b16), path)
    return f"https://no.such.host/clip/{hashlib.sha256(path.read_bytes()).hexdigest()}/{path.name}"


BASE = {"DATASET.NAME": "Shapes", "DATASET.SUBSAMPLE_CLASSES": "base", "DATASET.NUM_SHOTS": 4}
TWO_CLASSES = {
    "DATASET.NAME": "ThirdPartyShapes",
    "DATASET.NUM_SHOTS": 1,
}  # two training images, two test images
COOP = {"TRAINER.COOP.PREC": "fp32"}
COCOOP = {
    "TRAINER.COCOOP.PREC": "fp32",
    "TRAINER.COCOOP.CTX_INIT": WORDS,
    "DATALOADER.TRAIN_X.BATCH_SIZE": 1,
}
SHORT = {"OPTIM.MAX_EPOCH": 2, "DATALOADER.TRAIN_X.BATCH_SIZE": 2}


def arguments(trainer: str, root: Path, out: Path, *flags: object, keys: dict) -> list[str]:
    config = f"{REPO}/tests/thirdparty/vit_tiny_ep3.yaml"
    named = [
        "--root",
        root,
        "--output-dir",
        out,
        "--trainer",
        trainer,
        "--seed",
        1,
        "--config-file",
        config,
    ]
    return [str(a) for a in (*named, *flags, *(part for pair in keys.items() for part in pair))]


def parse(*args, **kwargs):
    return upstream_train.get_parser().parse_args(arguments(*args, **kwargs))


def run(*args, **kwargs) -> None:
    stdout = sys.stdout
    try:
        upstream_train.main(parse(*args, **kwargs))
    finally:
        sys.stdout = stdout


def build(*args, **kwargs):
    cfg = upstream_train.setup_cfg(parse(*args, **kwargs))
    upstream_train.set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def losses(out: Path) -> list[float]:
    """The average of each epoch."""
    lines = re.findall(r"^epoch \[(\d+)/.* loss \S+ \((\S+)\)", (out / "log.txt").read_text(), re.M)
    return [float(loss) for loss in dict(lines).values()]


def accuracy(out: Path) -> float:
    return read_log(out / "log.txt").metrics["accuracy"]


def weights(out: Path, epoch: int) -> dict[str, torch.Tensor]:
    return torch.load(out / "prompt_learner" / f"model.pth.tar-{epoch}", weights_only=True)[
        "state_dict"
    ]


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp"])
def test_random_prompts_learn(trainer, own_data, tmp_path):
    keys = TWO_CLASSES | COOP | COCOOP | {"TRAINER.COCOOP.CTX_INIT": "''", "DATASET.NUM_SHOTS": 2}
    keys |= {"INPUT.TRANSFORMS": "('random_flip', 'normalize')", "OPTIM.MAX_EPOCH": 6}
    run(f"ThirdParty{trainer}", own_data, tmp_path, keys=keys)
    assert losses(tmp_path)[-1] < 0.8 * losses(tmp_path)[0]


def test_coop_is_tested_and_resumes(data, tmp_path, capsys):
    keys = (
        BASE
        | COOP
        | {"TRAINER.COOP.N_CTX": 4, "TRAINER.COOP.CSC": True, "TRAIN.CHECKPOINT_FREQ": 1}
    )
    out, resumed = tmp_path / "train", tmp_path / "resumed"
    run("ThirdPartyCoOp", data, out, keys=keys)
    folder = out / "prompt_learner"
    names = [f"model.pth.tar-{epoch}" for epoch in (1, 2, 3)]
    assert sorted(os.listdir(folder)) == ["checkpoint", *names]
    assert weights(out, 3).keys() == {"ctx", "token_prefix", "token_suffix"}

    run(
        "ThirdPartyCoOp",
        data,
        tmp_path / "eval",
        "--eval-only",
        "--model-dir",
        out,
        "--load-epoch",
        3,
        keys=keys,
    )
    assert accuracy(tmp_path / "eval") == accuracy(out) > 2 * 100 / 16
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-7"):
        build("ThirdPartyCoOp", data, tmp_path, keys=keys).load_model(str(out), epoch=7)

    shutil.copytree(folder, resumed / "prompt_learner")
    (resumed / "prompt_learner" / names[2]).unlink()
    (resumed / "prompt_learner" / "checkpoint").write_text(names[1] + "\n")
    run("ThirdPartyCoOp", data, resumed, keys=keys)
    assert "will resume training" in capsys.readouterr().out and len(losses(resumed)) == 1
    assert torch.equal(weights(resumed, 3)["ctx"], weights(out, 3)["ctx"])
    assert not torch.equal(weights(out, 3)["ctx"], weights(out, 2)["ctx"])


def test_cocoop_is_tested_on_base_and_new_classes(data, tmp_path):
    keys = BASE | COCOOP | {"DATASET.NUM_SHOTS": 1, "OPTIM.MAX_EPOCH": 2}
    out = tmp_path / "train"
    run("ThirdPartyCoCoOp", data, out, keys=keys)
    learned = {f"meta_net.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    assert weights(out, 2).keys() == {"ctx", "token_prefix", "token_suffix", *learned}
    flags = ("--eval-only", "--model-dir", out, "--load-epoch", 2)
    run("ThirdPartyCoCoOp", data, tmp_path / "base", *flags, keys=keys)
    assert accuracy(tmp_path / "base") == accuracy(out)
    run(
        "ThirdPartyCoCoOp",
        data,
        tmp_path / "new",
        *flags,
        keys=keys | {"DATASET.SUBSAMPLE_CLASSES": "new"},
    )
    assert accuracy(tmp_path / "new") > 2 * 100 / 16


def test_zeroshot_is_this_repositorys(data, tmp_path):
    for trainer in ("ThirdPartyZeroshot", "ThirdPartyZeroshotEnsemble"):
        run(trainer, data, tmp_path / trainer, "--eval-only", keys=BASE)
        assert accuracy(tmp_path / trainer) > 3 * 100 / 16
    built = build("ThirdPartyZeroshot", data, tmp_path, keys=BASE)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = built.dm.dataset.classnames
    expected, _ = built.clip_model(images, clip.tokenize([f"{WORDS} {name}." for name in names]))
    assert torch.allclose(
        built.model_inference(images).float(), expected.float(), atol=0.1
    )  # in half precision


def test_the_launcher_is_a_program_of_its_own(data, tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.thirdparty.upstream_train"]
    dataset = ("--dataset-config-file", "configs/datasets/shapes.yaml")
    keys = {key: value for key, value in BASE.items() if key != "DATASET.NAME"}
    command += arguments("ThirdPartyZeroshot", data, tmp_path, *dataset, "--eval-only", keys=keys)
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "=> result\n* total: 64\n" in (tmp_path / "log.txt").read_text()


def test_the_best_model_is_loaded_without_an_epoch(own_data, tmp_path, capsys):
    keys = TWO_CLASSES | COOP | SHORT | {"TEST.FINAL_MODEL": "best_val"}
    run("ThirdPartyCoOp", own_data, tmp_path / "train", keys=keys)
    assert (tmp_path / "train" / "prompt_learner" / "model-best.pth.tar").is_file()
    run(
        "ThirdPartyCoOp",
        own_data,
        tmp_path / "eval",
        "--eval-only",
        "--model-dir",
        tmp_path / "train",
        keys=keys,
    )
    assert "model-best.pth.tar" in capsys.readouterr().out
    assert accuracy(tmp_path / "eval") == accuracy(tmp_path / "train")


@pytest.mark.parametrize("precision", ["fp16", "amp"])
@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp"])
def test_every_precision_runs_on_a_cpu(trainer, precision, own_data, tmp_path):
    keys = TWO_CLASSES | COCOOP | SHORT | {"DATALOADER.TRAIN_X.BATCH_SIZE": 1}
    for p in ("fp32", precision):
        run(
            f"ThirdParty{trainer}",
            own_data,
            tmp_path / p,
            keys=keys | {f"TRAINER.{trainer.upper()}.PREC": p},
        )
    assert weights(tmp_path / precision, 2)["ctx"].dtype == (
        torch.half if precision == "fp16" else torch.float
    )
    assert losses(tmp_path / precision) == pytest.approx(
        losses(tmp_path / "fp32"), rel=0.02, abs=0.02
    )


def test_several_gpus_are_used(own_data, tmp_path, monkeypatch):
    """On a CPU, where DataParallel hands everything on."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    built = build("ThirdPartyCoOp", own_data, tmp_path, keys=TWO_CLASSES | COOP | SHORT)
    assert isinstance(built.model, torch.nn.DataParallel)
    built.train()
    assert weights(tmp_path, 2)["ctx"].shape == (16, 128)


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp"])
def test_vit_b16_trains_and_is_tested(trainer, vit_b16_keys, own_data, tmp_path):
    keys = TWO_CLASSES | COOP | COCOOP | SHORT | vit_b16_keys
    keys |= {"DATALOADER.TRAIN_X.BATCH_SIZE": 2 if trainer == "CoOp" else 1}
    out = tmp_path / "train"
    run(f"ThirdParty{trainer}", own_data, out, keys=keys)
    assert len(losses(out)) == 2 and all(map(math.isfinite, losses(out)))
    assert weights(out, 2)["ctx"].shape == (16 if trainer == "CoOp" else 4, 512)
    flags = ("--eval-only", "--model-dir", out, "--load-epoch", 2)
    run(f"ThirdParty{trainer}", own_data, tmp_path / "eval", *flags, keys=keys)
    assert accuracy(tmp_path / "eval") == accuracy(out)


def test_vit_b16_zeroshot(vit_b16_keys, own_data, tmp_path):
    run("ThirdPartyZeroshot", own_data, tmp_path, "--eval-only", keys=TWO_CLASSES | vit_b16_keys)
    assert read_log(tmp_path / "log.txt").metrics.keys() >= {"accuracy", "macro_f1"}


@pytest.mark.parametrize("backbone", ["ViT-Tiny/8", "ViT-B/16"])
def test_prompts_of_real_words_give_clips_text_features(backbone, request):
    keys = COOP | {"TRAINER.COOP.CTX_INIT": WORDS}
    keys |= request.getfixturevalue("vit_b16_keys") if backbone == "ViT-B/16" else {}
    cfg = upstream_train.setup_cfg(parse("ThirdPartyCoOp", ".", ".", keys=keys))
    model = coop_style.load_clip_to_cpu(cfg).float()
    encoder = coop_style.TextEncoder(model)
    texts = {"end": "a photo of a {}.", "middle": "a photo {} of a.", "front": "{} a photo of a."}
    for position, text in texts.items():
        cfg.defrost()
        cfg.TRAINER.COOP.CLASS_TOKEN_POSITION = position
        names = ["striped red hexagon", "cat"]
        learner = coop_style.PromptLearner(cfg, names, model)
        with torch.no_grad():
            features = encoder(learner(), learner.tokenized_prompts)
            expected = model.encode_text(clip.tokenize([text.format(name) for name in names]))
        assert torch.allclose(features, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_a_dataset_keeps_its_split_and_pickles(own_data, tmp_path, capsys):
    keys = TWO_CLASSES | COOP | {"DATASET.NUM_SHOTS": 2}
    first, second = (
        build("ThirdPartyCoOp", own_data, tmp_path, keys=keys).dm.dataset for _ in range(2)
    )
    assert "Loading preprocessed few-shot data" in capsys.readouterr().out
    assert [repr(item) for item in first.train_x] == [repr(item) for item in second.train_x]
    assert Counter(item.label for item in first.train_x) == {0: 2, 1: 2}
    assert first.lab2cname == dict(enumerate(sorted(list(combinations())[:2])))
    with open(own_data / "thirdparty_shapes" / "split_fewshot" / "shot_2-seed_1.pkl", "rb") as file:
        assert all(type(item) is Datum for part in pickle.load(file).values() for item in part)


DOMAINS = {
    "DATASET.NAME": "ThirdPartyDomains",
    "DATASET.SOURCE_DOMAINS": "['day', 'night']",
    "DATASET.TARGET_DOMAINS": "['sketch']",
    "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
}


@pytest.mark.parametrize("copies", [1, 2])
def test_a_trainer_with_unlabeled_images_and_two_transforms(copies, own_data, tmp_path):
    keys = DOMAINS | {"DATALOADER.K_TRANSFORMS": copies, "OPTIM.MAX_EPOCH": 2, "OPTIM.LR": 0.001}
    keys |= {
        "TRAINER.FIXMATCH.CONF_THRE": 0.5,
        "TRAINER.FIXMATCH.STRONG_TRANSFORMS": "('randaugment', 'normalize')",
    }
    keys |= {"MODEL.BACKBONE.NAME": "resnet18", "MODEL.BACKBONE.PRETRAINED": False}
    run("ThirdPartyFixMatch", own_data, tmp_path, keys=keys)
    log = (tmp_path / "log.txt").read_text()
    found = re.findall(
        r"^epoch \[2/2\] batch \[4/4\] .* loss_x (\S+) .* loss_u (\S+) .* confident (\S+)",
        log,
        re.M,
    )
    loss_x, loss_u, confident = map(float, found[0])
    assert loss_x > 0 and loss_u > 0 and confident > 0
    assert (tmp_path / "model" / "model.pth.tar-2").is_file()


@pytest.mark.parametrize(
    ("sampler", "count"),
    [
        ("RandomDomainSampler", {"domain": 2}),
        ("SeqDomainSampler", {"domain": 2}),
        ("RandomClassSampler", {"label": 2}),
    ],
)
def test_samplers_by_config(sampler, count, own_data, tmp_path):
    keys = DOMAINS | COOP | {"DATALOADER.TRAIN_X.SAMPLER": sampler, "DATALOADER.TRAIN_X.N_INS": 2}
    built = build("ThirdPartyCoOp", own_data, tmp_path, keys=keys)
    batches = list(built.train_loader_x)
    assert len(batches) == len(built.train_loader_x) > 1
    for batch in batches:
        for key, n in count.items():
            assert Counter(batch[key].tolist()) == {0: n, 1: n}
    if sampler == "SeqDomainSampler":
        assert all(batch["domain"].tolist() == [0, 0, 1, 1] for batch in batches)


IMPORTS = """
clip: clip
clip.clip: _MODELS _download build_model load tokenize available_models
clip.model: build_model convert_weights
clip.simple_tokenizer: SimpleTokenizer
dassl.config: get_cfg_default clean_cfg
dassl.data: DataManager DatasetWrapper
dassl.data.data_manager: build_data_loader build_transform
dassl.data.datasets: DATASET_REGISTRY Datum DatasetBase build_dataset
dassl.data.datasets.base_dataset: Datum
dassl.data.samplers: RandomSampler SequentialSampler RandomDomainSampler SeqDomainSampler
dassl.data.samplers: RandomClassSampler
dassl.data.transforms: build_transform INTERPOLATION_MODES
dassl.engine: TRAINER_REGISTRY TrainerX TrainerXU SimpleTrainer TrainerBase build_trainer
dassl.engine.trainer: SimpleNet SummaryWriter
dassl.evaluation: EVALUATOR_REGISTRY build_evaluator EvaluatorBase Classification
dassl.metrics: compute_accuracy
dassl.modeling: build_backbone build_head build_network
dassl.data.transforms.transforms: Random2DTranslation InstanceNormalization Cutout GaussianNoise
dassl.data.transforms.transforms: AVAI_CHOICES
dassl.optim: build_optimizer build_lr_scheduler
dassl.optim.optimizer: AVAI_OPTIMS
dassl.optim.lr_scheduler: AVAI_SCHEDS ConstantWarmupScheduler LinearWarmupScheduler
dassl.optim.radam: RAdam
dassl.utils: mkdir_if_missing listdir_nohidden load_pretrained_weights load_checkpoint
dassl.utils: save_checkpoint
dassl.utils: resume_from_checkpoint setup_logger set_random_seed collect_env_info count_num_param
dassl.utils: read_json write_json
dassl.utils: check_isfile read_image Registry check_availability MetricMeter AverageMeter
dassl.utils: tolist_if_not
dassl.utils: open_specified_layers init_network_weights open_all_layers Logger download_url
dassl.utils.torchtools: save_checkpoint load_checkpoint resume_from_checkpoint open_all_layers
dassl.utils.torchtools: open_specified_layers
dassl.utils.torchtools: count_num_param load_pretrained_weights init_network_weights set_bn_to_eval
dassl.utils.torchtools: adjust_learning_rate
"""


@pytest.mark.parametrize("line", IMPORTS.strip().splitlines())
def test_names_that_are_imported(line):
    name, _, objects = line.partition(": ")
    missing = [o for o in objects.split() if not hasattr(importlib.import_module(name), o)]
    assert not missing
    if name == "dassl.data.datasets":
        assert Datum.__module__ == "dassl.data.datasets.base_dataset"


def test_the_models_attributes():
    model = clip.build_model(openai_state_dict("tiny"))
    names = "dtype visual transformer token_embedding positional_embedding ln_final"
    names += " text_projection logit_scale"
    assert all(hasattr(model, name) for name in (*names.split(), "encode_image", "encode_text"))
    assert (model.visual.input_resolution, model.visual.output_dim, model.dtype) == (
        32,
        64,
        torch.float32,
    )
    assert model.visual.conv1.weight.dtype == torch.float32
    with pytest.raises(RuntimeError, match="too long"):
        clip.tokenize("word " * 80)


def test_files_go_both_ways(data, tmp_path):
    """What CoOp here trained, the third party's CoOp tests with the same result, and the
    reverse."""
    import tests.runs

    opts = ("TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", "4", "DATASET.NUM_SHOTS", "4")
    keys = BASE | COOP | {"TRAINER.COOP.N_CTX": 4}
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert tests.runs.run("CoOp", data, ours, *opts) == 0
    run("ThirdPartyCoOp", data, theirs, keys=keys)
    run(
        "ThirdPartyCoOp",
        data,
        tmp_path / "a",
        "--eval-only",
        "--model-dir",
        ours,
        "--load-epoch",
        3,
        keys=keys,
    )
    assert accuracy(tmp_path / "a") == accuracy(ours)
    flags = ("--eval-only", "--model-dir", str(theirs))
    assert tests.runs.run("CoOp", data, tmp_path / "b", *opts, flags=flags) == 0
    assert accuracy(tmp_path / "b") == accuracy(theirs) != accuracy(ours)
