"""inference.export: what it writes gives the model's logits, and says what is wrong in one line.

A graph takes seconds to trace, so there is one of each kind; --all-exports makes every method's.
Of those with a frozen image tower that is CoOp's: the others' are the same with another constant,
which the test with open_clip compares.
"""

import errno
import importlib.util
import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dassl.engine import TrainerX
from dassl.utils import Failure
from inference import export, graph
from inference.load import load_model
from inference.models import open_model
from inference.onnx_model import OnnxModel
from reference.clip_open import build_open_clip
from reference.weights import ARCHS, openai_state_dict
from tests.clip.resnets import rn50_state_dict
from tests.runs import CONFIGS, REPO, run
from tests.test_parse import record
from tests.trainers.files import three_classes
from tests.trainers.methods import build, shake

onnx = pytest.importorskip("onnx", reason="needs requirements-export.txt")
ort = pytest.importorskip("onnxruntime", reason="needs requirements-export.txt")
pytest.importorskip("onnxscript", reason="needs requirements-export.txt")

GRAPHS = sorted(CONFIGS.keys() - {"EMPL"})
CONDITIONAL = ["CoCoOp", "CoCoOp_ATP", "BayesianPrompt", "VaMP", "VaMP_MMRL"]
# Beside CoOp's and MMRL's, of which there are tests of their own.
ONE_OF_A_KIND = ["PromptSRC", "MultiModalAdapter", "MMRLpp", "ReBaPL_P2C", "BayesianPrompt"]
ONE_OF_A_KIND += ["VaMP_MMRL"]
SAMPLES = ["ReBaPL_MaPLe", "ReBaPL_P2C", "ReBaPL_MMRL"]
FROZEN = ["ZeroshotCLIP", "ZeroshotCLIP2", "CoOp", "CoOp_ATP", "KgCoOp", "ProGrad", "TCP"]
OPTS = dict.fromkeys(["VaMP", "VaMP_MMRL"], ("TRAINER.VAMP.TEST_SAMPLES", "3"))
OPTS["BayesianPrompt"] = "TRAINER.VPT.L", "3"
OPTS["MMRLpp"] = "TRAINER.MMRLpp.FUSE", "class", "TRAINER.MMRLpp.REP_LAYERS", "[1,2]"


@pytest.fixture(scope="module", autouse=True)
def autograd_begins_first() -> None:
    """Tracing pretends that there is a GPU, for which autograd starts a thread when it begins.

    Beside that, no process that a later test forks could train.
    """
    torch.ones(1, requires_grad=True).backward()


def trained(name: str, folder: Path, weights: dict, *opts: str) -> TrainerX:
    """A trainer in eval mode whose parameters, and samples, are random."""
    opts = (*three_classes(folder / "classes"), *OPTS.get(name, ()), *opts)
    with redirect_stdout(io.StringIO()):
        trainer = build(name, folder / "classes", folder / "run", weights, *opts)
    for module in trainer._models.values():
        shake(module)
    if name.startswith("ReBaPL"):
        trainer.samples = [trainer.frozen_copy(), trainer.frozen_copy()]
        shake(trainer.samples[1].learner, by=0.2)
    trainer.set_model_mode("eval")
    return trainer


@torch.no_grad()
def assert_same(trainer: TrainerX, file: Path) -> None:
    """ONNX Runtime's logits are PyTorch's, whatever the batch size."""
    session = ort.InferenceSession(str(file))
    for n in (1, 5, 16):
        image = torch.randn(n, 3, *trainer.cfg.INPUT.SIZE)
        expected = trainer.model_inference(image)
        [logits] = session.run(None, {"image": image.numpy()})
        assert logits.shape == expected.shape and logits.dtype == np.float32
        off = np.abs(logits - expected.numpy()).max()
        assert off <= 1e-4 * expected.abs().max()
        assert n == 1 or np.abs(logits[0] - logits[1]).max() > 100 * off  # images differ


def layer_norms(file: Path) -> int:
    return sum(node.op_type == "LayerNormalization" for node in onnx.load(file).graph.node)


@pytest.fixture(scope="module")
def shallow() -> dict[str, torch.Tensor]:
    """A tiny CLIP of two blocks."""
    with pytest.MonkeyPatch.context() as patch:
        two = replace(ARCHS["tiny"], vision_layers=2, text_layers=2)
        patch.setitem(ARCHS, "shallow", two)
        return openai_state_dict("shallow")


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graph_gives_the_logits(name, shallow, tmp_path, request):
    if name not in ONE_OF_A_KIND and not request.config.getoption("--all-exports"):
        pytest.skip("--all-exports makes this method's too")
    trainer = trained(name, tmp_path, shallow)
    assert graph.write_graph(trainer, tmp_path) < 1e-5
    assert_same(trainer, tmp_path / "model.onnx")
    # An image tower has two of each block's and two more. There is no text tower, but where texts
    # depend on the image. (Of MaPLe's and P2C's, each sample has an image tower.)
    towers = layer_norms(tmp_path / "model.onnx") / 6
    assert towers > 1 if name in (*CONDITIONAL, *SAMPLES) else towers <= 1


