import pytest
import torch
from torch import nn

from unbraid.nn._conditional_gaussian import ConditionalGaussian
from unbraid.nn._critic import PairCritic


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# --- PairCritic -------------------------------------------------------------------------------------


def naive(critic, a, b):
    return torch.stack([torch.stack([critic.network(torch.cat([x, y])).squeeze() for y in b]) for x in a])


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("max_pairs", [1, 13, 10**6])
def test_scores_are_those_of_all_pairs(n_layers, max_pairs):
    critic = PairCritic(3, 2, n_hidden=7, n_layers=n_layers, max_pairs=max_pairs).double()
    a, b = torch.randn(6, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    expected = naive(critic, a, b)
    torch.testing.assert_close(critic.scores(a, b), expected)
    with torch.no_grad():
        torch.testing.assert_close(critic.scores(a, b), expected)
    torch.testing.assert_close(critic(a[:5], b), expected[:5].diagonal())


def test_chunks_change_no_gradient():
    a = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(8, 2, dtype=torch.float64, requires_grad=True)
    critic = PairCritic(3, 2, n_hidden=9).double()
    inputs = [a, b, *critic.parameters()]
    gradients = []
    for max_pairs in (20, 10**6):
        critic.max_pairs = max_pairs
        gradients.append(torch.autograd.grad(critic.scores(a, b).logsumexp(dim=0).sum(), inputs))
    reference = torch.autograd.grad(naive(critic, a, b).logsumexp(dim=0).sum(), inputs)
    torch.testing.assert_close(gradients[0], reference)
    torch.testing.assert_close(gradients[1], reference)


def test_critic_learns_on_detached_codes():
    critic = PairCritic(3, 2, n_hidden=9, max_pairs=4)
    critic.scores(torch.randn(5, 3), torch.randn(5, 2)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters())


def kept_for_backward(critic, a, b):
    """Bytes that the graph of ``scores`` keeps, every storage once."""
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor  # held by the graph, so no address is used twice

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        scores = critic.scores(a, b)
    scores.sum().backward()
    return sum(storages.values())


def test_memory_grows_with_the_batch_and_not_with_its_square():
    critic = PairCritic(8, 8, n_hidden=64, max_pairs=2**10)
    kept = {n: kept_for_backward(critic, torch.randn(n, 8), torch.randn(n, 8)) for n in (64, 128, 256)}
    critic.max_pairs = 2**30
    whole = kept_for_backward(critic, torch.randn(256, 8), torch.randn(256, 8))
    assert whole > 2 * 4 * 64 * 256**2  # two hidden layers of all pairs
    assert kept[256] < whole / 50
    assert kept[256] < 3 * kept[128] < 9 * kept[64]


def test_no_rows():
    critic = PairCritic(3, 2, n_hidden=4, max_pairs=1)
    for n, m in ((0, 4), (4, 0), (0, 0)):
        scores = critic.scores(torch.zeros(n, 3), torch.zeros(m, 2))
        assert scores.shape == (n, m)
        scores.sum().backward()
    assert critic(torch.zeros(0, 3), torch.zeros(0, 2)).shape == (0,)


def test_critic_learns_which_rows_belong_together():
    critic = PairCritic(2, 2, n_hidden=64, max_pairs=2**10)
    a = torch.randn(64, 2)
    b = a + 0.1 * torch.randn(64, 2)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for _ in range(150):
        loss = nn.functional.cross_entropy(critic.scores(a, b), torch.arange(64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * torch.tensor(64.0).log()


def test_critic_errors():
    critic = PairCritic(3, 2)
    with pytest.raises(ValueError, match=r"`a` must have shape \(n, 3\), got \(4, 2\)"):
        critic.scores(torch.zeros(4, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"`b` must have shape \(n, 2\), got \(4,\)"):
        critic(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match="paired rows, got 4 and 5"):
        critic(torch.zeros(4, 3), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="`max_pairs` must be a whole number of at least 1"):
        PairCritic(3, 2, max_pairs=0)


# --- ConditionalGaussian ----------------------------------------------------------------------------


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize(("log_variance", "limit"), [("tanh", 1.0), ("free", 10.0)])
def test_log_variance_is_bounded(log_variance, limit, shared_trunk):
    network = ConditionalGaussian(3, 4, n_hidden=8, log_variance=log_variance, shared_trunk=shared_trunk)
    mean, bounded = network(torch.randn(6, 3) * 1e4)
    assert mean.shape == bounded.shape == (6, 4)
    assert (bounded.abs() <= limit).all()
    assert (bounded.abs() > 0.9 * limit).any()
    assert mean.abs().max() > 10  # the mean is not
    assert [part.shape for part in network(torch.zeros(0, 3))] == [(0, 4), (0, 4)]


def test_mean_and_variance_share_nothing_unless_asked():
    c = torch.randn(5, 3)
    for shared_trunk in (False, True):
        network = ConditionalGaussian(3, 4, n_hidden=8, shared_trunk=shared_trunk)
        network(c)[0].sum().backward()
        used = sum(bool(p.grad.any()) for p in network.parameters())
        assert used == 10  # five layers of weights and biases, of one network
        assert len(network.networks) == 2 - shared_trunk


def test_free_variance_is_found():
    # z | c has mean 2 c and standard deviation exp(c): log-variances from -4 to 4
    c = torch.rand(2000, 1) * 4 - 2
    z = 2 * c + torch.exp(c) * torch.randn(2000, 1)
    network = ConditionalGaussian(1, 1, n_hidden=32, n_layers=2, log_variance="free")
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(400):
        mean, log_variance = network(c)
        loss = ((z - mean).square() * torch.exp(-log_variance) + log_variance).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    at = torch.tensor([[-1.5], [0.0], [1.5]])
    mean, log_variance = network(at)
    torch.testing.assert_close(log_variance, 2 * at, atol=0.4, rtol=0)
    assert mean[0].item() == pytest.approx(-3.0, abs=0.2)
    assert mean[1].item() == pytest.approx(0.0, abs=0.4)


def test_unknown_bound():
    with pytest.raises(ValueError, match="log_variance must be one of 'tanh', 'free', not 'exp'"):
        ConditionalGaussian(2, 2, log_variance="exp")
