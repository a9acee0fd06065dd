"""A run's log has the settings that its method reads, and no other method's."""

import json

import pytest
from yacs.config import CfgNode

from dassl.config import config_of_method, get_cfg_default, keys_of_others
from dassl.config.merge import all_keys, read_file
from dassl.engine import TRAINER_REGISTRY, build_trainer
from tests.runs import CONFIGS, REPO, run
from tests.trainers.methods import batch, build
from train import of_other_methods
from trainers.features import says
from trainers.kgcoop import KgCoOp

ENGINE = {*get_cfg_default(), *get_cfg_default().TRAINER}


@pytest.mark.parametrize("method", CONFIGS)
def test_a_method_says_what_it_reads(method, data, tmp_path, weights, monkeypatch):
    """All of it, and nothing besides: what is read of the config is watched."""
    watched, read = [], set()

    def watching(node: CfgNode, name: str) -> object:
        if any(node is other for other in watched):
            read.add(name)
        return dict.__getitem__(node, name)

    def build_watched(cfg: CfgNode):
        watched.extend([cfg, cfg.TRAINER])
        return build_trainer(cfg)

    monkeypatch.setattr(CfgNode, "__getitem__", watching, raising=False)
    monkeypatch.setattr("tests.trainers.methods.build_trainer", build_watched)
    trainer = build(method, data, tmp_path, weights)
    image, label = batch(weights, trainer.num_classes)
    if hasattr(trainer, "gradients"):
        trainer.gradients(image, label)
    trainer.set_model_mode("eval")
    trainer.model_inference(image)
    said = {*trainer.config_names()}
    refused = {"ATPROMPT", "COOP"} - said  # read to refuse USE_ATPROMPT and CSC
    assert said == read - ENGINE - refused
    assert ("ATPROMPT" in said) == says(trainer, "takes_attributes")


def test_the_log_has_these_alone(data, tmp_path):
    assert run("TCP", data, tmp_path, flags=("--no-train",)) == 0
    log, config = ((tmp_path / name).read_text() for name in ("log.txt", "config.yaml"))
    begin, rest = log.split("** Config **\n")
    shown = rest.split("\nAll methods' settings: ")[0]
    assert begin.startswith("** Arguments **\n{'root'") and shown.startswith("TRAINER:\n  COOP:\n")
    assert f"\nAll methods' settings: {tmp_path}/config.yaml\n** System info **" in rest
    assert "\nOPTIM:" in shown and "\n  NAME: TCP" in shown
    for of in ("  COOP", "  TCP"):
        assert f"\n{of}:\n" in shown
    for of in ("  P2C", "  ATPROMPT", "LOSS"):
        assert f"\n{of}:\n" not in shown and f"\n{of}:\n" in config
    assert "\nTASK:" not in shown and "\nTASK:" in config


def test_a_setting_of_another_method_is_said(data, tmp_path):
    opts = ("TRAINER.MAPLE.N_CTX", "4", "TRAINER.COOP.N_CTX", "4", "OPTIM.LR", "0.1")
    opts += ("TRAINER.MAPLE.N_CTX", "4")
    assert run("TCP", data, tmp_path, *opts, flags=("--no-train",)) == 0
    log = (tmp_path / "log.txt").read_text()
    assert log.count("it has no effect") == 1
    assert "\nTRAINER.MAPLE.N_CTX is no setting of TCP: it has no effect on this run\n" in log
    assert run("TCP", data, tmp_path / "b", "TRAINER.ATPROMPT.USE_ATPROMPT", "True") == 2
    assert "no effect" not in (tmp_path / "b" / "log.txt").read_text()


def test_a_file_of_another_method_is_said(data, tmp_path):
    """As where a script is copied and its trainer changed."""
    other = ("--config-file", str(CONFIGS["MaPLe"]))
    assert run("KgCoOp", data, tmp_path, flags=(*other, "--no-train")) == 0
    lines = (tmp_path / "log.txt").read_text().splitlines()
    said = [
        line.split()[0] for line in lines if "is no setting of KgCoOp: it has no effect" in line
    ]
    assert said == ["TRAINER.MAPLE.PROMPT_DEPTH"]  # the others are as they would be without it


@pytest.mark.parametrize("file", sorted(REPO.glob("configs/trainers/*/*.yaml")), ids=str)
def test_files_here_have_settings_of_their_methods_alone(file):
    method = TRAINER_REGISTRY.get(file.parent.name)
    assert of_other_methods(all_keys(read_file(file)), method) == []


def test_a_setting_of_ones_own_is_nobody_elses():
    """A method that extends one here need not name it."""

    class Mine(KgCoOp):
        pass

    assert of_other_methods(["TRAINER.MINE.FACTOR", "TRAINER.KGCOOP.W"], Mine) == []
    assert of_other_methods(["TRAINER.P2C.N_CTX"], Mine) == ["TRAINER.P2C.N_CTX"]


def test_a_trainer_that_does_not_say_shows_all():
    cfg = get_cfg_default()
    cfg.TRAINER.COOP, cfg.TRAINER.MINE, cfg.LOSS = CfgNode(), CfgNode(), CfgNode()
    assert config_of_method(cfg, None) == cfg
    assert {*config_of_method(cfg, ["MINE"])} == {*get_cfg_default()}
    assert {*config_of_method(cfg, ["MINE"]).TRAINER} == {"NAME", "MINE"}
    assert "COOP" in cfg.TRAINER
    assert keys_of_others(cfg, None) == []
    assert keys_of_others(cfg, ["MINE"]) == ["LOSS", "TRAINER.COOP"]


def test_results_json_says_what_is_of_others(trained):
    record = json.loads((trained / "train/results.json").read_text())
    others = set(record["config_of_others"])
    assert {"LOSS", "TRAINER.COOP", "TRAINER.MMRL"} <= others
    assert others.isdisjoint({"TRAINER.P2C", "TRAINER.ATPROMPT", "TRAINER.NAME", "OPTIM"})
