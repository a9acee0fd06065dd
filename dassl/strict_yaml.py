"""YAML in which no key is there twice. Imports nothing slow."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which the first would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"{name}: is there twice")
        return super().construct_mapping(node, deep)


def load(text: str) -> Any:
    """The plain data that a text is. Raises yaml.YAMLError if it is none, has a key twice, or is
    nested too deep."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
