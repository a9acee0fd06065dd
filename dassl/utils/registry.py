"""Classes by name: trainers, datasets, evaluators."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from yacs.config import CfgNode

from .errors import UsageError


def check_availability(requested: str, available: Iterable[str], what: str = "name") -> None:
    """Raises UsageError, naming the nearest, unless `requested` is available."""
    available = sorted(available)
    if requested in available:
        return
    by_lower = {name.lower(): name for name in available}
    nearest = get_close_matches(str(requested).lower(), by_lower, n=1, cutoff=0.4)
    hint = f"did you mean {by_lower[nearest[0]]}? " if nearest else ""
    listed = ", ".join(available) or "none"
    raise UsageError(f'Unknown {what} "{requested}": {hint}Available: {listed}')


class Registry:
    """Named classes or functions, filled by `@REGISTRY.register()`."""

    def __init__(self, name: str):
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Callable | None:
        """Registers under `__name__`; raises KeyError if taken, unless `force`."""

        def add(obj: Any) -> Any:
            if obj.__name__ in self._objects and not force:
                raise KeyError(f'"{obj.__name__}" is already in the {self._name} registry')
            self._objects[obj.__name__] = obj
            return obj

        return add if obj is None else add(obj)

    def build(self, cfg: CfgNode, name: str, **kwargs) -> Any:
        """What is registered as `name`, called with cfg; raises UsageError."""
        build = self.get(name)
        if cfg.VERBOSE:
            print(f"Loading {self._name.lower()}: {name}")
        return build(cfg, **kwargs)

    def get(self, name: str) -> Any:
        """The object registered as `name`; raises UsageError naming the nearest name."""
        check_availability(name, self._objects, self._name.lower())
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """All names, in the order in which they were registered."""
        return list(self._objects)
