"""The moving average of the weights, against its formula."""

import torch
from torch import nn

from training.averaging import MovingAverage


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))


def test_weights_and_running_statistics_follow_the_formula_and_counts_are_copied():
    network = small_network()
    average = MovingAverage(network, decay=0.6)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    expected: dict[str, torch.Tensor] = {}
    for step in range(12):
        optimizer.zero_grad()
        network(torch.randn(5, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        average.update_parameters(network)
        decay = min(0.6, (1 + step) / (10 + step)) if step else 0.0  # the first update takes the weights over
        for name, value in network.state_dict().items():
            former = expected.get(name, torch.zeros(()))
            if value.is_floating_point():
                expected[name] = decay * former + (1 - decay) * value.double()
            else:
                expected[name] = value.clone()
        found = average.module.state_dict()
        for name, value in expected.items():
            torch.testing.assert_close(found[name].double(), value.double(), atol=1e-6, rtol=1e-5)
    assert found["1.num_batches_tracked"] == 12
    assert not torch.allclose(found["1.running_var"], network[1].running_var)


def test_its_state_is_restored_to_the_same_bits():
    network = small_network()
    one, other = (MovingAverage(network, decay=0.9) for _ in range(2))
    for step in range(4):
        with torch.no_grad():
            network[0].weight += step
        one.update_parameters(network)
        if step == 1:
            other.load_state_dict(one.state_dict())
        if step > 1:
            other.update_parameters(network)
    restored = other.state_dict()
    assert all(torch.equal(value, restored[name]) for name, value in one.state_dict().items())
