import torch

from teengined.engine.measurement_layer import layer_overhead_seconds
from tests.fakes.separate_device import cpu_device


def test_a_layer_costs_something_and_far_less_than_a_second():
    assert 0 < layer_overhead_seconds(cpu_device(), torch.float32) < 0.5
