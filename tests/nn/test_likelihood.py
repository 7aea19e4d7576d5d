import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from sklearn.metrics import log_loss, mean_poisson_deviance
from torch import nn

from unbraid.nn import ModalitySpec
from unbraid.nn._likelihood import LikelihoodDecoder, log_likelihood, null_deviance

law = settings(deadline=None, max_examples=25, derandomize=True)
COUNTS = ["poisson", "nb", "zinb", "nb_mixture"]
LIKELIHOODS = ["normal", "laplace", "bernoulli", *COUNTS]
MEAN, SD = np.array([0.5, 2.0, 7.0, 0.25]), np.array([1.0, 3.0, 4.0, 0.5])


def spec_of(likelihood, mean=MEAN, sd=SD):
    if likelihood == "bernoulli" and mean is MEAN:
        mean = np.array([0.1, 0.5, 0.9, 0.25])
        sd = np.sqrt(mean * (1 - mean))
    mean, sd = (np.asarray(a, dtype=np.float32) for a in (mean, sd))
    return ModalitySpec("mod", len(mean), likelihood, "identity", mean=mean, standard_deviation=sd)


def values(likelihood, n, seed=0):
    rng = np.random.default_rng(seed)
    if likelihood in COUNTS:
        x = rng.poisson(rng.gamma(1, 1, (n, 1)) * MEAN)
    elif likelihood == "bernoulli":
        x = rng.random((n, 4)) < 0.4
    else:
        x = rng.normal(MEAN, SD, (n, 4))
    return torch.as_tensor(x, dtype=torch.float32)


def size_of(likelihood, n):
    return torch.linspace(5, 30, n) if likelihood in ("poisson", "nb", "zinb") else None


def random_decoder(likelihood, **options):
    """A decoder whose outputs differ between cells."""
    decoder = LikelihoodDecoder(spec_of(likelihood), 3, n_hidden=8, **options)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    return decoder


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# --- the density --------------------------------------------------------------------------------------


def scipy_log_prob(likelihood, d, x):
    def nb(mean, dispersion):
        return stats.nbinom(dispersion, dispersion / (dispersion + mean))

    numpy = lambda t: t.detach().double().numpy()
    if likelihood == "normal":
        return stats.norm(numpy(d.loc), numpy(d.scale)).logpdf(x)
    if likelihood == "laplace":
        return stats.laplace(numpy(d.loc), numpy(d.scale)).logpdf(x)
    if likelihood == "bernoulli":
        return stats.bernoulli(numpy(d.probs)).logpmf(x)
    if likelihood == "poisson":
        return stats.poisson(numpy(d.rate)).logpmf(x)
    if likelihood == "nb":
        return nb(numpy(d.mu), numpy(d.theta)).logpmf(x)
    if likelihood == "zinb":
        inflated = numpy(d.zi_probs)
        return np.log(inflated * (x == 0) + (1 - inflated) * nb(numpy(d.mu), numpy(d.theta)).pmf(x))
    background = numpy(d.mixture_probs)
    first, second = (nb(numpy(mean), numpy(d.theta1)).pmf(x) for mean in (d.mu1, d.mu2))
    return np.log(background * first + (1 - background) * second)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_log_likelihood_is_scipys(likelihood):
    distribution = random_decoder(likelihood)(torch.randn(6, 3), size_factor=size_of(likelihood, 6))
    x = values(likelihood, 6)
    result = log_likelihood(distribution, x)
    assert result.shape == (6,)
    expected = scipy_log_prob(likelihood, distribution, x.numpy()).sum(axis=1)
    np.testing.assert_allclose(result.detach(), expected, rtol=2e-4)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_first_mean_is_the_mean_profile(likelihood):
    spec = spec_of(likelihood)
    mean = LikelihoodDecoder(spec, 3)(torch.randn(5, 3), size_factor=size_of(likelihood, 5)).mean
    expected = torch.as_tensor(spec.mean).expand(5, -1)
    if (size := size_of(likelihood, 5)) is not None:
        expected = size[:, None] * expected / spec.mean.sum()
    if likelihood == "zinb":
        expected = expected * torch.sigmoid(torch.tensor(3.0))  # what the inflation leaves
    torch.testing.assert_close(mean, expected)


