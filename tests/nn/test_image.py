import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unbraid.nn._image import ResNetDecoder, ResNetEncoder


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("shape", "n_blocks"), [((3, 16, 16), 3), ((1, 28, 28), 3), ((2, 9, 6), 2), ((1, 5, 1), 3), ((3, 8, 8), 0)]
)
def test_flat_images_in_and_out(shape, n_blocks):
    n_pixels = shape[0] * shape[1] * shape[2]
    encoder = ResNetEncoder(shape, 7, n_blocks=n_blocks, n_filters=4)
    decoder = ResNetDecoder(7, shape, n_blocks=n_blocks, n_filters=4)
    for n in (0, 1, 5):
        codes = encoder(torch.rand(n, n_pixels))
        assert codes.shape == (n, 7)
        assert decoder(codes).shape == (n, n_pixels)
    decoder(encoder(torch.rand(3, n_pixels))).square().sum().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad.abs().sum() > 0, name


def test_filters_double_up_to_the_largest():
    encoder = ResNetEncoder((3, 64, 64), 5, n_blocks=5, n_filters=4, max_filters=32)
    widths = [m.out_channels for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert widths == [8, 16, 32]  # shortcuts, where the number of filters changes
    assert encoder.last.in_features == 32 * 2 * 2
    decoder = ResNetDecoder(5, (3, 64, 64), n_blocks=5, n_filters=4, max_filters=32)
    assert decoder.first.out_features == 32 * 2 * 2
    assert decoder.last.in_channels == 4


def test_sizes_of_the_papers():
    with torch.device("meta"):  # nothing is allocated
        assert ResNetEncoder((3, 64, 64), 160).last.in_features == 512 * 8 * 8
        assert ResNetEncoder((3, 28, 28), 64, n_blocks=2, max_filters=1024).last.in_features == 256 * 7 * 7
        assert ResNetDecoder(64, (3, 64, 64), n_blocks=5, max_filters=1024).start == (1024, 2, 2)


def test_encoder_is_the_formula():
    encoder = ResNetEncoder((2, 6, 6), 3, n_blocks=1, n_filters=4)
    weights = dict(encoder.named_parameters())
    conv = lambda x, name, padding=1: F.conv2d(
        x, weights[f"{name}.weight"], weights.get(f"{name}.bias"), padding=padding
    )

    def block(x, i):
        inner = conv(F.leaky_relu(x, 0.2), f"blocks.{i}.first")
        shortcut = conv(x, f"blocks.{i}.shortcut", 0) if f"blocks.{i}.shortcut.weight" in weights else x
        return shortcut + 0.1 * conv(F.leaky_relu(inner, 0.2), f"blocks.{i}.second")

    x = torch.rand(3, 72)
    hidden = block(conv(x.view(3, 2, 6, 6), "first"), 0)
    hidden = block(F.avg_pool2d(hidden, 3, stride=2, padding=1), 2)
    expected = hidden.reshape(3, -1) @ weights["last.weight"].T + weights["last.bias"]
    torch.testing.assert_close(encoder(x), expected)


def test_rows_do_not_see_each_other():
    encoder, decoder = ResNetEncoder((1, 8, 8), 4, n_filters=4), ResNetDecoder(4, (1, 8, 8), n_filters=4)
    x = torch.rand(6, 64)
    together = decoder(encoder(x))
    torch.testing.assert_close(torch.cat([decoder(encoder(row[None])) for row in x]), together)


def test_bad_shapes():
    for build in (lambda *a, **k: ResNetEncoder(*a, 3, **k), lambda *a, **k: ResNetDecoder(3, *a, **k)):
        with pytest.raises(ValueError, match=r"`shape` must be \(channels, height, width\), got \(8, 8\)"):
            build((8, 8))
        with pytest.raises(ValueError, match="cannot be halved 4 times: lower `n_blocks`"):
            build((1, 8, 4), n_blocks=4)
        build((1, 8, 4), n_blocks=3, n_filters=2)


def test_an_autoencoder_learns_where_things_are():
    x = torch.zeros(32, 1, 8, 8)
    corner = torch.arange(32) % 4
    for i, c in enumerate(corner):
        x[i, 0, 4 * (c // 2) : 4 * (c // 2) + 4, 4 * (c % 2) : 4 * (c % 2) + 4] = torch.rand(()) * 0.2 + 0.8
    x = x.flatten(1)
    network = nn.Sequential(
        ResNetEncoder((1, 8, 8), 3, n_blocks=2, n_filters=8), ResNetDecoder(3, (1, 8, 8), n_blocks=2, n_filters=8)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(60):
        loss = (network(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15 * x.var()
