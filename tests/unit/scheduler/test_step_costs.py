"""The fit of what steps cost, on steps of devices whose costs are known."""

import math
import random
from dataclasses import dataclass

import pytest

from teengined.scheduler.step_costs import StepCosts, StepLoad, StepSeconds, num_attended

CHUNK_TOKENS = 512
EXPECTED = StepSeconds(step=0.0, token=0.004, prompt_position=0.0, row_position=0.0)
DEVICES = {
    "attention soon costs most": StepSeconds(step=0.01, token=5e-4, prompt_position=1e-6, row_position=1e-6),
    "rows wait for memory": StepSeconds(step=0.01, token=1e-3, prompt_position=1e-7, row_position=2e-6),
    "weights are streamed": StepSeconds(step=1.0, token=2e-4, prompt_position=1e-8, row_position=1e-7),
    "attention costs nothing": StepSeconds(step=0.01, token=1e-3, prompt_position=0.0, row_position=0.0),
}


@dataclass
class Device:
    """Runs sequences in simulated time, which is off by a relative noise."""

    costs: StepSeconds
    rng: random.Random
    noise: float = 0.0

    def seconds(self, load: StepLoad) -> float:
        exact = (
            self.costs.step
            + self.costs.token * load.num_tokens
            + self.costs.prompt_position * load.num_prompt_positions
            + self.costs.row_position * load.num_row_positions
        )
        return exact * max(0.2, self.rng.gauss(1, self.noise))

    def teach(self, learned: StepCosts, num_prompts: int, longest: int) -> None:
        """Compute prompts of lengths from 16 tokens to `longest` by chunks, and up to 100 tokens of each answer."""
        for _ in range(num_prompts):
            length = round(2 ** self.rng.uniform(4, math.log2(longest)))
            for start in range(0, length, CHUNK_TOKENS):
                num_tokens = min(CHUNK_TOKENS, length - start)
                positions = num_attended(start, num_tokens)
                self._learn(learned, StepLoad(num_prompt_tokens=num_tokens, num_prompt_positions=positions))
            for position in range(length, length + self.rng.randint(1, 100)):
                self._learn(learned, StepLoad(num_rows=1, num_row_positions=num_attended(position, 1)))

    def _learn(self, learned: StepCosts, load: StepLoad) -> None:
        learned.learn(load, self.seconds(load))


def prompt_seconds(costs: StepSeconds, length: int) -> float:
    num_steps = math.ceil(length / CHUNK_TOKENS)
    return num_steps * costs.step + length * costs.token + num_attended(0, length) * costs.prompt_position


def taught(device: Device, num_prompts: int = 30, longest: int = 8192) -> StepSeconds:
    learned = StepCosts(expected=EXPECTED)
    device.teach(learned, num_prompts, longest)
    return learned.seconds


def test_token_attends_to_itself_and_all_before_it():
    assert num_attended(3, 4) == 4 + 5 + 6 + 7
    assert num_attended(0, 0) == 0


@pytest.mark.parametrize("costs", DEVICES.values(), ids=DEVICES)
def test_prompts_of_all_lengths_are_predicted_from_steps_that_were_seen(costs: StepSeconds):
    found = taught(Device(costs, random.Random(1)))

    for length in (16, 512, 2048, 8192):
        assert prompt_seconds(found, length) == pytest.approx(prompt_seconds(costs, length), rel=0.02)


@pytest.mark.parametrize("costs", DEVICES.values(), ids=DEVICES)
def test_noise_moves_the_prediction_about_as_far_as_it_moves_a_step(costs: StepSeconds):
    for seed in range(40):
        found = taught(Device(costs, random.Random(seed), noise=0.05))
        for length in (512, 8192):
            ratio = prompt_seconds(found, length) / prompt_seconds(costs, length)
            assert ratio == pytest.approx(1, abs=0.1), f"seed {seed}, {length} tokens"


