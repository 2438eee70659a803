import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from teengined.core.errors import UnsupportedArchitecture
from teengined.modelpack.support import VERIFIED_ARCHITECTURES, check_model
from tests.fakes.tiny_models import TINY_ARCHITECTURES


def test_every_verified_architecture_is_one_that_parity_compares() -> None:
    assert set(TINY_ARCHITECTURES) == VERIFIED_ARCHITECTURES


def test_an_architecture_that_was_never_compared_is_refused_by_name() -> None:
    config = AutoConfig.for_model("bitnet", hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)

    with pytest.raises(UnsupportedArchitecture, match=r"'bitnet'.*not been compared with transformers"):
        check_model(model)