def test_first_scales_are_the_data():
    z, size = torch.randn(2, 3), torch.full((2,), 9.75)
    for likelihood in ("normal", "laplace"):
        scale = LikelihoodDecoder(spec_of(likelihood), 3)(z).stddev
        torch.testing.assert_close(scale, torch.as_tensor(SD, dtype=torch.float32).expand(2, -1))
    # variance = mean + mean^2 / dispersion; the last feature has variance = mean and is as good as Poisson
    dispersion = LikelihoodDecoder(spec_of("nb"), 3)(z, size_factor=size).theta[0]
    torch.testing.assert_close(dispersion[:3], torch.tensor([0.25 / 0.5, 4 / 7, 49 / 9]), rtol=1e-4, atol=0)
    assert dispersion[3] > 500


def test_totals_are_the_size_factors():
    size = torch.tensor([1.0, 100.0, 12345.0])
    for likelihood in ("poisson", "nb"):
        mean = random_decoder(likelihood)(torch.randn(3, 3), size_factor=size).mean
        torch.testing.assert_close(mean.sum(dim=1), size, rtol=1e-5, atol=0)


def test_mixture_has_background_below_foreground_and_follows_a_given_size_factor():
    decoder, z = random_decoder("nb_mixture"), torch.randn(20, 3)
    plain = decoder(z)
    assert (plain.mu1 < plain.mu2).all()
    torch.testing.assert_close(plain.mu1, plain.mu1[:1].expand(20, -1))  # of the feature, not of the cell
    doubled = decoder(z, size_factor=torch.full((20,), 2 * float(MEAN.sum())))
    torch.testing.assert_close(doubled.mean, 2 * plain.mean)


def test_normal_mean_has_the_units_of_the_data():
    decoder = random_decoder("normal")
    z = torch.randn(4, 3)
    expected = torch.as_tensor(MEAN) + torch.as_tensor(SD) * decoder.network(z)
    torch.testing.assert_close(decoder(z).mean, expected.float())


# --- robustness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("extreme", ["zero", "huge"])
def test_gradients_stay_finite(likelihood, extreme):
    decoder = random_decoder(likelihood)
    z = (torch.randn(5, 3) * 100).requires_grad_()  # saturates softmax, sigmoid and tanh
    if extreme == "huge" and likelihood != "bernoulli":
        x, size = torch.full((5, 4), 1e6), torch.full((5,), 4e6)
    else:
        x, size = torch.zeros(5, 4), torch.zeros(5)
    loss = -log_likelihood(decoder(z, size_factor=None if size_of(likelihood, 1) is None else size), x)
    assert loss.isfinite().all()
    loss.sum().backward()
    assert z.grad.isfinite().all()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_learned_parameters_stay_in_range_and_come_back():
    for likelihood, key in (("nb", "theta"), ("normal", "scale")):
        decoder = LikelihoodDecoder(spec_of(likelihood), 3)
        bounded = decoder.log_inverse_dispersion if likelihood == "nb" else decoder.log_scale
        for raw in (-1e4, 1e4):
            nn.init.constant_(bounded.raw, raw)
            value = getattr(decoder(torch.zeros(1, 3), size_factor=size_of(likelihood, 1)), key)
            start = torch.as_tensor(SD) if likelihood == "normal" else 1.0
            assert (value <= 1001 * start).all()
            assert (value >= start / 1001).all()
    # the end of the range, reached by the starting value of a feature without overdispersion, has a gradient
    decoder = LikelihoodDecoder(spec_of("nb"), 3)
    log_likelihood(decoder(torch.zeros(1, 3), size_factor=torch.ones(1)), torch.tensor([[0.0, 0, 0, 50]])).backward()
    assert decoder.log_inverse_dispersion.raw.grad[3] < 0  # wants to be more dispersed


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_constant_features(likelihood):
    level = 1.0 if likelihood == "bernoulli" else 3.0
    spec = spec_of(likelihood, mean=[level, 0.0, 0.5], sd=[0.0, 0.0, 0.5])
    decoder = LikelihoodDecoder(spec, 2, n_hidden=4)
    x = torch.tensor([[level, 0.0, 1.0], [level, 0.0, 0.0]])
    loss = -log_likelihood(decoder(torch.randn(2, 2), size_factor=size_of(likelihood, 2)), x).sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in decoder.parameters())
    # a feature that does not vary says nothing, whatever its value
    other = x.clone()
    other[:, :2] = 0.7
    assert torch.equal(null_deviance(spec, x), null_deviance(spec, other))


