"""AdaptiveEmbedder: the one inference path: embed, decide, reason, embed again.

Used by tests, reports, notebooks and latency figures alike. Shapes: B sides, D embedding width,
N candidates, S width of the gate's state, H width of a probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from mmemb.backbones import Backbone, load_backbone
from mmemb.budget import Thresholds, gate_score
from mmemb.gate_inputs import GateInputs, StatePart, check_parts, score_shape
from mmemb.gating import DepthHead, load_head, save_head
from mmemb.lineage import read_json, write_json
from mmemb.rationales import RationaleWorker, load_worker
from mmemb.records import DIRECT, FULL, GREEDY, Side

DEPTHS = (DIRECT, FULL)
_SETTINGS = "adaptive.json"


class Encoded(NamedTuple):
    """Unit vectors (B, D), depths taken (B,), reasoning tokens spent (B,)."""

    vectors_BD: Tensor
    depths_B: Tensor
    tokens_B: Tensor


@final
class AdaptiveEmbedder:
    """Embeds sides and reasons about those for which the gate says that it pays.

    Args:
        backbone: embeds a side with and without a rationale.
        head: reads the state, never a rationale.
        thresholds: what to compare gate scores with, for any budget.
        worker: writes the rationale; a side that it cannot read is embedded directly.
        state: what the head's state is made of.
        temperature: tau of the scores whose shape a state with `scores` holds.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DepthHead,
        thresholds: Thresholds,
        worker: RationaleWorker,
        state: Sequence[StatePart] = ("embedding",),
        temperature: float = 0.05,
    ) -> None:
        self.backbone = backbone.eval()
        self.head = head.eval()
        self.thresholds = thresholds
        self.worker = worker
        self.state, self.temperature = tuple(state), temperature

    @torch.inference_mode()
    def encode(
        self,
        sides: Sequence[Side],
        budget: float | None = None,
        *,
        depth: int | None = None,
        keys: Sequence[str] | None = None,
        gallery: Tensor | Sequence[Tensor] | None = None,
    ) -> Encoded:
        """Embeds `sides`.

        Args:
            sides: B sides.
            budget: upper bound on the share of eligible sides that reason, in expectation over
                sides like those of the calibration part; None leaves it to the gate.
            depth: forces a depth for every eligible side (0 = direct); the gate is not asked.
            keys: what breaks ties between equal gate scores; by default the content of the side.
            gallery: (N, D) vectors of the candidates, or one such tensor per side; only a gate
                whose state holds `scores` needs it.

        Returns:
            Unit vectors (B, D), depths (B,) and reasoning tokens (B,).
        """
        direct_BD = self.backbone.encode(sides)
        eligible_B = torch.tensor([self.can_reason(side) for side in sides], dtype=torch.bool)
        names = [side.digest for side in sides] if keys is None else keys
        if depth is None and eligible_B.any():
            state_BS = self.inputs(sides, direct_BD, eligible_B, gallery).state(self.state)
            eligible_B &= self.decide(state_BS, names, budget)
        chosen = eligible_B.nonzero().flatten().tolist() if depth != 0 else []
        return self._reason(sides, chosen, direct_BD)

    def inputs(
        self,
        sides: Sequence[Side],
        direct_BD: Tensor,
        eligible_B: Tensor,
        gallery: Tensor | Sequence[Tensor] | None = None,
    ) -> GateInputs:
        """Measures what the gate's state is made of, and no more."""
        direct_BD = direct_BD.cpu()
        nothing = GateInputs.of_embedding(direct_BD)
        scores_B3, probe_BH = nothing.scores_B3, nothing.probe_BH
        if "scores" in self.state and gallery is not None:
            galleries = [gallery] * len(sides) if isinstance(gallery, Tensor) else gallery
            scored = zip(direct_BD.split(1), galleries, strict=True)
            shapes = [score_shape(x_1D @ y_ND.cpu().T / self.temperature) for x_1D, y_ND in scored]
            scores_B3 = torch.cat(shapes)
        if "probe" in self.state:
            rows = eligible_B.nonzero().flatten()
            known_RH = self.worker.probe([sides[row] for row in rows.tolist()]).cpu()
            probe_BH = known_RH.new_zeros(len(sides), known_RH.shape[1]).index_copy(
                0, rows, known_RH
            )
        return GateInputs(direct_BD, scores_B3, probe_BH)

    def can_reason(self, side: Side) -> bool:
        """Whether the worker can read the side (METHOD 7: only these queries are eligible)."""
        return self.worker.can_read(side)

    def decide(self, state_BS: Tensor, keys: Sequence[str], budget: float | None) -> Tensor:
        """(B,) bool: whether the gate asks for a rationale."""
        device = next(self.head.parameters()).device
        score_B = gate_score(self.head(state_BS.to(device))).cpu()
        return self.thresholds.decide(score_B, keys, budget)

    def _reason(self, sides: Sequence[Side], chosen: list[int], direct_BD: Tensor) -> Encoded:
        depths_B = torch.zeros(len(sides), dtype=torch.long)
        tokens_B = torch.zeros(len(sides), dtype=torch.long)
        vectors_BD = direct_BD.clone()
        if chosen:
            picked = [sides[i] for i in chosen]
            written = self.worker.write(picked, torch.full((len(picked), 1), GREEDY))
            rationales = [draws[0] if draws else None for draws in written]
            vectors_BD[chosen] = self.backbone.encode(picked, rationales)
            # A side about which the worker had nothing to say was embedded directly.
            depths_B[chosen] = torch.tensor([int(r is not None) for r in rationales])
            tokens_B[chosen] = torch.tensor([r.num_tokens if r else 0 for r in rationales])
        return Encoded(vectors_BD, depths_B, tokens_B)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes embedder, gate, thresholds and worker settings; the settings come last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _SETTINGS).unlink(missing_ok=True)
        self.backbone.save_pretrained(folder / "backbone")
        save_head(self.head, folder / "gate")
        write_json(
            folder / _SETTINGS,
            {
                "depths": DEPTHS,
                "state": self.state,
                "temperature": self.temperature,
                "thresholds": self.thresholds.to_json(),
                "worker": self.worker.settings(),
            },
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, worker: RationaleWorker | None = None
    ) -> AdaptiveEmbedder:
        """Loads what `save_pretrained` wrote; `worker` replaces the saved one."""
        settings = read_settings(Path(folder))
        return cls(
            load_backbone(str(Path(folder) / "backbone")),
            load_head(Path(folder) / "gate"),
            Thresholds.from_json(settings["thresholds"]),
            worker or load_worker(settings["worker"]),
            check_parts(settings.get("state", ["embedding"])),
            float(settings.get("temperature", 0.05)),
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a saved embedder; an unfinished or foreign folder is one clear error."""
    path = folder / _SETTINGS
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: {folder} is not a saved AdaptiveEmbedder, or writing it was "
            "interrupted. `experiments.run fit` with a gate config writes one to <run>/adaptive."
        )
    settings = read_json(path, "the settings of an AdaptiveEmbedder")
    thresholds, worker = settings.get("thresholds"), settings.get("worker")
    if not isinstance(worker, dict) or not {"scores", "ties"} <= set(thresholds or ()):
        raise ValueError(
            f"{path} lacks thresholds (with scores and ties) or worker: it is not what "
            "`save_pretrained` writes. Fit the gate again."
        )
    return settings
