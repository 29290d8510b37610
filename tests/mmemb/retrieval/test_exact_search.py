"""Search in fp32 with a second look in fp64 gives what fp64 throughout gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from mmemb.retrieval.exact_search import exact_top, plain_top
from mmemb.retrieval.ranking import TOLERANCE


def dense(query_QD: Tensor, candidate_ND: Tensor, k: int) -> Tensor:
    score_QN = query_QD.double() @ candidate_ND.double().T
    return (score_QN / TOLERANCE).round().sort(dim=1, descending=True, stable=True).indices[:, :k]


@settings(max_examples=60, deadline=None)
@given(
    Q=st.integers(1, 9),
    N=st.integers(1, 500),
    D=st.integers(1, 12),
    block=st.sampled_from([1, 64, 1000, 10**6]),
    copies=st.integers(0, 200),
    seed=st.integers(0, 99),
)
def test_equals_a_full_sort_in_fp64(
    Q: int, N: int, D: int, block: int, copies: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    query = normalize(torch.randn(Q, D, generator=random), dim=1)
    candidate = normalize(torch.randn(N, D, generator=random), dim=1)
    places = torch.randint(N, (copies,), generator=random)
    candidate[places] = candidate[0].clone()  # equal candidates: the one listed first comes first
    k = min(N, 7)
    score_Qk, row_Qk = exact_top(query, candidate, k, TOLERANCE, block)
    assert torch.equal(row_Qk, dense(query, candidate, k))
    expected = (query.double()[:, None] * candidate.double()[row_Qk]).sum(2)
    torch.testing.assert_close(score_Qk, expected, atol=1e-12, rtol=0)
    assert torch.equal(plain_top(query, candidate, k, TOLERANCE, block)[1], row_Qk)


def test_what_differs_in_fp64_alone_is_put_in_order() -> None:
    """The second candidate is better by 1e-8, which fp32 does not see."""
    query = torch.tensor([[1.0, 1e-8]])
    candidate = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert (query @ candidate.T)[0].unique().numel() == 1
    assert exact_top(query, candidate, 2, TOLERANCE)[1].tolist() == [[1, 0]]


def test_more_equal_scores_than_memory_holds() -> None:
    query = normalize(torch.ones(2, 4), dim=1)
    query[1] = torch.tensor([1.0, 0, 0, 0])
    candidate = normalize(torch.ones(9000, 4), dim=1)
    candidate[8999] = torch.tensor([1.0, 0, 0, 0])
    found = exact_top(query, candidate, 3, TOLERANCE, 4096)[1].tolist()
    assert found == [[0, 1, 2], [8999, 0, 1]]


@pytest.mark.parametrize("length", [1e-3, 1.0, 30.0])
def test_the_margin_grows_with_the_vectors(length: float) -> None:
    torch.manual_seed(0)
    query, candidate = length * torch.randn(5, 256), length * torch.randn(3000, 256)
    found = exact_top(query, candidate, 10, TOLERANCE, 10**5)[1]
    assert torch.equal(found, dense(query, candidate, 10))
