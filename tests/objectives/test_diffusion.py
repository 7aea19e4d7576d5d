import math

import numpy as np
import pytest
import torch
from scipy.special import expit

from unbraid.objectives import denoising_loss, diffusion_log_density, sigmoid_schedule

BETAS = np.array([0.01, 0.042222, 0.074444, 0.106667, 0.138889, 0.171111, 0.203333, 0.235556, 0.267778, 0.3])
X0 = torch.tensor(
    [[0.001, 0.299, -0.274], [-0.891, -0.455, -0.992], [0.06, 1.34, -0.492], [-0.62, 0.49, 0.357]], dtype=torch.float64
)
EPS = torch.tensor(
    [[0.105, -0.93, -0.029], [0.695, -1.344, -0.458], [-1.901, -1.29, -1.842], [-0.235, -1.267, 0.271]],
    dtype=torch.float64,
)
STEPS = torch.tensor([0, 3, 7, 9])
W = torch.tensor([[0.063, -0.075, -1.007], [-0.215, -0.019, 0.045], [-0.612, -0.191, -0.391]], dtype=torch.float64)
V = torch.tensor([-0.243, 0.318, -0.242], dtype=torch.float64)
C = torch.tensor([-0.003, 0.088, -0.058], dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# --- schedule ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"n_steps": 50}, {"start": -4.0, "end": 2.0, "tau": 0.7}])
def test_schedule(options):
    signal = sigmoid_schedule(**options).numpy()
    s, e, tau = (options.get(name, default) for name, default in {"start": -3.0, "end": 3.0, "tau": 1.0}.items())
    n_steps = options.get("n_steps", 1_000)
    t = np.arange(1, n_steps + 1) / n_steps
    expected = (expit(e / tau) - expit((s + (e - s) * t) / tau)) / (expit(e / tau) - expit(s / tau))
    assert signal.shape == (n_steps,)
    np.testing.assert_allclose(signal[:-1], expected[:-1], rtol=1e-4)
    assert (np.diff(signal) < 0).all()
    assert signal[0] > 1 - 3 / n_steps
    # the formula ends at 0; what is left keeps the signal-to-noise ratio positive
    np.testing.assert_allclose(signal[-1], 1e-3 * signal[-2], rtol=1e-4)


# --- denoising --------------------------------------------------------------------------------------


def test_known_error(monkeypatch):
    # a network of the noise, computed apart: the error of the noise is that of the data times the signal-to-noise ratio
    signal = torch.from_numpy(np.cumprod(1 - BETAS))
    monkeypatch.setattr(torch, "randint", lambda *args, **kwargs: STEPS)
    monkeypatch.setattr(torch, "randn_like", lambda x: EPS)

    def predict(noisy, step):
        a = signal[step].unsqueeze(1)
        eps = noisy @ W.T + V * (step.unsqueeze(1).double() / 10) + C
        return (noisy - (1 - a).sqrt() * eps) / a.sqrt()

    found = denoising_loss(predict, X0, signal, weight_range=(0.0, math.inf))
    assert found.item() == pytest.approx(8.670989630053825, rel=1e-10)


def test_loss_is_the_naive_loop():
    signal = sigmoid_schedule(20).double()
    predict = lambda noisy, step: torch.tanh(noisy @ W) + step.unsqueeze(1) / 20
    x = torch.randn(64, 3, dtype=torch.float64)
    torch.manual_seed(1)
    found = denoising_loss(predict, x, signal).item()
    torch.manual_seed(1)
    steps, noise = torch.randint(20, (64,)), torch.randn(64, 3, dtype=torch.float64)
    total = 0.0
    for row, t, eps in zip(x, steps, noise, strict=True):
        a = signal[t].item()
        guess = torch.tanh((math.sqrt(a) * row + math.sqrt(1 - a) * eps) @ W) + t / 20
        total += min(max(a / (1 - a), 1.0), 100.0) * ((row - guess) ** 2).sum().item() / 64
    assert found == pytest.approx(total, rel=1e-10)
    assert set(steps.tolist()) >= {0, 19}  # the first and the last step are among them


# --- density ----------------------------------------------------------------------------------------

SD = 0.7


def linear(signal, sd):
    """Share of the noisy row that a denoiser gives back at every step: the optimum for rows from N(0, sd^2)."""
    return signal.sqrt() * sd**2 / (signal * sd**2 + 1 - signal)


def linear_denoiser(signal, sd):
    share = linear(signal, sd)
    return lambda noisy, step: share[step].unsqueeze(1) * noisy


def bound_by_sum(x, sd, signal, max_snr=100.0):
    """The bound of a linear denoiser, all steps and noise summed out, in NumPy."""
    x, a = np.asarray(x, dtype=np.float64), np.asarray(signal, dtype=np.float64)
    snr, d = a / (1 - a), x.shape[1]
    first = np.flatnonzero(snr <= max_snr)[0]
    total = -d / 2 * np.log(2 * np.pi * np.e / snr[first])
    last_mean, last_variance = np.sqrt(a[-1]) * x, 1 - a[-1]
    total = total - 0.5 * (last_mean**2 + last_variance - 1 - np.log(last_variance)).sum(1)
    share = np.sqrt(a) * sd**2 / (a * sd**2 + 1 - a)
    for t in range(first + 1, len(a)):
        error = ((1 - share[t] * np.sqrt(a[t])) ** 2 * x**2 + share[t] ** 2 * (1 - a[t])).sum(1)
        total = total - 0.5 * (snr[t - 1] - snr[t]) * error
    return total


@pytest.mark.parametrize("max_snr", [100.0, 10.0])
def test_density_is_unbiased_over_steps_and_noise(max_snr):
    signal, n = sigmoid_schedule(200), 20_000
    rows = torch.tensor([[0.3, -0.9, 1.4], [0.0, 0.1, 0.0]])
    expected = bound_by_sum(rows, 0.5, signal, max_snr)
    for row, value in zip(rows, expected, strict=True):
        found = diffusion_log_density(linear_denoiser(signal, 0.5), row.expand(n, 3), signal, max_snr=max_snr)
        assert abs(found.mean().item() - value) < 4 * found.std().item() / math.sqrt(n)


def test_density_of_the_optimal_denoiser_is_a_tight_lower_bound():
    signal, x = sigmoid_schedule(), SD * torch.randn(20_000, 3)
    exact = torch.distributions.Normal(0.0, SD).log_prob(x).sum(1)
    gap = exact - diffusion_log_density(linear_denoiser(signal, SD), x, signal)
    error = gap.std().item() / math.sqrt(len(x))
    assert gap.mean().item() == pytest.approx((exact.numpy() - bound_by_sum(x, SD, signal)).mean(), abs=4 * error)
    # below the truth, by less than three hundredths of a nat per dimension
    assert 0 < (exact.numpy() - bound_by_sum(x, SD, signal)).mean() < 0.03 * 3
    # a denoiser of other data loses
    worse = exact - diffusion_log_density(linear_denoiser(signal, 2.0), x, signal)
    assert worse.mean().item() > gap.mean().item() + 0.1


def test_density_keeps_the_order_of_rows():
    signal = sigmoid_schedule()
    x = torch.tensor([[0.0, 0.0], [3.0, -3.0]]).repeat(2_000, 1)
    found = diffusion_log_density(linear_denoiser(signal, 1.0), x, signal)
    assert found.shape == (4_000,)
    assert found[::2].mean() - found[1::2].mean() == pytest.approx(9.0, abs=0.5)  # (3^2 + 3^2) / 2


def test_density_sends_gradient_to_rows_and_network():
    signal = sigmoid_schedule(50)
    x = torch.randn(256, 2, requires_grad=True)
    factor = torch.tensor(0.1, requires_grad=True)
    diffusion_log_density(lambda noisy, step: factor * noisy, x, signal).sum().backward()
    assert factor.grad > 0  # a network that gives back more of the rows is better
    assert (x.grad * x.detach()).sum() < 0  # and rows closer to 0 are more probable
