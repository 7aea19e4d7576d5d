import numpy as np
import pytest
import torch

from unbraid.nn import LikelihoodDecoder, ModalitySpec, log_likelihood
from unbraid.nn._text import TextDecoder, TextEncoder


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(("length", "n_layers"), [(32, 3), (7, 2), (1, 3), (5, 1)])
def test_tokens_in_logits_out(length, n_layers):
    encoder = TextEncoder(length, 11, 6, n_embedding=4, n_layers=n_layers)
    decoder = TextDecoder(6, length, 11, n_embedding=4, n_layers=n_layers)
    for n in (0, 1, 5):
        codes = encoder(torch.randint(11, (n, length)).float())
        assert codes.shape == (n, 6)
        assert decoder(codes).shape == (n, length * 11)
    decoder(encoder(torch.randint(11, (20, length)).float())).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad.abs().sum() > 0, name


def test_certain_words_are_their_tokens():
    encoder, tokens = TextEncoder(9, 7, 4, n_embedding=8), torch.randint(7, (5, 9))
    certain = torch.nn.functional.one_hot(tokens, 7).float().requires_grad_()
    codes = encoder(certain)
    torch.testing.assert_close(codes, encoder(tokens.float()))
    codes.sum().backward()
    assert certain.grad.abs().sum() > 0  # what a decoder says can be encoded again


def test_order_matters_and_rows_do_not_see_each_other():
    encoder, tokens = TextEncoder(8, 7, 4, n_embedding=8), torch.randint(7, (5, 8)).float()
    codes = encoder(tokens)
    assert not torch.allclose(encoder(tokens.flip(1)), codes)
    torch.testing.assert_close(torch.cat([encoder(row[None]) for row in tokens]), codes)


def test_an_autoencoder_learns_its_texts():
    tokens = torch.tensor([[2, 3, 4, 0, 0], [3, 3, 2, 5, 6], [6, 2, 0, 0, 0], [4, 5, 6, 2, 3]]).float().repeat(8, 1)
    spec = ModalitySpec("caption", 5, "categorical", "identity", np.zeros(5), np.ones(5), shape=(5,), n_categories=7)
    encoder = TextEncoder(5, 7, 3, n_embedding=8, n_layers=2)
    decoder = LikelihoodDecoder(spec, 3, network=TextDecoder(3, 5, 7, n_embedding=8, n_layers=2))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(150):
        distribution = decoder(encoder(tokens))
        loss = -log_likelihood(distribution, tokens).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5  # uniform: 5 log 7 = 9.7
    assert torch.equal(distribution.probs.argmax(dim=-1).float(), tokens)
