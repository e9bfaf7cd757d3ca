"""What is checked before a run, in one place: the command line and Python both come through here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from analysis.store.remote import Location
from sweeps.backends.backend import OpenBackend
from sweeps.backends.registry import find_backend
from sweeps.engine.runner import TRIAL, Opener
from sweeps.plan.inputs import check_inputs
from sweeps.plan.plan import Plan
from sweeps.records.locks import FolderLock, check_identity, nothing_if_refused, stored_identity
from sweeps.records.upload import check_there, restore, stored_there


@dataclass(frozen=True)
class Prepared:
    """A plan that may run: everything is checked, and this process holds the results folder.

    Attributes:
        plan: the plan, with the sizes of its cells' splits if its trials train for real.
        opener: how the backend is opened.
        restart: whether the backend is opened again if it is lost.
        location: where the results are copied to; None: nowhere.
    """

    plan: Plan
    opener: Opener
    restart: bool
    location: Location | None


@contextlib.contextmanager
def prepare(
    plan: Plan,
    *,
    backend: str | OpenBackend = "ray",
    address: str | None = None,
    restart: bool = True,
    trial: str = TRIAL,
    upload: str | Location | None = None,
) -> Iterator[Prepared]:
    """Check all that a run needs, and hold the results folder until the block ends.

    A folder that this made is gone again if the run is refused, here or in the block. The arguments are those of
    `sweeps.engine.run.run`, which also lists what is raised. Data and weights are checked only for the trial function
    of this package: another one may need neither.
    """
    opener = Opener(find_backend(backend) if isinstance(backend, str) else backend, address, trial)
    location = Location.of(upload) if isinstance(upload, str) else upload
    if location is not None and stored_identity(plan.spec.folder) is None:
        plan = plan.as_begun(stored_there(location))
    folder, identity = plan.spec.folder.absolute(), plan.spec.identity()
    check_identity(folder, identity)  # before anything is written into the folder
    if location is not None:
        check_there(location, identity)
    with nothing_if_refused(folder), FolderLock(folder):
        check_identity(folder, identity)  # another sweep may have come and gone meanwhile
        if location is not None:
            restore(folder, location)  # the copy says which data its trials saw
        if trial == TRIAL:
            check_inputs(plan)
            plan = plan.with_sizes(download=True)
        yield Prepared(plan, opener, restart and isinstance(backend, str), location)
