import importlib.util
from pathlib import Path

import pytest
from huggingface_hub import constants

_spec = importlib.util.spec_from_file_location("loopback_hub", Path(__file__).parents[1] / "loopback_hub.py")
loopback_hub = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(loopback_hub)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub on loopback to which this process's client is pointed, with the right to write."""
    with loopback_hub.LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no-tokens"))
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its retries
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        yield hub
