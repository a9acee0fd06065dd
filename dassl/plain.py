"""Text of others (names of folders, methods, classes) made fit to be shown: it moves no cursor,
ends no line."""

import re

# Control characters (terminals obey some), what turns or breaks lines, and bytes of file names that
# are no text.
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object, keep: str = "") -> str:
    r"""`str(text)` with such characters as their escapes (\n, \x1b), but for those in `keep`."""
    return _UNSHOWN.sub(
        lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], str(text)
    )
