"""A hub that does not answer is known at once, and nothing starts that would wait for it."""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import huggingface_hub
import pytest
from huggingface_hub import constants

from trainables import hub
from trainables.data.downloads import hub_splits
from trainables.hub import cached_repositories, hub_answers
from trainables.models import loading
from trainables.models.families import ModelError, ModelId
from trainables.models.loading import check_weights

SHARDS = "model.safetensors.index.json"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A port of this machine that nobody listens on yet, as the hub's."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(hub, "_silent", False)
    monkeypatch.setattr(hub, "_ask_at", -math.inf)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield taken


def test_a_hub_that_does_not_answer_is_asked_again_after_a_while(
    port: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not hub_answers() and constants.HF_HUB_OFFLINE
    port.listen()
    assert not hub_answers() and constants.HF_HUB_OFFLINE
    now = hub._ask_at
    monkeypatch.setattr(hub, "time", SimpleNamespace(monotonic=lambda: now))
    assert hub_answers() and not constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_used_and_not_asked_again(port: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    port.listen()
    assert hub_answers() and not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(hub, "time", SimpleNamespace(monotonic=lambda: 1e12))
    port.close()
    assert hub_answers()


def test_who_wants_no_network_is_not_asked(port: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    port.listen()
    assert not hub_answers() and constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("wished", [None, "1"])
def test_data_sets_come_again_when_the_hub_does(
    wished: str | None, port: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """datasets copies the hub's flag when it is imported."""
    import datasets

    if wished is None:
        monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    else:
        monkeypatch.setenv("HF_DATASETS_OFFLINE", wished)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"offline": datasets.config.HF_HUB_OFFLINE})
    port.listen()
    assert hub_splits("d", "org/d", instead="none") == {"offline": wished is not None}


def test_behind_a_proxy_nobody_but_the_proxy_knows(port: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    assert hub_answers() and not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("model", ["hf:org/nothing", "open_clip:ViT-B-32/openai"])
def test_weights_that_cannot_be_had_stop_a_sweep_before_it_starts(
    model: str, port: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def neither(parsed: ModelId) -> NoReturn:
        raise OSError("neither cached nor reachable")

    monkeypatch.setattr(loading, "fetched", neither)
    with pytest.raises(ModelError, match=r"the hub does not answer, and this machine has no copy.*local:DIR"):
        check_weights(model)
    monkeypatch.setattr(loading, "fetched", lambda parsed: Path("cached"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: f"{name}/{file}")
    check_weights(model)


@pytest.mark.parametrize("files, there", [((), False), (("config.json",), False), (("config.json", SHARDS), True)])
def test_a_config_alone_is_no_copy_of_a_model(
    files: tuple[str, ...], there: bool, port: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan that was made with a network leaves it in the cache."""
    revision = tmp_path / "models--org--one" / "snapshots" / "abc"
    revision.mkdir(parents=True)
    (tmp_path / "models--org--one" / "refs").mkdir()
    (tmp_path / "models--org--one" / "refs" / "main").write_text("abc")
    for name in files:
        (revision / name).write_text("{}")
    cached = partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    with contextlib.nullcontext() if there else pytest.raises(ModelError, match="has no copy"):
        check_weights("hf:org/one")


def test_an_address_that_is_none_is_no_hub(port: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:abc")
    assert not hub_answers()


def test_repositories_in_the_cache_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert cached_repositories() == []
    (tmp_path / "there/models--org--one/snapshots/abc").mkdir(parents=True)
    (tmp_path / "there/datasets--org--two/snapshots/abc").mkdir(parents=True)
    scan = partial(huggingface_hub.scan_cache_dir, tmp_path / "there")  # the cache's place is a default argument
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", scan)
    assert cached_repositories() == ["org/one"]
