from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from safetensors import SafetensorError

from sweeps.lanes.reports import make_folder, storage_fault


def own_folder(tmp_path: Path) -> Path:
    """A trial's folder in a results folder."""
    own = tmp_path / "r" / "work" / "trials" / "0123456789abcdef"
    own.mkdir(parents=True)
    return own


def test_what_the_system_says_is_found_whoever_passes_it_on(tmp_path: Path) -> None:
    own = own_folder(tmp_path)
    assert storage_fault(OSError(errno.ENOSPC, "No space left on device"), own) == errno.ENOSPC
    assert storage_fault(SafetensorError("I/O error: Read-only file system (os error 30)"), own) == errno.EROFS
    try:
        try:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert storage_fault(error, own) == errno.EDQUOT


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_a_results_folder_that_refuses_is_storage_and_another_file_is_the_trials_own(tmp_path: Path, code: int) -> None:
    own, words = own_folder(tmp_path), os.strerror(code)
    for inside in (own / "state", tmp_path / "r" / "adapters" / "x", own.parent):
        assert storage_fault(OSError(code, words, str(inside)), own) == code
        assert storage_fault(OSError(code, words, "/elsewhere", None, str(inside)), own) == code
    assert storage_fault(OSError(code, words, str(tmp_path / "data" / "a.png")), own) is None
    assert storage_fault(SafetensorError(f"{words} (os error {code})"), own) is None  # of a model's file, perhaps


def test_a_results_folder_that_is_gone_is_storage_and_a_missing_file_is_the_trials_own(tmp_path: Path) -> None:
    own = own_folder(tmp_path)
    for missing in (own / "state", tmp_path / "data" / "a.png"):
        assert storage_fault(FileNotFoundError(errno.ENOENT, "gone", str(missing)), own) is None
    make_folder(own)
    (tmp_path / "r").rename(tmp_path / "away")
    assert storage_fault(FileNotFoundError(errno.ENOENT, "gone", str(own / "state")), own) == errno.ENOENT
    assert storage_fault(SafetensorError("No such file or directory (os error 2)"), own) == errno.ENOENT
    with pytest.raises(FileNotFoundError, match="the results folder is gone") as raised:
        make_folder(own)
    assert storage_fault(raised.value, own) == errno.ENOENT
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "gone"), ValueError("x"), pa.ArrowInvalid("x"), None]
)
def test_other_errors_are_the_trials_own(tmp_path: Path, error: Exception | None) -> None:
    assert storage_fault(error, own_folder(tmp_path)) is None


def test_the_words_of_a_real_writer_without_room(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch\nfrom pathlib import Path\nfrom safetensors.torch import save_file\n"
        "from sweeps.lanes.reports import storage_fault\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    save_file({'x': torch.zeros(10_000)}, sys.argv[1])\n"
        "except Exception as error:\n    print(storage_fault(error, Path(sys.argv[1]).parent))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.strip() == str(errno.EFBIG)
