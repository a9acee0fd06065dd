"""MODEL.BACKBONE.ACTIVATION and the config.json beside CLIP's weights, in a run."""

import json
import shutil
from pathlib import Path

import pytest

from clip.weights import SMALL
from results.logs import read_log
from tests.runs import run
from trainers.frozen_clip import other_clip

GELU = {"hidden_act": "gelu", "hidden_size": 128, "num_attention_heads": 2}


@pytest.fixture
def beside(tmp_path) -> Path:
    """The bundled CLIP's weights with a config.json that says that it has GELU."""
    about = {"model_type": "clip", "text_config": GELU, "vision_config": GELU}
    (tmp_path / "config.json").write_text(json.dumps(about))
    shutil.copy(SMALL, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_run_says_its_activation_if_it_is_not_quickgelu(beside, data, tmp_path):
    """And computes with it: by a switch the bundled CLIP, by config.json a folder's."""
    weights, switch = "MODEL.BACKBONE.WEIGHTS", "MODEL.BACKBONE.ACTIVATION"
    runs = {
        "plain": ((), ""),
        "switch": ((switch, "gelu"), " (activation: gelu)"),
        "config": ((weights, str(beside.parent)), " (activation: gelu)"),
        "neither": ((weights, str(beside.parent), switch, "quick_gelu"), ""),
    }
    accuracy, clips = {}, {}
    for name, (opts, said) in runs.items():
        opts = (*opts, "DATALOADER.FEATURES", "")
        assert run("ZeroshotCLIP", data, tmp_path / name, *opts) == 0
        log = tmp_path / name / "log.txt"
        file = beside if weights in opts else SMALL
        assert f"CLIP weights: {file}{said}\n" in log.read_text()
        accuracy[name] = read_log(log).metrics
        clips[name] = json.loads((tmp_path / name / "results.json").read_text())["clip"]
        assert clips[name].get("activation", "") == ("gelu" if said else "")
    assert accuracy["switch"] == accuracy["config"] != accuracy["plain"] == accuracy["neither"]
    assert not other_clip(clips["switch"], clips["config"])
    assert not other_clip(clips["plain"], clips["neither"])
    line = other_clip(clips["switch"], clips["neither"])
    assert line.startswith(f"trained with activation gelu, and {beside} has quick_gelu")
    assert "trained with activation quick_gelu" in other_clip(clips["plain"], clips["config"])


def test_a_config_of_another_model_ends_a_run_before_its_data_are_read(beside, tmp_path, capsys):
    (beside.parent / "config.json").write_text('{"model_type": "siglip"}')
    nowhere = tmp_path / "no data"
    assert run("P2C", nowhere, tmp_path / "a", "MODEL.BACKBONE.WEIGHTS", str(beside)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{beside.parent}/config.json: model_type is siglip" in error
