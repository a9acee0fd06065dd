"""Many prompts for an image: parts, draws and what is made of them."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from trainers.draws import in_parts, kl_normal, log_mean_probability, normal


@pytest.mark.parametrize("most", [0, 1, 3, 5, 9])
def test_parts_are_the_whole_and_so_are_their_gradients(most):
    a, b = (torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    seen = []

    def function(a, b):
        seen.append(len(a))
        return (a * b).sin().sum(dim=1)

    whole = torch.autograd.grad((function(a, b) ** 2).sum(), (a, b))
    seen.clear()
    parts = in_parts(function, most, a, b)
    torch.testing.assert_close(parts, function(a, b))
    for ours, theirs in zip(torch.autograd.grad((parts**2).sum(), (a, b)), whole, strict=True):
        torch.testing.assert_close(ours, theirs)
    seen.clear()
    with torch.no_grad():
        in_parts(function, most, a, b)
    assert sum(seen) == 5 and max(seen) <= max(1, most)


def test_draws_of_a_seed_are_the_same_for_every_image_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    one, seven = (normal(torch.zeros(n, 4), 3, 2, seed=5) for n in (1, 7))
    assert torch.equal(seven, one.expand(7, 3, 2)) and torch.equal(before, torch.get_rng_state())
    assert torch.equal(normal(torch.zeros(1, dtype=torch.float64), 3, 2, seed=5).float(), one)
    assert not torch.equal(normal(torch.zeros(1), 3, 2, seed=6), one)


def test_draws_without_a_seed_are_new_for_each_image():
    draws = normal(torch.zeros(2000, 4), 3, 2)
    assert draws.shape == (2000, 3, 2) and not torch.equal(draws[0], draws[1])
    assert abs(draws.mean()) < 0.05 and abs(draws.std() - 1) < 0.05


def test_the_error_of_a_mean_of_draws_falls_with_their_number():
    """As 1 / √n: a hundred times as many draws, a tenth of the error."""
    errors = []
    for n in (10, 1000):
        means = torch.stack([normal(torch.zeros(1), n, 50, seed=s).mean(1) for s in range(20)])
        errors.append(means.std())
    assert 8 < errors[0] / errors[1] < 12.5


def test_probabilities_are_averaged_and_not_logits():
    logits = 5 * torch.randn(2, 3, 4)
    mean = torch.stack([row.softmax(-1) for row in logits.unbind(1)]).mean(0)
    torch.testing.assert_close(log_mean_probability(logits).exp(), mean)
    assert (logits.mean(1).softmax(-1) - mean).abs().max() > 0.01


def test_the_divergence_is_torchs():
    mean, log_var, prior_mean, prior_log_var = torch.randn(4, 5, dtype=torch.float64)
    q, p = Normal(mean, (log_var / 2).exp()), Normal(prior_mean, (prior_log_var / 2).exp())
    ours = kl_normal(mean, log_var, prior_mean, prior_log_var)
    torch.testing.assert_close(ours, kl_divergence(q, p))
    torch.testing.assert_close(kl_normal(mean, log_var), kl_divergence(q, Normal(0.0, 1.0)))
