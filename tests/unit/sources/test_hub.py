import importlib.util

import pytest

from teengined.core.errors import HubUnreachable, SourceError
from teengined_plugins.sources.hub import Hub


@pytest.mark.parametrize("reference", ["org/name", "HuggingFaceTB/SmolLM2-135M", "a/b@main", "org/na.me_1"])
def test_hub_ids_are_recognised(reference: str) -> None:
    assert Hub().matches(reference)


@pytest.mark.parametrize(
    "reference", ["name", "a/b/c", "../x", "/abs/path", "org/", "https://x/y", "a b/c", "tests/unit"]
)
def test_paths_and_plain_names_are_not_hub_ids(reference: str) -> None:
    assert not Hub().matches(reference)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SourceError) as refused:
        Hub().open("org/name")
    assert "pip install 'teengine[hub]'" in refused.value.hint


@pytest.mark.filterwarnings("ignore")
def test_an_unreachable_hub_is_one_line_that_names_the_offline_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachable) as refused:
        Hub().open("no-such-org/no-such-model")
    assert "\n" not in refused.value.message
    assert "directory" in refused.value.hint
    assert "smollm2" in refused.value.hint
