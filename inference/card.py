"""The model card of an exported folder: README.md as the Hugging Face hub reads it."""

import re
import sys
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from clip.weights import OPENAI_SHA256, SMALL_SHA256
from dassl.commands import plain, say
from dassl.engine import TrainerBase
from dassl.results_json import load_results, problem
from results.tested import is_stale
from trainers.frozen_clip import other_clip

from .onnx_model import GRAPH

CARD = "README.md"
SHOWN = 30  # class names
TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "top5_accuracy": "top-5 accuracy",
    "ece": "expected calibration error",
}
# OpenAI's models as the hub has them.
ON_THE_HUB = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


def record_of(run: Path) -> dict[str, Any]:
    """A run's results.json; {} if there is none that can be read, or it is of an older model."""
    try:
        record = load_results(run)
    except (OSError, ValueError, RecursionError):
        return {}
    if is_stale(run):
        say(f"{run}: the model has been trained further, or anew, since this test: no accuracy")
        return {}
    return {} if problem(record) else record


def model_card(trainer: TrainerBase, record: Mapping[str, Any], files: Container[str]) -> str:
    """The card of a trainer's export.

    Args:
        record: its run's results.json, or {}.
        files: names of what was exported.
    """
    about = trainer.describe()
    clip, config = about["clip"], about["config"]
    if other_clip(record.get("clip") or {}, clip):
        record = {}  # whose accuracy is another model's
    openai = clip["sha256"] == OPENAI_SHA256.get(clip["name"])
    doc = sys.modules[type(trainer).__module__].__doc__ or ""
    facts = {
        "about": about,
        "clip": clip,
        "clip_file": Path(clip["file"]).name,
        "dataset": config["DATASET"],
        "subset": record.get("subsample") or config["DATASET"]["SUBSAMPLE_CLASSES"],
        "method": " ".join(doc.split("\n\n")[0].split()),
        "record": record,
        "metrics": {TITLES[k]: v for k, v in record.get("metrics", {}).items() if k in TITLES},
        "same_classes": record.get("classnames") == about["classnames"],
        "files": files,
        "shown": SHOWN,
        "openai": openai,
        "open_clip": open_clip_name(clip["name"]) if openai else None,
        "known_licence": openai or clip["sha256"] == SMALL_SHA256,
    }
    header = yaml.safe_dump(header_of(facts), sort_keys=False, allow_unicode=True)
    return template().render(header=header, **facts)


def template() -> Any:
    """model_card.md.j2."""
    loader = FileSystemLoader(Path(__file__).parent)
    env = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True,
                      lstrip_blocks=True, keep_trailing_newline=True)  # fmt: skip
    env.filters["words"] = words
    return env.get_template("model_card.md.j2")


def words(text: str) -> str:
    """A user's words in Markdown, where they mean no more than they say."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$])", r"\\\1", plain(text))


def open_clip_name(name: str) -> str:
    """What open_clip calls a model of OpenAI's."""
    return re.sub("[/@]", "-", name).removesuffix("px") + "-quickgelu"


def header_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub reads: https://huggingface.co/docs/hub/model-cards."""
    about, clip = facts["about"], facts["clip"]
    task = "image-classification"
    header = {
        "license": "mit" if facts["known_licence"] else "unknown",
        "library_name": "onnx" if GRAPH in facts["files"] else "clip",
        "pipeline_tag": task if about["bound_to_classes"] else f"zero-shot-{task}",
        "tags": ["clip", "prompt-learning", "few-shot", about["trainer"].lower()],
    }
    if facts["openai"] and clip["name"] in ON_THE_HUB:
        header |= {"base_model": ON_THE_HUB[clip["name"]], "base_model_relation": "adapter"}
    if facts["same_classes"]:
        header |= results_of(facts["record"], about["trainer"], task)
    return header


def results_of(record: Mapping[str, Any], trainer: str, task: str) -> dict[str, Any]:
    """The run's test, as the hub lists it: shares of 1."""
    metrics = {"accuracy": "accuracy", "f1": "macro_f1"}
    values = [
        {"type": kind, "name": key, "value": round(record["metrics"][key] / 100, 4)}
        for kind, key in metrics.items()
    ]
    name = record["dataset"]
    result = {
        "task": {"type": task},
        "dataset": {"name": name, "type": name.lower(), "config": record["subsample"]},
        "metrics": values,
    }
    index = [{"name": f"{trainer} on {name}", "results": [result]}]
    return {"metrics": [*metrics], "model-index": index}
