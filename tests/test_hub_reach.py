"""Pretrained weights without a network: one line at once, and no retries."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from huggingface_hub import constants

from act.errors import InputError
from act.hub_reach import offline_if_unreachable
from act.models import load_model
from act.recipe.schema import ModelConfig


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror("no such name")

    monkeypatch.setattr("act.hub_reach.socket.getaddrinfo", fail)
    monkeypatch.setattr("act.hub_reach.getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


def test_weights_that_cannot_be_fetched_are_one_line(nowhere: None, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match="weights of vit_tiny_patch16_224 could not be fetched"):
        load_model(ModelConfig(name="vit_tiny_patch16_224", pretrained=True))
    assert "Retry" not in caplog.text and not constants.HF_HUB_OFFLINE


def test_only_an_unknown_name_means_offline(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with offline_if_unreachable():
        assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr("act.hub_reach.getproxies", lambda: {"https": "http://proxy"})
    with offline_if_unreachable():
        assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr("act.hub_reach.getproxies", dict)
    monkeypatch.setattr("act.hub_reach.socket.getaddrinfo", lambda *args: [])
    with pytest.raises(KeyError), offline_if_unreachable():
        assert not constants.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE
