"""EmbeddingJudge: frozen embedders judge pairs that they were not fitted on.

See docs/method.md sections 3 and 5. Shapes: B pairs, C = 1 + N candidates, R = 1 + K columns,
D embedding width, J judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor

from mmemb.backbones.base import Backbone, load_backbone
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale
from mmemb.selection.judge import PairJudge, pad_scores
from mmemb.storage.allowed_classes import allowed_classes
from mmemb.storage.fingerprints import fingerprint
from mmemb.storage.trained_facts import FACTS, read_facts, trained_facts


@final
class EmbeddingJudge(PairJudge):
    """Scores `h_r(q, r) . h_d(t) / tau`, and `h_d(q) . h_d(t) / tau` in column 0.

    Each pair is judged by the embedders that were not fitted on its fact, and gets the mean of
    their scores: with two judges, each of one fold, a training pair has one judge, any other
    pair has both. A pair that every judge was fitted on is an error.

    Args:
        judges: name to folder of a finished run: `backbone/` and `fitted.json` in it.
        tau: temperature of the scores; 1 leaves the scaling to the reader of the scores.
        allow_trained_facts: lets all judges score a pair that all were fitted on, for an audit.
        batch_size: rows per call of a backbone.
    """

    model_arguments: ClassVar[tuple[str, ...]] = ("judges",)

    def __init__(
        self,
        judges: dict[str, str],
        tau: float = 1.0,
        allow_trained_facts: bool = False,
        batch_size: int = 128,
    ) -> None:
        if not judges:
            raise ValueError("EmbeddingJudge needs at least one judge: name: folder of a run.")
        if not tau > 0:
            raise ValueError(f"tau={tau} must be above 0.")

        self.tau, self.allow_trained_facts, self.batch_size = tau, allow_trained_facts, batch_size
        self.judges = {name: _Judge(Path(path), batch_size) for name, path in judges.items()}

    def score(
        self,
        queries: Sequence[Side],
        candidates: Sequence[Sequence[Side]],
        rationales: Sequence[Sequence[Rationale]],
        facts: Sequence[str],
    ) -> Tensor:
        """See `PairJudge.score`; candidate vectors are kept from call to call."""
        rows: dict[str, list[int]] = {name: [] for name in self.judges}
        for row, fact in enumerate(facts):
            for name in self.judges_of(fact):
                rows[name].append(row)

        judged: list[list[Tensor]] = [[] for _ in queries]
        for name, judge in self.judges.items():
            cosines = judge.similarity(
                [queries[row] for row in rows[name]],
                [candidates[row] for row in rows[name]],
                [rationales[row] for row in rows[name]],
            )
            for row, cosine_CR in zip(rows[name], cosines, strict=True):
                judged[row].append(cosine_CR)

        # Each pair has at least one judge: `judges_of` raises otherwise.
        return pad_scores([sum(cosines) / len(cosines) / self.tau for cosines in judged])

    def identity(self) -> str:
        """See `PairJudge.identity`; a judge counts with the fingerprint of its run."""
        settings = {"class": type(self).__name__, "tau": self.tau, "batch_size": self.batch_size}
        settings |= {"allow_trained_facts": self.allow_trained_facts}
        return fingerprint(settings | {"judges": [str(j.folder) for j in self.judges.values()]})

    def judges_of(self, fact: str) -> list[str]:
        """Names of the judges that may score pairs of this fact."""
        free = [name for name, judge in self.judges.items() if fact not in judge.facts]

        # An audit asks all judges only where no unfitted one is left.
        if free or self.allow_trained_facts:
            return free or list(self.judges)
        raise ValueError(
            f"every judge ({', '.join(self.judges)}) was fitted on fact {fact!r}: a model may not "
            "judge what it was trained on, there reasoning looks harmful. Score other pairs, add "
            "a judge trained on the other fold, or set allow_trained_facts: true for an audit."
        )


@final
class _Judge:
    """One frozen embedder, loaded when it is first asked, and the candidates it has seen."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        self.folder, self.batch_size, self.allowed = folder, batch_size, allowed_classes()
        # The weights may have been copied here from another run, with their own list.
        self.facts = read_facts(folder / FACTS) | trained_facts(str(folder / "backbone"))
        self.known: dict[str, Tensor] = {}

    @cached_property
    def backbone(self) -> Backbone:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return load_backbone(str(self.folder / "backbone"), self.allowed).to(device)

    def similarity(
        self,
        queries: Sequence[Side],
        candidates: Sequence[Sequence[Side]],
        rationales: Sequence[Sequence[Rationale]],
    ) -> list[Tensor]:
        """Returns the cosines (C, R) of each pair."""
        # Every column of every query is one row, so that one series of batches encodes them all.
        sides = [side for side, pool in zip(queries, rationales, strict=True) for _ in (0, *pool)]
        row_rationales = [rationale for pool in rationales for rationale in [None, *pool]]
        query_RD = self._encode(sides, row_rationales).split([1 + len(pool) for pool in rationales])

        # Pairs share candidates, and a candidate has one vector: no rationale is about it.
        targets = {side.digest: side for side in chain.from_iterable(candidates)}
        new = [digest for digest in targets if digest not in self.known]
        vectors = self._encode([targets[digest] for digest in new], [None] * len(new))
        self.known.update(zip(new, vectors, strict=True))

        return [
            torch.stack([self.known[side.digest] for side in sides]) @ reasoned_RD.T
            for sides, reasoned_RD in zip(candidates, query_RD, strict=True)
        ]

    @torch.inference_mode()
    def _encode(self, sides: Sequence[Side], rationales: Sequence[Rationale | None]) -> Tensor:
        cuts = range(0, len(sides), self.batch_size)
        parts = [
            self.backbone.encode(
                sides[i : i + self.batch_size], rationales[i : i + self.batch_size]
            )
            for i in cuts
        ]
        return torch.cat([part.cpu() for part in parts]) if parts else torch.zeros(0, 0)
