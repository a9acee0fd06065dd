"""Whole runs on a GPU, on a small drawing of the bundled benchmark."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dassl.engine import SimpleNet, TrainerX
from dassl.utils import read_json
from runs import protocol
from tests.runs import REPO, run

FP32 = ("TRAINER.P2C.PREC", "fp32")


def saved(out: Path, epoch: int, model: str = "MultiModalPromptLearner") -> dict[str, Tensor]:
    file = out / model / f"model.pth.tar-{epoch}"
    return torch.load(file, weights_only=True, map_location="cpu")["state_dict"]


@pytest.mark.parametrize("prec", ["fp16", "bf16", "amp", "fp32"])
def test_a_training_and_what_it_says(prec, data, tmp_path, capsys):
    assert run("P2C", data, tmp_path, "TRAINER.P2C.PREC", prec) == 0
    log = capsys.readouterr().out
    assert (
        f"Device: cuda:0 ({torch.cuda.get_device_name()})" in log
        and "Steps are" not in log
        and "Precision" not in log
    )
    record = read_json(str(tmp_path / "results.json"))
    assert record["device"] == torch.cuda.get_device_name() and record["peak_memory_mb"]["gpu"] > 1


def test_forked_runs_compute_on_the_gpu(data, tmp_path, monkeypatch, capsys):
    """The process that they are forked from has touched no CUDA."""
    monkeypatch.chdir(REPO)
    for name, value in {
        "DATA": str(data),
        "OUTPUT": str(tmp_path),
        "VENV": sys.prefix,
        "SHOTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    words = "base2new --methods zsclip p2c --datasets shapes --seeds 1 -- OPTIM.MAX_EPOCH 2"
    assert protocol.main(words.split()) == 0, capsys.readouterr().err
    records = [read_json(str(file)) for file in tmp_path.rglob("results.json")]
    assert [record["device"] for record in records] == [torch.cuda.get_device_name()] * 4


def test_a_resumed_training_ends_where_an_undisturbed_one_does(data, tmp_path, monkeypatch):
    assert run("P2C", data, tmp_path / "whole", *FP32) == 0
    end_of_epoch = TrainerX.after_epoch

    def stop(self: TrainerX) -> None:
        end_of_epoch(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainerX, "after_epoch", stop)
        assert run("P2C", data, tmp_path / "parts", *FP32) == 130
    assert run("P2C", data, tmp_path / "parts", *FP32) == 0
    whole, parts = saved(tmp_path / "whole", 3), saved(tmp_path / "parts", 3)
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["P2C", "CoOp", "CoCoOp"])
def test_an_evaluation_is_the_cpus(name, data, tmp_path):
    """A model trained on the GPU, tested on both in fp32."""
    prec = (f"TRAINER.{name.upper()}.PREC", "fp32")
    assert run(name, data, tmp_path / "train", *prec, "OPTIM.MAX_EPOCH", "2") == 0
    for device, use in (("gpu", "True"), ("cpu", "False")):
        flags = ("--eval-only", "--model-dir", str(tmp_path / "train"))
        opts = (*prec, "OPTIM.MAX_EPOCH", "2", "USE_CUDA", use)
        assert run(name, data, tmp_path / device, *opts, flags=flags) == 0
    gpu, cpu = (read_json(str(tmp_path / device / "results.json")) for device in ("gpu", "cpu"))
    assert gpu["device"] != cpu["device"]
    of_scores = [record["metrics"].pop("ece") for record in (gpu, cpu)]
    assert of_scores[0] == pytest.approx(of_scores[1], rel=1e-4)  # the others only count
    assert gpu["metrics"] == cpu["metrics"] and gpu["per_class"] == cpu["per_class"]


def test_a_test_has_the_graphs_memory(data, tmp_path, monkeypatch):
    """What a training's graphs held is free before its test."""
    seen: dict[str, int] = {}
    train, inference = TrainerX.run_epoch, TrainerX.model_inference

    def epoch(self: TrainerX) -> None:
        train(self)
        seen["training"], seen["graphs"] = torch.cuda.memory_reserved(), len(self.compute.replays)

    def infer(self: TrainerX, image: Tensor) -> Tensor:
        seen.setdefault("test", torch.cuda.memory_reserved())
        return inference(self, image)

    monkeypatch.setattr(TrainerX, "run_epoch", epoch)
    monkeypatch.setattr("trainers.base.CLIPTrainer.model_inference", infer)
    assert run("P2C", data, tmp_path, *FP32) == 0
    assert seen["graphs"] and seen["test"] < seen["training"]


def test_full_memory_is_one_line(data, tmp_path, capsys):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**25) / total)
    try:
        large = ("DATASET.NUM_SHOTS", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "32")
        assert run("P2C", data, tmp_path, *FP32, *large) == 1
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: the memory is full, the device's")


def test_logged_times_are_the_devices(data, tmp_path, monkeypatch, capsys):
    """Where the host is far ahead: a kernel that does nothing for a while is in each step."""
    step = TrainerX.parse_batch_train
    sleep = 100_000_000  # cycles: 50 ms at 2 GHz, and no GPU is at 10

    def slow(self: TrainerX, batch: dict) -> tuple:
        torch.cuda._sleep(sleep)
        return step(self, batch)

    monkeypatch.setattr(TrainerX, "parse_batch_train", slow)
    assert run("P2C", data, tmp_path, *FP32, "OPTIM.MAX_EPOCH", "2") == 0
    times = re.findall(r" time (\S+) \((\S+)\)", capsys.readouterr().out)
    assert times and all(float(t) > 0.01 for pair in times for t in pair)


SCRIPT = """
import sys, torch, torch.distributed as dist
rank, world = int(sys.argv[1]), int(sys.argv[2])
torch.cuda.set_device(rank)
dist.init_process_group("nccl", init_method="file://" + sys.argv[3], rank=rank, world_size=world)
x = torch.full((5,), float(rank + 1), device="cuda")
dist.all_reduce(x)
assert x.tolist() == [world * (world + 1) / 2] * 5
dist.destroy_process_group()
"""


def test_nccl_adds_up_over_all_gpus(tmp_path):
    world = torch.cuda.device_count()
    command = [sys.executable, "-c", SCRIPT]
    ranks = [
        subprocess.Popen([*command, str(r), str(world), str(tmp_path / "meet")], cwd=REPO)
        for r in range(world)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * world


def test_a_dassl_net_on_all_gpus_is_that_on_one(make_net: Callable[[], SimpleNet]):
    net = make_net().cuda()
    image = torch.randn(2 * torch.cuda.device_count(), 3, 32, 32, device="cuda")
    one = net(image)
    torch.testing.assert_close(nn.DataParallel(net)(image), one, rtol=1e-4, atol=1e-5)


@pytest.fixture
def make_net() -> Callable[[], SimpleNet]:
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    cfg.VERBOSE = False
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PRETRAINED = "resnet18", False
    return lambda: SimpleNet(cfg, cfg.MODEL, 3).eval()
