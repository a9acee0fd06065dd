from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from .errors import UsageError


def check_availability(requested: str, available: Iterable[str], what: str = "name") -> None:
    """Raises UsageError, naming the nearest and all others, unless `requested` is available."""
    available = sorted(available)
    if requested in available:
        return
    by_lower = {name.lower(): name for name in available}
    nearest = get_close_matches(str(requested).lower(), by_lower, n=1, cutoff=0.4)
    hint = f"did you mean {by_lower[nearest[0]]}? " if nearest else ""
    listed = ", ".join(available) or "none"
    raise UsageError(f'Unknown {what} "{requested}": {hint}Available: {listed}')


class Registry:
    """Named classes or functions, filled with the decorator `@REGISTRY.register()`."""

    def __init__(self, name: str):
        self._name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Callable | None:
        """Registers under `__name__`. Raises KeyError if the name is taken, unless `force`."""

        def add(obj: Any) -> Any:
            if obj.__name__ in self._objects and not force:
                raise KeyError(f'"{obj.__name__}" is already in the {self._name} registry')
            self._objects[obj.__name__] = obj
            return obj

        return add if obj is None else add(obj)

    def get(self, name: str) -> Any:
        """The object registered as `name`; raises UsageError naming the nearest name."""
        check_availability(name, self._objects, self._name.lower())
        return self._objects[name]

    def registered_names(self) -> list[str]:
        return list(self._objects)
