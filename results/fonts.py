"""Fonts of figures: the one asked for, and others for the letters it lacks."""

import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache

LAST = "Last Resort High-Efficiency"  # matplotlib's: a box for each letter, which says its script
PLAIN = (400, "normal")  # weights
FIRST = ("DejaVu Serif", "DejaVu Sans")  # matplotlib's, with many scripts
CHINESE = {"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH"}

log = logging.getLogger("results.figures")


def find_font(font: str) -> str:
    """The family of a font's file, or of an installed font. Raises LookupError: there is none."""
    from matplotlib import font_manager as fonts

    if os.path.isfile(font):
        try:
            fonts.fontManager.addfont(font)
            return fonts.FontProperties(fname=font).get_name()
        except (OSError, RuntimeError, NotImplementedError) as error:
            raise LookupError(f"{font} is no font that matplotlib reads ({error})") from None
    try:
        fonts.findfont(fonts.FontProperties(family=[font]), fallback_to_default=False)
    except ValueError:
        near = get_close_matches(font, installed())
        there = f"near: {', '.join(near)}" if near else f"there are {', '.join(installed())}"
        line = f"{font}: no such font is installed; {there}; or give a font's file"
        raise LookupError(line) from None
    return font


def installed() -> list[str]:
    """Families for text, those of matplotlib with many scripts first."""
    from matplotlib import font_manager as fonts

    plain = (f for f in fonts.fontManager.ttflist if f.style == "normal" and f.weight in PLAIN)
    names = {font.name for font in plain}
    no_text = tuple(name for name in names if name.startswith(("STIXSize", "STIXNon", "cm")))
    rest = sorted(names - {*FIRST, *no_text, LAST})
    return [*(name for name in FIRST if name in names), *rest]


@cache
def letters_of(family: str) -> frozenset[int]:
    """The code points that a family has."""
    from matplotlib import font_manager as fonts

    try:
        path = fonts.findfont(fonts.FontProperties(family=[family]))
        return frozenset(fonts.get_font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a damaged one among many is not the figure's
        return frozenset()


def families_for(texts: Iterable[str], families: Sequence[str]) -> list[str]:
    """`families`, and behind them installed ones for letters that these lack.

    A warning names the letters that no installed font has.
    """
    missing = {ord(c) for text in texts for c in text if needs_glyph(c)}
    found = list(families)
    for family in families:
        missing -= letters_of(family)
    for family in installed() if missing else ():
        if missing & letters_of(family):
            found.append(family)
            missing -= letters_of(family)
    if missing:
        warn_of("".join(map(chr, sorted(missing))))
        found += [LAST] * bool(letters_of(LAST))
    return found


def needs_glyph(c: str) -> bool:
    """Not a space, nor what only tells how others are drawn."""
    return not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf", "Mn")


@cache  # a command draws several figures of the same names
def warn_of(letters: str) -> None:
    """Says which letters have no font, and which font has them."""
    scripts = {unicodedata.name(c, "?").split()[0] for c in letters}
    fonts = set()
    for script in scripts:
        fonts.add("Noto Sans CJK SC" if script in CHINESE else f"Noto Sans {script.title()}")
    if all(unicodedata.category(c) == "So" for c in letters):
        fonts = {"Noto Emoji"}
    line = "no installed font has %s, drawn as boxes; install one that has (%s), or give it: --font"
    log.warning(line, letters, ", ".join(sorted(fonts)))