def test_a_constant_feature_cannot_earn_an_infinite_likelihood():
    decoder = LikelihoodDecoder(spec_of("normal", mean=[3.0, 0.0], sd=[0.0, 1.0]), 2, n_hidden=4)
    nn.init.constant_(decoder.log_scale.raw, -1e4)
    nn.init.normal_(decoder.network.layers[-1].weight)
    distribution = decoder(torch.randn(3, 2))
    assert (distribution.scale[..., 0] == 1).all()
    assert (distribution.mean[:, 0] == 3).all()


def test_no_cells():
    for likelihood in LIKELIHOODS:
        decoder = LikelihoodDecoder(spec_of(likelihood), 3)
        size = None if size_of(likelihood, 1) is None else torch.ones(0)
        assert log_likelihood(decoder(torch.zeros(0, 3), size_factor=size), torch.zeros(0, 4)).shape == (0,)
        assert null_deviance(spec_of(likelihood), torch.zeros(0, 4)).shape == (0,)


def test_covariates_and_own_network():
    decoder, z = random_decoder("poisson", n_covariates=2), torch.randn(4, 3)
    first, second = (decoder(z, torch.eye(2)[[i] * 4], torch.ones(4)).mean for i in (0, 1))
    assert not torch.allclose(first, second)
    with pytest.raises(ValueError, match=r"'mod' was made for 2 columns of `covariates`, got 0"):
        decoder(z, size_factor=torch.ones(4))
    with pytest.raises(ValueError, match="made for 0 columns of `covariates`, got 2"):
        random_decoder("poisson")(z, torch.ones(4, 2), torch.ones(4))

    network = nn.Linear(3, 8)
    weight = network.weight.clone()
    decoder = LikelihoodDecoder(spec_of("zinb"), 3, network=network)
    assert torch.equal(decoder.network.weight, weight)
    distribution = decoder(z, size_factor=torch.ones(4))
    profile = torch.log(torch.as_tensor(MEAN / MEAN.sum())) + network(z)[:, :4]
    torch.testing.assert_close(distribution.mu, torch.softmax(profile, dim=1).float())
    torch.testing.assert_close(distribution.zi_logits, network(z)[:, 4:] - 3)
    with pytest.raises(ValueError, match=r"`network` of modality 'mod' must give shape \(4, 8\).*got \(4, 4\)"):
        LikelihoodDecoder(spec_of("zinb"), 3, network=nn.Linear(3, 4))(z, size_factor=torch.ones(4))


def test_errors():
    z = torch.zeros(4, 3)
    for likelihood in ("poisson", "nb", "zinb"):
        with pytest.raises(ValueError, match=f"'mod': the likelihood '{likelihood}' needs `size_factor`"):
            LikelihoodDecoder(spec_of(likelihood), 3)(z)
    with pytest.raises(ValueError, match=r"`size_factor` must have shape \(4,\).*got \(4, 1\)"):
        LikelihoodDecoder(spec_of("nb"), 3)(z, size_factor=torch.ones(4, 1))
    with pytest.raises(
        NotImplementedError, match="'mod': the likelihood 'categorical' has no decoder where the number"
    ):
        LikelihoodDecoder(spec_of("categorical"), 3)
    for spec in (spec_of("categorical"), categories_of(3)):
        with pytest.raises(NotImplementedError, match="'mod': the likelihood 'categorical' has no null deviance"):
            null_deviance(spec, torch.zeros(1, 4))
    for use in (lambda spec: LikelihoodDecoder(spec, 3), lambda spec: null_deviance(spec, torch.zeros(1, 4))):
        with pytest.raises(ValueError, match="'mod': unknown likelihood 'gamma'; there is: normal"):
            use(spec_of("gamma"))
    with pytest.raises(ValueError, match="`size_factor` is for counts, not for 'normal'"):
        null_deviance(spec_of("normal"), torch.zeros(1, 4), torch.ones(1))


