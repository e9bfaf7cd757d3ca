"""Says what is known of a failed trial, and where its error was raised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Failure:
    """A failed trial.

    Attributes:
        trial_id: the trial.
        label: the name of its cell.
        reason: the exception's type and the first line of its message.
        where: where it was raised; None if that is not known.
        traceback: its traceback; None if that is not known. A running engine does not keep it.
    """

    trial_id: str
    label: str
    reason: str
    where: str | None = None
    traceback: str | None = None

    def __str__(self) -> str:
        return f"{self.label}: {self.reason}" + (f" ({self.where})" if self.where else "")


def where_raised(trace: str | None) -> str | None:
    """Return where a traceback's text says that the error was raised, such as "clip.py:88 in evaluate".

    None if there is no traceback.
    """
    lines = [line.strip() for line in (trace or "").splitlines() if line.strip().startswith('File "')]
    if not lines:
        return None
    path, _, rest = lines[-1].removeprefix('File "').partition('", line ')
    number, _, function = rest.partition(", in ")
    return f"{path.rpartition('/')[2]}:{number} in {function}"
