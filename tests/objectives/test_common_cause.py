import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import multivariate_normal

from unbraid.objectives import different_components, same_component

law = settings(deadline=None, max_examples=40, derandomize=True)

# a mixture of three normals in the plane, and five pairs of points; numbers computed without this package
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-2.607, -2.005], [-2.042, -0.527], [-3.469, -0.283]])
LOG_VARIANCES = np.array([[-0.383, 0.357], [0.383, 0.557], [0.307, -0.021]])
FIRST = np.array([[1.29, 2.258], [-0.98, 0.916], [-0.064, 2.16], [-1.255, -0.452], [0.544, 0.387]])
SECOND = np.array([[-2.459, 0.54], [-0.178, -0.36], [-0.233, 0.328], [-2.725, 2.329], [-1.292, -3.362]])
P_SAME = [0.4834118393429308, 0.7803327383901174, 0.9042223282412707, 0.5161929973403797, 0.1689619570570626]
LOG_DIFFERENT = [
    -0.6605093163974367,
    -1.5156413247604394,
    -2.3457256925826964,
    -0.7260692066248511,
    -0.18507970545982194,
]


def log_probabilities(z: np.ndarray) -> torch.Tensor:
    components = [multivariate_normal(m, np.diag(np.exp(v))) for m, v in zip(MEANS, LOG_VARIANCES, strict=True)]
    joint = WEIGHTS * np.stack([each.pdf(z) for each in components], axis=1)
    return torch.as_tensor(joint / joint.sum(1, keepdims=True)).log()


def test_numbers_computed_elsewhere():
    p, q = log_probabilities(FIRST), log_probabilities(SECOND)
    np.testing.assert_allclose(same_component(p, q).exp(), P_SAME, rtol=1e-9)
    np.testing.assert_allclose(different_components(p, q), LOG_DIFFERENT, rtol=1e-9)


def test_equation_43_of_the_paper():
    """sum_c pi_c^2 p(z|c) p(z'|c) / p(z) p(z'), with both factors pi."""
    density = lambda z: np.stack(
        [multivariate_normal(m, np.diag(np.exp(v))).pdf(z) for m, v in zip(MEANS, LOG_VARIANCES, strict=True)], axis=1
    )
    a, b = density(FIRST), density(SECOND)
    expected = (WEIGHTS**2 * a * b).sum(1) / ((WEIGHTS * a).sum(1) * (WEIGHTS * b).sum(1))
    np.testing.assert_allclose(
        same_component(log_probabilities(FIRST), log_probabilities(SECOND)).exp(), expected, rtol=1e-9
    )


logits = hnp.arrays(np.float64, (4, 5), elements=st.floats(-30, 30))


@law
@given(logits, logits)
def test_symmetric_and_complementary(a, b):
    p, q = (torch.as_tensor(x).log_softmax(1) for x in (a, b))
    same, different = same_component(p, q), different_components(p, q)
    torch.testing.assert_close(same, same_component(q, p))
    torch.testing.assert_close(different, different_components(q, p))
    torch.testing.assert_close(same.exp() + different.exp(), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_with_a_gradient_where_two_codes_are_surely_of_one_component(dtype):
    raw = torch.tensor([[200.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    other = torch.tensor([[300.0, 10.0, 0.0]], dtype=dtype)
    value = different_components(raw.log_softmax(1), other.log_softmax(1))
    # log(1 - P) = log(p_2 + p_3 + q_2 + ...) up to products of small numbers: the largest is p_2 = p_3 = e^-200
    assert value.item() == pytest.approx(-200 + np.log(2), rel=1e-6)
    value.sum().backward()
    assert torch.isfinite(raw.grad).all()
    assert raw.grad[0, 0] == pytest.approx(-1, abs=1e-4)  # the reward falls one nat per nat of certainty


def test_one_component_cannot_differ():
    with pytest.raises(ValueError, match="one component"):
        different_components(torch.zeros(2, 1), torch.zeros(2, 1))