# --- categories ---------------------------------------------------------------------------------------


def categories_of(n_categories):
    return replace(spec_of("categorical"), n_categories=n_categories)


def test_categories_begin_alike_and_have_logits_side_by_side():
    z, x = torch.randn(6, 3), torch.randint(5, (6, 4)).float()
    uniform = log_likelihood(LikelihoodDecoder(categories_of(5), 3)(z), x)
    torch.testing.assert_close(uniform, torch.full((6,), -4 * math.log(5)))
    network = nn.Linear(3, 20)
    distribution = LikelihoodDecoder(categories_of(5), 3, network=network)(z)
    assert distribution.batch_shape == (6, 4)
    logits = network(z).detach().double().numpy()
    expected = [
        sum(np.log(softmax(row[5 * f : 5 * f + 5])[int(value)]) for f, value in enumerate(values))
        for row, values in zip(logits, x, strict=True)
    ]
    np.testing.assert_allclose(log_likelihood(distribution, x).detach(), expected, rtol=1e-5)
    assert log_likelihood(LikelihoodDecoder(categories_of(5), 3)(torch.zeros(0, 3)), torch.zeros(0, 4)).shape == (0,)
    with pytest.raises(ValueError, match=r"must give shape \(6, 20\) under the likelihood 'categorical'"):
        LikelihoodDecoder(categories_of(5), 3, network=nn.Linear(3, 4))(z)


def test_a_vocabulary_changes_no_other_likelihood():
    spec = replace(spec_of("nb"), n_categories=5)
    assert LikelihoodDecoder(spec, 3)(torch.randn(2, 3), size_factor=torch.ones(2)).mean.shape == (2, 4)


# --- a fixed scale ------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["normal", "laplace"])
def test_a_fixed_scale_is_in_the_units_of_the_data_and_not_learned(likelihood):
    decoder = LikelihoodDecoder(spec_of(likelihood), 3, scale=0.75)
    z, x = torch.randn(6, 3), values(likelihood, 6)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.5)
    distribution = decoder(z)
    family = {"normal": stats.norm, "laplace": stats.laplace}[likelihood]
    expected = family(distribution.mean.detach(), 0.75).logpdf(x).sum(axis=1)
    np.testing.assert_allclose(log_likelihood(distribution, x).detach(), expected, rtol=1e-4)
    torch.testing.assert_close(
        distribution.mean, torch.as_tensor(MEAN + SD * decoder.network(z).detach().numpy()).float()
    )
    assert all(name.startswith("network.") for name, _ in decoder.named_parameters())


def test_a_fixed_scale_must_make_sense():
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="'mod': `scale` must be a positive number"):
            LikelihoodDecoder(spec_of("normal"), 3, scale=scale)
    for spec in (spec_of("bernoulli"), spec_of("nb"), categories_of(3)):
        with pytest.raises(ValueError, match="`scale` is for 'normal' and 'laplace'"):
            LikelihoodDecoder(spec, 3, scale=1.0)


# --- null deviance ------------------------------------------------------------------------------------


def test_poisson_deviance_is_sklearns():
    x = values("poisson", 12)
    ours = null_deviance(spec_of("poisson"), x)
    theirs = [4 * mean_poisson_deviance(row, MEAN) for row in x.numpy()]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    size = torch.linspace(1, 40, 12)
    theirs = [4 * mean_poisson_deviance(row, s * MEAN / MEAN.sum()) for row, s in zip(x.numpy(), size, strict=True)]
    np.testing.assert_allclose(null_deviance(spec_of("poisson"), x, size), theirs, rtol=1e-4)


