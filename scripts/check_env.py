"""Exit 0 if this Python has a supported version of every package in pyproject.toml, else 1.

Then a line says what is missing.
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def numbers(version: str) -> list[int]:
    """2.14.1+cu130 -> [2, 14, 1]; what is no digit is left out."""
    parts = version.split("+")[0].split(".")[:3]
    return [int("".join(filter(str.isdigit, part)) or 0) for part in parts]


def problem(requirement: str) -> str | None:
    """What is wrong with `name>=version`, or None."""
    name, _, least = requirement.partition(">=")
    try:
        have = version(name)
    except PackageNotFoundError:
        return f"{name} is missing"
    return f"{name} {have} is older than {least}" if numbers(have) < numbers(least) else None


def main() -> int:
    """The exit code; prints what is missing."""
    requirements = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    problems = list(filter(None, map(problem, requirements)))
    if not problems:
        try:
            import torchvision  # noqa: F401  a torchvision of another torch fails here
        except Exception as e:
            problems = [f"torchvision does not import: {e}"]
    if problems:
        print(f"{sys.executable}: {'; '.join(problems)}")
    return 1 if problems else 0


if __name__ == "__main__":
    # On Python 3.10 and older the imports above have failed, which is the right answer too.
    sys.exit(main())
