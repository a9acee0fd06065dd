"""An exported model run by ONNX Runtime, without PyTorch."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from dassl.files import regular
from dassl.utils import Failure, cpu_cores, read_json

GRAPH, PREPROCESS, FORMAT = "model.onnx", "preprocess.json", 1
# The graph's metadata has preprocess.json too, under this key, but for its SHA-256.
ABOUT = "about"
AGAIN = "export it again (scripts/export.sh)"
EXTRA = "requirements-export.txt"


def need(*packages: str) -> None:
    """Raises Failure, with the command that installs them, if one is not there."""
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    if missing:
        how = f"pip install -r {EXTRA}"
        raise Failure(f"this needs {', '.join(missing)}, an optional extra: {how}")


class OnnxModel:
    """What inference.export wrote as model.onnx and preprocess.json.

    Attributes:
        classnames: C names, in the logits' order.
        about: preprocess.json, the model's self-description.
        device: what computes.
    """

    def __init__(self, folder: Path):
        """Raises: Failure if a file is missing or changed, or ONNX Runtime is not installed."""
        need("onnxruntime")
        self.path, self.about = folder / GRAPH, read_json(folder / PREPROCESS)
        if not isinstance(self.about, dict) or self.about.get("format") != FORMAT:
            raise Failure(f"{folder / PREPROCESS} has not format {FORMAT}: {AGAIN}")
        if sha256_of(self.path) != self.about.get("sha256"):
            why = f"is damaged, or not the one that {PREPROCESS} was written with"
            raise Failure(f"{self.path} {why}: {AGAIN}")
        self.session = open_session(self.path)
        said = self.session.get_modelmeta().custom_metadata_map.get(ABOUT, "null")
        if json.loads(said) != {k: v for k, v in self.about.items() if k != "sha256"}:
            why = f"was changed since it was written: it differs from what {GRAPH} says of itself"
            raise Failure(f"{folder / PREPROCESS} {why}; {AGAIN}")
        self.classnames: list[str] = self.about["classnames"]
        self.device = "CPU, ONNX Runtime"

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """(B, 3, R, R) float32, as preprocess.json says -> (B, C) float32.

        Raises: Failure if ONNX Runtime cannot compute them, as where the memory is full.
        """
        try:
            return self.session.run(["logits"], {"image": pixels})[0]
        except Exception as error:  # ONNX Runtime's errors have no other class in common
            line = f"ONNX Runtime cannot compute a batch of shape {pixels.shape}"
            raise Failure(f"{line}: {first_line(error)}") from error


def open_session(path: Path) -> Any:
    """ONNX Runtime's session of a graph, on as many cores as this process may use."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = cpu_cores(), 3
    try:
        providers = ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(str(path), options, providers)
    except Exception as error:  # see above
        raise Failure(f"ONNX Runtime cannot open {path}: {first_line(error)}") from error


def sha256_of(path: Path) -> str:
    """Raises: Failure if the file cannot be read."""
    try:
        with open(regular(path), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Failure(f"Cannot read {path}: {error.strerror}") from error


def first_line(error: Exception) -> str:
    """What a library says, without what follows."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
