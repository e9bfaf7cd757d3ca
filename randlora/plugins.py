"""Methods of other packages: entry points of the group `randlora.methods` name modules that register them."""

from __future__ import annotations

from importlib.metadata import entry_points

from randlora.errors import AdapterError

GROUP = "randlora.methods"


def load_plugins() -> None:
    """Import every module that an installed package names; called once, when `randlora` is imported.

    Raises:
        AdapterError: a module that can't be imported or whose method can't be registered, with its package: a sweep
            that left its method out would compare something else.
    """
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # anything may go wrong in it; named and raised on
            package = "?" if point.dist is None else point.dist.name
            said = f"{type(error).__name__}: {error}"
            raise AdapterError(
                f"the entry point {point.name} = {point.value!r} of the package {package} ({GROUP}) failed: {said}; "
                f"mend it, or pip uninstall {package}"
            ) from error
