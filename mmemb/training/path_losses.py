"""The losses of an embedder's paths: direct, reasoned, across them, and next token.

docs/method.md section 6. Shapes: B rows, N target columns (B targets, then hard negatives), D
embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmemb.losses.ids import PairIds
from mmemb.losses.infonce import contrastive_loss
from mmemb.losses.terms import combine
from mmemb.records.batches import PairBatch
from mmemb.records.loss_term import LossTerm
from mmemb.records.rationales import Rationale
from mmemb.training.pair_vectors import PairVectors


# Neither slots nor `final`: jsonargparse reads the fields of a default by `vars`.
@dataclass(frozen=True, kw_only=True)
class PathLosses:
    """Weights of the losses, and how their candidates are treated.

    Attributes:
        direct: weight `a` of L_nce(h_d(q), h_d(t)).
        reasoned: weight of L_nce(h_r(q, r), t*), t* = h_r(t) where the target has a rationale.
        cross: weight of L_nce(h_r(q), h_d(t)) + L_nce(h_d(q), h_r(t)) where targets reason.
        next_token: weight `b` of the next-token loss, a mean over all tokens of all rationales.
        symmetric: also target to query.
        false_negative_margin: targets whose cosine with a query exceeds that of its own target by
            more than this do not repel it; null = all do.
        dims: prefixes of the vectors that are trained, too.
    """

    direct: float = 1.0
    reasoned: float = 1.0
    cross: float = 0.0
    next_token: float = 0.0
    symmetric: bool = True
    false_negative_margin: float | None = None
    dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.cross or self.next_token) and not self.reasoned:
            raise ValueError(
                "losses.cross and losses.next_token need rationales, but losses.reasoned is 0: "
                "set it above 0, or both of them to 0."
            )

    def compute(
        self, vectors: PairVectors, batch: PairBatch, temperature: Tensor
    ) -> dict[str, Tensor]:
        """Returns the weighted losses by name; runs collectives on every rank.

        The names depend on the weights alone, and not on the batch, so that all ranks compute the
        same.
        """
        of_targets = batch.target_rationales or [None] * len(batch.keys)
        has_query_B = _has_rationale(batch.rationales, vectors.query_BD)
        has_target_B = _has_rationale(of_targets, vectors.query_BD)

        query_BD, reasoned_BD = vectors.query_BD, vectors.reasoned_BD
        target_BD, reasoned_target_BD = vectors.target_BD, vectors.reasoned_target_BD
        paths = {
            "direct": (self.direct, query_BD, target_BD, None),
            "reasoned": (self.reasoned, reasoned_BD, reasoned_target_BD, has_query_B),
            "cross_query": (self.cross, reasoned_BD, target_BD, has_query_B & has_target_B),
            "cross_target": (self.cross, query_BD, reasoned_target_BD, has_target_B),
        }

        # Ids and hard negatives are those of every path.
        ids, negative_HD = PairIds.from_batch(batch), vectors.negative_BKD.flatten(0, 1)
        losses = {}
        for name, (weight, left_BD, right_BD, valid_B) in paths.items():
            # The direct loss joins all parameters to the graph, even with weight 0.
            if weight or name == "direct":
                term = contrastive_loss(
                    left_BD,
                    torch.cat([right_BD, negative_HD]),
                    ids,
                    temperature=temperature,
                    valid_B=valid_B,
                    symmetric=self.symmetric,
                    false_negative_margin=self.false_negative_margin,
                    dims=self.dims,
                )
                losses[name] = weight * combine(term)

        if self.next_token:
            tokens = LossTerm(vectors.nll_B.sum(), vectors.num_tokens_B.sum())
            losses["next_token"] = self.next_token * combine(tokens)
        return losses


def _has_rationale(rationales: Sequence[Rationale | None], like: Tensor) -> Tensor:
    return torch.tensor([r is not None for r in rationales], device=like.device)
