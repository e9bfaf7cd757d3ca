"""Read the limits of time and memory of a query from environment variables, and make the errors of exceeding them."""

from __future__ import annotations

import math
import os

from analysis.errors import QueryError
from trainables.errors import brief

_SECONDS, _GB = "SWEEPS_SQL_SECONDS", "SWEEPS_SQL_GB"


def seconds() -> float:
    """Return the seconds that a query may run. Raises QueryError if the variable is no positive number."""
    return _limit(_SECONDS, 60.0)


def gigabytes() -> float:
    """Return the gigabytes that a query and its result may each take. Raises QueryError as `seconds` does."""
    return _limit(_GB, 2.0)


def _limit(variable: str, default: float) -> float:
    text = os.environ.get(variable) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise QueryError(f"{variable} = {brief(text)}: must be a number above 0; {default:g} if it is not set")
    return value


def too_slow() -> QueryError:
    """Return the error of a query that ran longer than it may."""
    return QueryError(f"the query took more than {seconds():g} s ({_SECONDS} allows more)")


def too_large(what: str) -> QueryError:
    """Return the error of a query, or its result, that needs more memory than it may have."""
    allowed = f"{gigabytes():g} GB of memory ({_GB} allows more)"
    return QueryError(f"{what} takes more than {allowed}: choose columns, aggregate, or add a LIMIT")
