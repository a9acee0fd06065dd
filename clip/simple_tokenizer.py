"""OpenAI's byte-pair tokenizer under OpenAI's names: open_clip's, which ships the vocabulary."""

import importlib.util
from pathlib import Path
from types import ModuleType


def open_clip_file(name: str) -> ModuleType:
    """A module of open_clip that stands alone; importing open_clip itself loads all its models."""
    folder = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location(f"open_clip_{name}", folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SimpleTokenizer(open_clip_file("tokenizer").SimpleTokenizer):
    """`encode(text) -> ids` and `decode(ids) -> text`, without the start and end tokens.

    open_clip calls those two `<start_of_text>` and `<end_of_text>`; `encoder` and `decoder` have
    them under OpenAI's names too.
    """

    def __init__(self):
        super().__init__()
        special = {"<|startoftext|>": self.sot_token_id, "<|endoftext|>": self.eot_token_id}
        self.encoder |= special
        self.decoder |= {token: name for name, token in special.items()}
