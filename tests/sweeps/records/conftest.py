from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweeps.inline import go_inline
from tests.sweeps.records.support import small


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed sweep (`small`); tests copy it."""
    folder = tmp_path_factory.mktemp("whole") / "r"
    go_inline(small(folder))
    return folder
