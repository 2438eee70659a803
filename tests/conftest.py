"""What every test gets: a seed that a failure names, one thread for arithmetic, and Hypothesis without a clock."""

import os
import random

import hypothesis
import pytest

# Before anything imports torch: tests share few cores, and one thread adds up in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing may reach for a model hub, even by accident.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiled kernels are shared with the user's own daemon, for they take seconds; which of them is fastest is not for a
# test to say.
os.environ["TEENGINE_NO_KEPT_CHOICES"] = "1"

hypothesis.settings.register_profile("teengine", deadline=None, print_blob=True, max_examples=100)
hypothesis.settings.load_profile("teengine")


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The number given with `--hypothesis-seed` (`make test SEED=…`), for tests that draw their own input; else 0."""
    return int(request.config.getoption("--hypothesis-seed") or 0)


@pytest.fixture(autouse=True)
def seeded_random(seed: int) -> None:
    """Start every test from the same place."""
    random.seed(seed)