def test_a_cost_for_each_token_alone_would_be_far_off_for_long_contexts():
    device = Device(DEVICES["attention soon costs most"], random.Random(2))
    # Most prompts are short, so that is what a mean over tokens would know.
    learned = StepCosts(expected=EXPECTED)
    device.teach(learned, 50, 512)
    load = StepLoad(num_prompt_tokens=512, num_prompt_positions=num_attended(0, 512))
    for_each_token = device.seconds(load) / 512
    device.teach(learned, 3, 8192)
    exact = prompt_seconds(device.costs, 8192)

    assert for_each_token * 8192 < exact / 3
    assert prompt_seconds(learned.seconds, 8192) == pytest.approx(exact, rel=0.03)


def test_device_that_slows_down_is_followed():
    fast, slow = DEVICES["rows wait for memory"], StepSeconds(*(2 * cost for cost in DEVICES["rows wait for memory"]))
    learned = StepCosts(expected=EXPECTED)
    for costs in (fast, slow):
        Device(costs, random.Random(3)).teach(learned, 90, 8192)

    assert prompt_seconds(learned.seconds, 8192) == pytest.approx(prompt_seconds(slow, 8192), rel=0.1)


def test_steps_of_few_tokens_alone_leave_what_was_expected():
    learned = StepCosts(expected=EXPECTED)
    learned.learn(StepLoad(num_rows=8, num_row_positions=8), 5.0)

    assert learned.seconds == EXPECTED


def test_prompts_alone_teach_the_rate_beside_what_was_expected_of_a_step():
    learned = StepCosts(expected=StepSeconds(step=10.0, token=9.0, prompt_position=0.0, row_position=0.0))
    learned.learn(StepLoad(num_prompt_tokens=100, num_prompt_positions=num_attended(0, 100)), 60.0)

    found = learned.seconds
    assert (found.step, found.token) == pytest.approx((10.0, 0.5), rel=1e-3)
    assert found.prompt_position * num_attended(0, 100) < 0.1


def test_step_that_was_expected_to_cost_more_than_one_takes_costs_no_more_than_it_takes():
    learned = StepCosts(expected=StepSeconds(step=9.0, token=1.0, prompt_position=1.0, row_position=1.0))
    learned.learn(StepLoad(num_prompt_tokens=9, num_prompt_positions=45), 5.0)

    assert learned.seconds.step <= 5.01
    assert min(learned.seconds) >= 0


def test_steps_without_tokens_or_times_teach_nothing():
    learned = StepCosts(expected=EXPECTED)
    learned.learn(StepLoad(), 5.0)
    learned.learn(StepLoad(num_prompt_tokens=100, num_prompt_positions=5050), 0.0)

    assert learned.seconds == EXPECTED


def test_nothing_costs_less_than_nothing_whatever_steps_tell():
    for seed in range(300):
        rng = random.Random(seed)
        learned = StepCosts(expected=StepSeconds(*(rng.choice([0.0, 1e-6, 1.0]) for _ in range(4))))
        for _ in range(rng.randint(1, 30)):
            rows, tokens = rng.choice([0, 1, 30]), rng.choice([0, 1, 9, 512])
            depth = rng.choice([0, 1, 1000, 1 << 20])
            load = StepLoad(
                num_rows=rows,
                num_prompt_tokens=tokens,
                num_row_positions=num_attended(depth, rows),
                num_prompt_positions=num_attended(depth, tokens),
            )
            learned.learn(load, 10 ** rng.uniform(-6, 3))
        assert all(0 <= cost < math.inf for cost in learned.seconds), f"seed {seed}: {learned.seconds}"


def test_memory_is_bounded_by_the_depth_of_contexts():
    rng = random.Random(4)
    learned = StepCosts(expected=EXPECTED)
    for _ in range(3000):
        start, num_tokens = rng.randrange(1 << 17), rng.randint(1, 600)
        positions = num_attended(start, num_tokens)
        learned.learn(StepLoad(num_prompt_tokens=num_tokens, num_prompt_positions=positions), 1.0)

    assert len(learned._means) <= 2 * 18
