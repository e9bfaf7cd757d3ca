from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from safetensors import SafetensorError

from sweeps.lanes.reports import storage_fault


def test_what_the_system_says_is_found_whoever_passes_it_on() -> None:
    assert storage_fault(OSError(errno.ENOSPC, "No space left on device")) == errno.ENOSPC
    assert storage_fault(SafetensorError("I/O error: Read-only file system (os error 30)")) == errno.EROFS
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert storage_fault(error) == errno.EDQUOT


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone"), ValueError("x"), pa.ArrowInvalid("x"), None]
)
def test_other_errors_are_the_trials_own(error: Exception | None) -> None:
    assert storage_fault(error) is None


def test_the_words_of_a_real_writer_without_room(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch\nfrom safetensors.torch import save_file\n"
        "from sweeps.lanes.reports import storage_fault\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    save_file({'x': torch.zeros(10_000)}, sys.argv[1])\n"
        "except Exception as error:\n    print(storage_fault(error))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.strip() == str(errno.EFBIG)
