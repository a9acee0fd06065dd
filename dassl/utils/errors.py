"""What a user can cause ends in one clear line: what is wrong, where, what to do."""


class Failure(Exception):
    """The run cannot go on. `str()` is one line for the user."""

    exit_code = 1

    def __init__(self, line: str):
        # A DataLoader worker's exception arrives with its whole traceback as the text, our line
        # last.
        if line.startswith("Caught "):
            line = line.strip().splitlines()[-1].split(": ", 1)[-1]
        super().__init__(line)


class CannotWrite(Failure):
    """A file cannot be written: the disk is full, or the folder is not one to write to."""


class UsageError(Failure):
    """The user asked for something that does not exist or cannot be."""

    exit_code = 2