@pytest.mark.parametrize("name", FROZEN)
def test_text_features_are_for_any_program(name, weights, tmp_path):
    """open_clip's model of the same weights, with them, gives the model's logits."""
    trainer = trained(name, tmp_path, weights)
    assert export.write_text_features(trainer, tmp_path / "text.safetensors")
    with safe_open(tmp_path / "text.safetensors", "pt") as file:
        text, said = file.get_tensor("text_features"), file.metadata()
    torch.testing.assert_close(text.norm(dim=-1), torch.ones(len(text)))
    assert json.loads(said["classnames"]) == list(trainer.lab2cname.values())
    assert json.loads(said["clip"]).keys() == {"name", "sha256"}
    image = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        features = F.normalize(build_open_clip(weights).encode_image(image), dim=-1)
        expected = trainer.model_inference(image)
    logits = float(said["logit_scale"]) * features @ text.T
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["CoCoOp", "BayesianPrompt", "EMPL", "ReBaPL_CoOp", "P2C"])
def test_others_have_no_text_features(name, weights, tmp_path):
    trainer = trained(name, tmp_path, weights)
    assert not export.write_text_features(trainer, tmp_path / "text.safetensors")
    assert not (tmp_path / "text.safetensors").exists()


def test_a_resnet(tmp_path):
    narrow = rn50_state_dict(text_layers=2, width=16, size=64)
    trainer = trained("CoOp", tmp_path, narrow, "MODEL.BACKBONE.NAME", "RN50")
    graph.write_graph(trainer, tmp_path)
    assert_same(trainer, tmp_path / "model.onnx")


def test_half_precision_is_left_behind(shallow, tmp_path):
    """A bf16 run's weights, as they were rounded, in float32."""
    trainer = trained("MMRL", tmp_path, shallow, "TRAINER.MMRL.PREC", "bf16")
    rounded = trainer.model.clip.visual.conv1.weight
    assert rounded.dtype == torch.bfloat16
    graph.in_float32(trainer)
    graph.write_graph(trainer, tmp_path)
    assert_same(trainer, tmp_path / "model.onnx")
    now = trainer.model.clip.visual.conv1.weight
    assert now.dtype == torch.float32 and torch.equal(now, rounded.float())
    assert json.loads((tmp_path / "preprocess.json").read_text())["precision"] == "fp32"


# The program


@pytest.fixture(scope="module")
def coop(data, tmp_path_factory) -> Path:
    """A run's output folder."""
    return trained_run("CoOp", data, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def exported(coop, tmp_path_factory) -> Path:
    """Its export."""
    out = tmp_path_factory.mktemp("exports") / "coop"
    assert export.main([str(coop), str(out)]) == 0
    return out


def trained_run(name: str, data: Path, out: Path) -> Path:
    with redirect_stdout(io.StringIO()):
        assert run(name, data, out / name) == 0
    return out / name


def assert_fails(capsys: pytest.CaptureFixture, code: int, line: str, *argv: object) -> None:
    """The program ends with one line that has `line` in it, and leaves nothing behind."""
    capsys.readouterr()
    out = Path(argv[1])
    before = sorted(out.rglob("*"))
    with pytest.raises(SystemExit) as left:
        export.main([str(word) for word in argv])
    err = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == code and line in err[-1] and err[-1].startswith("error: ")
    assert sorted(out.rglob("*")) == before
    assert not [path for path in out.parent.iterdir() if path.name.endswith(".tmp")]


def test_the_files(coop, exported):
    files = ["README.md", "model.onnx", "preprocess.json", "prompts.safetensors"]
    assert sorted(path.name for path in exported.iterdir()) == [*files, "text_features.safetensors"]
    trainer = load_model(coop, use_cuda=False)
    about = json.loads((exported / "preprocess.json").read_text())
    assert about["classnames"] == trainer.classnames and about["trainer"] == "CoOp"
    assert about["preprocessing"]["crop"] == [32, 32]
    inner = onnx.load(exported / "model.onnx").graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*inner.input, *inner.output)
    }
    assert shapes == {"image": ["batch", 3, 32, 32], "logits": ["batch", 16]}
    assert_same(trainer, exported / "model.onnx")
    again = load_model(exported, use_cuda=False)  # from prompts.safetensors
    for ours, theirs in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        image = torch.randn(4, 3, 32, 32)
        assert torch.equal(trainer.model_inference(image), again.model_inference(image))
        logits = OnnxModel(exported).logits(image.numpy())
    assert np.abs(logits - again.model_inference(image).detach().numpy()).max() < 1e-3


