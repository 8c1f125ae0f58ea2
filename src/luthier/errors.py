"""The three ways a command can end badly, each with its own exit code.

A `UserError` is a mistake that the person at the keyboard can mend: its message says what was given, what was
expected and what to do next, and no traceback is shown. `Interrupted` is a stop on request (Ctrl-C, SIGTERM) that
left a resumable checkpoint. Anything else that reaches the command line is a defect of ours.
"""

from __future__ import annotations

import errno
from pathlib import Path

EXIT_OK = 0
EXIT_USER = 2
EXIT_DEFECT = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: the same command with --resume goes on


class UserError(Exception):
    """A mistake the user can mend.

    Args:
        given: what was found, as a full sentence.
        where: file and line, ``"recipe.yaml:4"``, when there is one.
        hint: what to do next, as a full sentence.
    """

    def __init__(self, given: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.given, self.where, self.hint = given, where, hint
        head = f"{where}: {given}" if where else given
        super().__init__(f"{head}\n  {hint}" if hint else head)


class RecipeError(UserError):
    """One or several mistakes in a recipe, all reported at once."""


class Interrupted(Exception):
    """Stopped on request; what was done is saved. ``resume`` is the sentence that tells how to go on."""

    def __init__(self, resume: str) -> None:
        self.resume = resume
        super().__init__(resume)


def unwritable(folder: Path, error: BaseException) -> Exception:
    """The sentence for a disk that is full or closed; any other error is returned as it is."""
    number = getattr(error, "errno", None)
    text = str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
        return UserError(
            f"The disk is full: nothing more could be written below {str(folder)!r}.",
            hint="What was saved before is whole. Make room, then run the same command with --resume.",
        )
    if number == errno.ENOTDIR:
        return UserError(
            f"{str(folder)!r} can't be made: a part of this path is a file.", hint="Choose another place with --runs FOLDER."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS) or "Permission denied" in text:
        return UserError(
            f"No permission to write below {str(folder)!r}.", hint="Choose another place with --runs FOLDER."
        )
    return error if isinstance(error, Exception) else RuntimeError(text)