def test_bernoulli_deviance_is_twice_the_cross_entropy():
    spec, x = spec_of("bernoulli"), values("bernoulli", 9)
    theirs = [2 * sum(log_loss([v], [p], labels=[0, 1]) for v, p in zip(row, spec.mean, strict=True)) for row in x]
    np.testing.assert_allclose(null_deviance(spec, x), theirs, rtol=1e-4)
    # values in between: nothing is lost where the value is the mean
    torch.testing.assert_close(null_deviance(spec, torch.as_tensor(spec.mean)[None]), torch.zeros(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "nb_mixture"])
@pytest.mark.parametrize("with_size", [False, True])
def test_nb_deviance_is_saturated_minus_null(likelihood, with_size):
    x = values("nb", 10)
    size = torch.linspace(2, 40, 10) if with_size else None
    mean = np.outer(size / MEAN.sum(), MEAN) if with_size else np.broadcast_to(MEAN, (10, 4))
    expected = np.zeros(10)
    for f in range(3):
        theta = MEAN[f] ** 2 / (SD[f] ** 2 - MEAN[f])
        log_pmf = lambda mu, theta=theta, f=f: stats.nbinom(theta, theta / (theta + mu)).logpmf(x[:, f])
        expected += 2 * (log_pmf(x[:, f].double().numpy()) - log_pmf(mean[:, f]))
    poisson = lambda mu: stats.poisson(mu).logpmf(x[:, 3])  # variance equals the mean: no overdispersion
    expected += 2 * (poisson(x[:, 3].double().numpy()) - poisson(mean[:, 3]))
    np.testing.assert_allclose(null_deviance(spec_of(likelihood), x, size), expected, rtol=1e-4)


def test_normal_and_laplace_deviance():
    x = torch.tensor([[0.5, 2.0, 7.0, 0.25], [1.5, -1.0, 15.0, 0.25]])
    torch.testing.assert_close(null_deviance(spec_of("normal"), x), torch.tensor([0.0, 1 + 1 + 4]))
    # twice the log-likelihood ratio of Laplace with the data's standard deviation
    scale = SD / math.sqrt(2)
    ratio = 2 * (stats.laplace(x[1], scale).logpdf(x[1]) - stats.laplace(MEAN, scale).logpdf(x[1])).sum()
    assert null_deviance(spec_of("laplace"), x).tolist() == pytest.approx([0.0, ratio], rel=1e-5)


@law
@given(st.lists(st.integers(0, 10**6), min_size=4, max_size=4), st.floats(0, 1e7), st.sampled_from(COUNTS))
def test_deviance_is_never_negative_and_zero_at_the_mean(x, size, likelihood):
    x = torch.tensor([x], dtype=torch.float32)
    spec = spec_of(likelihood)
    assert 0 <= null_deviance(spec, x, torch.tensor([size])).item() < math.inf
    at_mean = null_deviance(spec, torch.as_tensor(spec.mean)[None], torch.tensor([float(MEAN.sum())]))
    assert at_mean.item() == pytest.approx(0, abs=1e-5)


def test_deviance_near_poisson_keeps_its_digits():
    # an inverse dispersion of 1e6 must give what Poisson gives, in float32
    mean = np.array([100.0, 3.0])
    nearly = spec_of("nb", mean=mean, sd=np.sqrt(mean + mean**2 / 1e6))
    x = torch.tensor([[120.0, 0.0], [80.0, 9.0]])
    expected = [2 * mean_poisson_deviance(row, mean) for row in x.numpy()]
    np.testing.assert_allclose(null_deviance(nearly, x), expected, rtol=5e-3)