def test_other_classes(coop, exported, tmp_path):
    """Named on the command line or in a file, of an export in the run's place."""
    names = ["hollow red star", "cat"]
    assert export.main([str(coop), str(tmp_path / "a"), "--classes", *names]) == 0
    trainer = load_model(coop, names, use_cuda=False)
    assert_same(trainer, tmp_path / "a" / "model.onnx")
    assert OnnxModel(tmp_path / "a").classnames == names
    card = (tmp_path / "a" / "README.md").read_text()
    assert "model-index" not in card and "Of the run's own 16 classes" in card

    (tmp_path / "names.txt").write_text("\ufeffhollow red star\n\n  cat \n")
    flags = ["--classes-file", str(tmp_path / "names.txt"), "--no-onnx"]
    assert export.main([str(exported), str(tmp_path / "b"), *flags]) == 0
    both = [load_file(tmp_path / out / "text_features.safetensors") for out in "ab"]
    assert torch.equal(*(tensors["text_features"] for tensors in both))
    assert not (tmp_path / "b" / "model.onnx").exists()


def test_the_card(coop, exported):
    """As the hub's own library reads it; `value` is a share of 1."""
    from huggingface_hub import ModelCard

    record = json.loads((coop / "results.json").read_text())
    card = ModelCard((exported / "README.md").read_text())
    header = card.data
    assert header.license == "mit" and header.library_name == "onnx" and "coop" in header.tags
    assert header.pipeline_tag == "zero-shot-image-classification"
    accuracy, f1 = header.eval_results
    assert accuracy.metric_type == "accuracy" and accuracy.dataset_name == "Shapes"
    assert abs(100 * accuracy.metric_value - record["metrics"]["accuracy"]) < 0.01
    assert abs(100 * f1.metric_value - record["metrics"]["macro_f1"]) < 0.01
    assert record["commit"] in card.text and record["command"] in card.text
    assert header.base_model is None  # ViT-Tiny/8 is not on the hub


def test_what_the_card_says_to_do(coop, exported, data, tmp_path, monkeypatch, capsys):
    """Its two Python programs name the class that the run gives to a photo of an odd shape.

    Its EXIF says that it lies on its side, and so it would be another class.
    """
    from dassl.data.transforms import build_transform

    trainer = load_model(coop, use_cuda=False)
    transform = build_transform(trainer.cfg, is_train=False)
    photo, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = 6  # orientation: turn it to the right

    def name(image: Image.Image) -> str:
        with torch.no_grad():
            logits = trainer.model_inference(transform(image)[None])
        return trainer.classnames[logits[0].argmax()]

    for source in sorted((data / "shapes").rglob("*.png")):
        image = Image.open(source).convert("RGB").resize((71, 46))
        image.save(photo, quality=95, exif=exif)
        lying = Image.open(photo)
        if (best := name(lying.rotate(-90, expand=True))) != name(lying):
            break
    parts = (exported / "README.md").read_text().split("```python\n")[1:]
    programs = [part.split("```")[0] for part in parts]
    assert ["onnxruntime" in program for program in programs] == [True, False]
    for file in exported.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for program in programs:
        exec(program, {})
        assert capsys.readouterr().out == f"{best}\n"


def test_a_model_of_openai(weights, tmp_path):
    """The card names it as the hub and open_clip do."""
    import open_clip

    from clip.weights import OPENAI_SHA256
    from inference.card import model_card, open_clip_name

    assert all((open_clip_name(name), "openai") in open_clip.list_pretrained()
               for name in OPENAI_SHA256)  # fmt: skip
    trainer = trained("CoOp", tmp_path, weights)
    source = {"name": "ViT-B/16", "file": "x.pt", "sha256": OPENAI_SHA256["ViT-B/16"]}
    trainer.model.clip.source = source
    card = model_card(trainer, {}, ["text_features.safetensors"])
    assert "base_model: openai/clip-vit-base-patch16" in card and "license: mit" in card
    assert '"ViT-B-16-quickgelu", "openai"' in card and "surveillance" in card
    assert "activation" not in card
    trainer.model.clip.source = source | {"sha256": "0" * 64, "activation": "gelu"}
    card = model_card(trainer, {}, ["text_features.safetensors"])
    assert "license: unknown" in card and "base_model" not in card and "onnxruntime" not in card
    assert "`, activation gelu |" in card
    card = model_card(trainer, json.loads(record(80.0, subsample="new")), [])
    assert ", its new classes |" in card  # the record's, not the config's
    told = {"classnames": trainer.describe()["classnames"], "clip": trainer.model.clip.source}
    for sha256, has_results in (
        ("0" * 64, True),
        ("1" * 64, False),
    ):  # the latter's is another CLIP
        told["clip"] = source | {"sha256": sha256, "activation": "gelu"}
        card = model_card(trainer, json.loads(record(80.0, **told)), [])
        assert ("model-index" in card, "0.8" in card) == (has_results, has_results)
    card = model_card(trainer, {}, ["text_features.safetensors"])
    # the name would stand for OpenAI's
    assert 'clip.load("x.pt", "cpu", activation="gelu")' in card
    assert "photo.jpg --weights x.pt\n" in card and "photo.jpg --weights x.pt --classes" in card


