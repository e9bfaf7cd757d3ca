"""Storage that fails under a trial: full, read-only or gone. No trial is to blame for it, so the sweep stops."""

from __future__ import annotations

import errno
import re

_CODES = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "ESTALE", "ENOTCONN")
    if hasattr(errno, name)
}
_RUST = re.compile(r"\(os error (\d+)\)")
"""How safetensors, written in Rust, tells what the system said."""


def storage_fault(error: BaseException | None) -> int | None:
    """The system's error number when an exception, or what caused it, says that storage failed; else None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        code = error.errno if isinstance(error, OSError) else None
        if code is None and (found := _RUST.search(str(error))):
            code = int(found.group(1))
        if code in _CODES:
            return code
        error = error.__cause__ or error.__context__
    return None
