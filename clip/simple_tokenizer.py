"""OpenAI's byte-pair tokenizer: open_clip's, which ships the vocabulary."""

import importlib.util
from pathlib import Path
from types import ModuleType


def open_clip_file(name: str) -> ModuleType:
    """A module of open_clip, without the rest, which takes seconds to import."""
    folder = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(f"open_clip_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SimpleTokenizer(open_clip_file("tokenizer").SimpleTokenizer):
    """`encode(text) -> ids` and `decode(ids) -> text`, without start and end tokens.

    Those two have OpenAI's names in `encoder` and `decoder`, beside open_clip's
    `<start_of_text>` and `<end_of_text>`.
    """

    def __init__(self):
        super().__init__()
        sot, eot = self.sot_token_id, self.eot_token_id
        self.encoder |= {"<|startoftext|>": sot, "<|endoftext|>": eot}
        self.decoder |= {sot: "<|startoftext|>", eot: "<|endoftext|>"}