# --- learning -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_decoder_learns(likelihood):
    n = 300
    kind = torch.arange(n) % 2
    rng = np.random.default_rng(1)
    mean = np.array([[0.8, 0.1, 0.3, 0.5], [0.2, 0.9, 0.3, 0.1]])[kind.numpy()]
    if likelihood in COUNTS:
        x = rng.negative_binomial(4, 4 / (4 + 20 * mean))
    elif likelihood == "bernoulli":
        x = rng.random(mean.shape) < mean
    else:
        x = 50 + 10 * (mean + rng.normal(0, 0.1, mean.shape))
    x = torch.as_tensor(x, dtype=torch.float32)
    spec = spec_of(likelihood, mean=x.mean(dim=0).numpy(), sd=x.std(dim=0, correction=0).numpy())
    decoder = LikelihoodDecoder(spec, 2, n_hidden=16)
    z = nn.functional.one_hot(kind, 2).float()
    size = None if size_of(likelihood, 1) is None else x.sum(dim=1)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        loss = -log_likelihood(decoder(z, size_factor=size), x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.25  # the first one is that of the mean profile
    fitted = decoder(z, size_factor=size).mean.detach()
    for k in (0, 1):
        torch.testing.assert_close(fitted[kind == k].mean(dim=0), x[kind == k].mean(dim=0), rtol=0.15, atol=0.1)


@pytest.mark.parametrize(("likelihood", "key"), [("nb", "theta"), ("normal", "scale")])
def test_spread_within_groups_is_learned_in_a_few_hundred_steps(likelihood, key):
    # groups far apart: the data's own dispersion, where learning begins, is a multiple of that within a group
    rng, kind = np.random.default_rng(0), np.arange(2_000) % 2
    mean = np.array([[5.0, 60.0, 30.0], [60.0, 5.0, 30.0]])[kind]
    x = rng.negative_binomial(20, 20 / (20 + mean)) if likelihood == "nb" else rng.normal(mean, 2.0)
    truth = 20.0 if likelihood == "nb" else 2.0
    x = torch.as_tensor(x, dtype=torch.float32)
    spec = spec_of(likelihood, mean=x.mean(dim=0).numpy(), sd=x.std(dim=0, correction=0).numpy())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = LikelihoodDecoder(spec, 2, n_hidden=32)
    z, size = nn.functional.one_hot(torch.as_tensor(kind), 2).float(), torch.as_tensor(mean.sum(1)).float()
    at_start = getattr(decoder(z[:1], size_factor=size[:1]), key).flatten()
    assert ((at_start / truth).log().abs()[:2] > math.log(5)).all()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-3)
    for _ in range(600):
        rows = torch.as_tensor(rng.integers(0, len(x), 128))
        loss = -log_likelihood(decoder(z[rows], size_factor=size[rows]), x[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = getattr(decoder(z[:1], size_factor=size[:1]), key).flatten().detach()
    torch.testing.assert_close(found, torch.full_like(found, truth), rtol=0.25, atol=0)


@pytest.mark.parametrize("likelihood", ["normal", "laplace", "nb"])
def test_chosen_rows_alone_move_a_learned_scale(likelihood):
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.poisson(3.0, (6, 2)), dtype=torch.float32)
    spec = ModalitySpec(
        "m", 2, likelihood, "identity", mean=np.array([3.0, 2.5]), standard_deviation=np.array([2.0, 3])
    )
    decoder, z = LikelihoodDecoder(spec, 4, n_hidden=8), torch.as_tensor(rng.normal(size=(6, 4)), dtype=torch.float32)
    size, chosen = x.sum(1), torch.tensor([True, False, True, True, False, False])
    learned = (decoder.log_inverse_dispersion if likelihood == "nb" else decoder.log_scale).raw

    def gradients(rows, **options):
        value = log_likelihood(decoder(z[rows], None, size[rows], **options), x[rows])
        last = decoder.network.layers[-1].weight
        return value.sum().item(), *torch.autograd.grad(value.sum(), [learned, last])

    whole, part = gradients(slice(None)), gradients(chosen)
    value, of_scale, of_mean = gradients(slice(None), learns_scale=chosen)
    assert value == pytest.approx(whole[0])
    torch.testing.assert_close(of_scale, part[1])
    torch.testing.assert_close(of_mean, whole[2])
    assert (of_scale - whole[1]).abs().min() > 1e-4