@pytest.mark.parametrize("name, why", [("EMPL", "a test of EMPL takes"), ("CoOp", "cannot trace")])
def test_a_method_without_a_graph(name, why, weights, tmp_path, capsys, monkeypatch):
    """EMPL, and a method that torch.onnx cannot trace: the rest is made."""
    trainer = trained(name, tmp_path, weights)
    if name == "CoOp":
        known = trainer.model_inference
        trainer.model_inference = lambda image: known(image) * (1 if image.mean() > -9 else 2)
    capsys.readouterr()
    export.export(trainer, tmp_path / "run", tmp_path / "out")
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("model.onnx is not made: ") and why in line
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files[:2] == ["README.md", "prompts.safetensors"] and "preprocess.json" not in files


@pytest.mark.parametrize(
    "damage, line",
    [
        (lambda d: (d / "preprocess.json").unlink(), "Cannot read"),
        (lambda d: (d / "model.onnx").unlink(), "Cannot read"),
        (lambda d: cut(d / "model.onnx"), "model.onnx is damaged, or not the one"),
        (lambda d: cut(d / "preprocess.json"), "is not valid JSON"),
        (lambda d: edit(d / "preprocess.json", "0.48145466", "0.5"), "was changed since"),
        (lambda d: edit(d / "preprocess.json", '"format": 1', '"format": 9'), "not format 1"),
        (lambda d: (d / "preprocess.json").write_text("[]"), "not format 1"),
    ],
)
def test_damaged_exports(damage, line, exported, tmp_path):
    for name in ("model.onnx", "preprocess.json"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    damage(tmp_path)
    with pytest.raises(Failure) as error:
        open_model(tmp_path)
    assert line in str(error.value) and "\n" not in str(error.value)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_it_is_read_without_torch(exported):
    """And a batch of another shape is one line."""
    code = f"""if True:
        import sys, numpy as np
        from pathlib import Path
        from dassl.utils import Failure
        from inference.onnx_model import OnnxModel
        model = OnnxModel(Path({str(exported)!r}))
        assert model.logits(np.zeros((2, 3, 32, 32), np.float32)).shape == (2, 16)
        try:
            model.logits(np.zeros((2, 3, 31, 32), np.float32))
        except Failure as error:
            print(error)
        sys.exit("torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert "cannot compute a batch of shape (2, 3, 31, 32)" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_wrong_arguments(coop, exported, tmp_path, capsys, monkeypatch):
    assert_fails(capsys, 2, "a folder with files in it: name a new folder", coop, exported)
    (tmp_path / "file").touch()
    assert_fails(capsys, 2, "is a file", coop, tmp_path / "file")
    assert_fails(capsys, 2, "no such file", tmp_path / "none", tmp_path / "new")
    twice = coop, tmp_path / "new", "--classes", "cat", "cat"
    assert_fails(capsys, 2, "'cat' is named twice", *twice)
    found = importlib.util.find_spec
    hidden = "onnxscript"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != hidden and found(name))
    line = "needs onnxscript, an optional extra: pip install -r requirements-export.txt"
    assert_fails(capsys, 1, line, coop, tmp_path / "new")
    assert export.main([str(coop), str(tmp_path / "new"), "--no-onnx"]) == 0


def test_a_graph_that_differs_is_not_kept(coop, tmp_path, capsys, monkeypatch):
    def other(trainer):
        made = trace(trainer)
        shake(trainer.model.learner)
        return made

    trace = graph.trace
    monkeypatch.setattr(graph, "trace", other)
    line = "of the largest logit, at a batch of 1; --no-onnx exports the rest"
    assert_fails(capsys, 1, line, coop, tmp_path / "out")


def test_a_full_disk(coop, tmp_path, capsys, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "write_graph", full)
    assert_fails(capsys, 1, "No space left on device; free some space", coop, tmp_path / "out")


def test_stopped_it_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), export.new_folder(tmp_path / "out") as folder:
        (folder / "half").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
