"""Makes all checks before a run, for the command line and for Python."""

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
from sweeps.records.locks import FolderLock, check_identity, remove_folder_if_refused, stored_identity
from sweeps.records.upload import check_location, restore, stored_spec_at


@dataclass(frozen=True)
class Prepared:
    """A plan that may run: everything is checked, and this process holds the lock of the results folder.

    Attributes:
        plan: the plan. It has the sizes of its cells' splits if the trial function is that of this package.
        opener: opens the backend.
        restart: whether the backend is opened again if it is lost.
        location: the location that the results are copied to; None if they are not copied.
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
    """Check everything that a run needs, and hold the lock of the results folder until the block ends.

    If the run is refused, here or in the block, a new results folder is removed again. Data and weights are checked
    only for the trial function of this package: another one may need neither.

    The arguments and the errors are those of `sweeps.engine.run.run`.
    """
    opener = Opener(find_backend(backend) if isinstance(backend, str) else backend, address, trial)
    location = Location.of(upload) if isinstance(upload, str) else upload
    if location is not None and stored_identity(plan.spec.folder) is None:
        stored = stored_spec_at(location)
        plan = plan.as_begun(None if stored is None else stored["identity"])
    folder, identity = plan.spec.folder.absolute(), plan.spec.identity()
    check_identity(folder, identity)  # before anything is written into the folder
    if location is not None:
        check_location(location, identity)
    with remove_folder_if_refused(folder), FolderLock(folder):
        check_identity(folder, identity)  # another sweep may have used the folder before the lock was taken
        if location is not None:
            restore(folder, location)  # the copy says which data its trials saw
        if trial == TRIAL:
            check_inputs(plan)
            plan = plan.with_sizes(download=True)
        yield Prepared(plan, opener, restart and isinstance(backend, str), location)
