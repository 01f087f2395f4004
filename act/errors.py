"""Every error the tool raises on purpose.

ActError            exit code 1: something went wrong in a run; the folder can be resumed
    InputError      exit code 2: a recipe, path, model or option is wrong; one line per problem
    TrainingError   training cannot go on (NaN loss, a worker that died); names the last good checkpoint
    StorageError    a file cannot be written (disk full, read-only)
    FaultError      the machine failed (out of memory, a GPU that is gone)
    ExportError     the exported file is not what was promised (no integer kernel ran, parity lost)
"""

from __future__ import annotations

AGAIN = "put that right, and the same command goes on"


class ActError(Exception):
    """A failure with a message meant for the user; `exit_code` is the process's exit status."""

    exit_code = 1


class InputError(ActError):
    """Bad input. Each problem is one line: what is wrong, where, what is allowed, what to do."""

    exit_code = 2

    def __init__(self, problems: str | list[str]) -> None:
        # What libraries say, which many of these messages quote, may have several lines.
        self.problems = [" ".join(line.split("\n")) for line in ([problems] if isinstance(problems, str) else problems)]
        super().__init__("\n".join(self.problems))


class TrainingError(ActError):
    """Training stopped before its end; the message says why and where the last good state lies."""


class StorageError(ActError, OSError):
    """A file could not be written whole; what was there before is still there."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(0, reason, str(path))

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written ({self.strerror}); what was finished is kept: {AGAIN}"


class FaultError(ActError):
    """Something that a run depends on failed, which is neither its input nor its own doing."""


class ExportError(ActError):
    """An exported file failed the checks that every run makes on it."""
