"""AdaptiveEmbedder: the one inference path: embed, decide, reason, embed again.

Used by tests, reports, notebooks and latency figures alike. Shapes: B sides, D embedding width,
N candidates, S width of the gate's state, H width of a probe.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from mmemb.backbones import Backbone, GenerativeBackbone, load_backbone
from mmemb.gate.budget import Thresholds, Unit, check_budget
from mmemb.gate.heads import DepthHead, load_head, save_head
from mmemb.gate.saved_settings import SETTINGS, read_settings
from mmemb.rationales import RationaleWorker, SelfWorker, load_saved_worker, save_worker
from mmemb.records.gate_state import GateInputs, StatePart, check_parts, score_shape
from mmemb.records.inputs import Side
from mmemb.records.rationales import DIRECT, GREEDY, Rationale
from mmemb.storage.files import whole_folder
from mmemb.storage.json_files import write_json
from mmemb.storage.old_names import with_new_names
from mmemb.storage.trust import Permissions, check_links


class Encoded(NamedTuple):
    """Unit vectors (B, D), depths taken (B,), reasoning tokens spent (B,), and what was written:
    None where a side was embedded directly."""

    vectors_BD: Tensor
    depths_B: Tensor
    tokens_B: Tensor
    rationales: tuple[Rationale | None, ...]


@final
class AdaptiveEmbedder:
    """Embeds sides and reasons about those for which the gate says that it pays.

    Args:
        backbone: embeds a side with and without a rationale.
        head: reads the state, never a rationale.
        thresholds: the prices that keep any budget.
        workers: name of a depth -> who writes at it, the cheapest first: `{"full": worker}`, or
            `{"short": one, "full": other}`. A side that they cannot read is embedded directly.
        state: what the head's state is made of. A `probe` is the last worker's.
        temperature: tau of the scores whose shape a state with `scores` holds.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DepthHead,
        thresholds: Thresholds,
        workers: Mapping[str, RationaleWorker],
        state: Sequence[StatePart] = ("embedding",),
        temperature: float = 0.05,
    ) -> None:
        said = head.settings().get("num_depths", 1 + len(workers))
        if said != 1 + len(workers):
            raise ValueError(
                f"the gate chooses among {said} depths, but there are {len(workers)} workers: "
                "expected one for every depth but the direct one."
            )
        self.backbone = backbone.eval()
        self.head = head.eval()
        self.thresholds = thresholds
        self.workers = dict(workers)
        self.state, self.temperature = tuple(state), temperature

    @property
    def depths(self) -> tuple[str, ...]:
        """Names of the depths, in the order of the head's logits."""
        return (DIRECT, *self.workers)

    @torch.inference_mode()
    def encode(
        self,
        sides: Sequence[Side],
        budget: float | None = None,
        unit: Unit = "invocation",
        *,
        depth: int | None = None,
        keys: Sequence[str] | None = None,
        gallery: Tensor | Sequence[Tensor] | None = None,
    ) -> Encoded:
        """Embeds `sides`.

        Args:
            sides: B sides.
            budget: upper bound on what eligible sides cost on average, in expectation over sides
                like those of the calibration part, on which it is never exceeded; None = no
                bound.
            unit: what the budget counts; `invocation` is the share that reasons.
            depth: forces a depth for every eligible side (0 = direct); the gate is not asked.
            keys: what breaks ties between equal gate scores; by default the content of the side.
            gallery: (N, D) vectors of the candidates, or one such tensor per side; only a gate
                whose state holds `scores` needs it.

        Returns:
            Unit vectors (B, D), depths (B,), reasoning tokens (B,) and B rationales.
        """
        if budget is not None:
            check_budget(budget, unit)  # also where no side can reason and the gate is not used
        names = [side.digest for side in sides] if keys is None else keys

        def choose(rows: Sequence[int], direct_RD: Tensor) -> Tensor:
            """(R,) depths of some rows, whose direct vectors are known by now."""
            own = [sides[row] for row in rows]
            eligible_R = torch.tensor([self.can_reason(side) for side in own], dtype=torch.bool)
            chosen_R = torch.full((len(own),), depth or 0)
            if depth is None and eligible_R.any():
                every = gallery is None or isinstance(gallery, Tensor)
                shown = gallery if every else [gallery[row] for row in rows]
                state_RS = self.inputs(own, direct_RD, eligible_R, shown).state(self.state)
                chosen_R = self.decide(state_RS, [names[row] for row in rows], budget, unit)
            return chosen_R * eligible_R

        if self._writes_itself:
            return self._in_one_pass(sides, choose)
        direct_BD = self.backbone.encode(sides)
        return self._reason(sides, choose(range(len(sides)), direct_BD), direct_BD)

    @property
    def _writes_itself(self) -> bool:
        kinds = {isinstance(worker, SelfWorker) for worker in self.workers.values()}
        if kinds == {True, False} or (
            True in kinds and not isinstance(self.backbone, GenerativeBackbone)
        ):
            raise ValueError(
                "SelfWorker stands for what a VisionLanguageBackbone writes by itself, at every "
                f"depth or at none; the backbone is a {type(self.backbone).__name__}, the workers "
                f"are {[type(worker).__name__ for worker in self.workers.values()]}."
            )
        return True in kinds

    def _in_one_pass(
        self, sides: Sequence[Side], choose: Callable[[Sequence[int], Tensor], Tensor]
    ) -> Encoded:
        """Prompts are read once: for the direct vector, the decision, and what is written."""
        depths_B = torch.zeros(len(sides), dtype=torch.long)

        def decide(rows: Sequence[int], direct_RD: Tensor) -> list[str]:
            chosen_R = choose(rows, direct_RD)
            depths_B[list(rows)] = chosen_R
            return [self.depths[number] for number in chosen_R.tolist()]

        samplings = {
            depth: worker.sampling  # type: ignore[attr-defined]
            for depth, worker in self.workers.items()
        }
        longest = {depth: sampling.max_new_tokens for depth, sampling in samplings.items()}
        sampling = samplings[max(longest, key=longest.__getitem__)]
        found = self.backbone.think_and_embed(  # type: ignore[operator]
            sides, decide, sampling, longest=longest
        )
        return _encoded(found.vectors_BD, depths_B, found.rationales)

    def can_reason(self, side: Side) -> bool:
        """Whether the workers can read the side (METHOD 7: only these queries are eligible)."""
        return all(worker.can_read(side) for worker in self.workers.values())

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
            known_RH = list(self.workers.values())[-1].probe([sides[row] for row in rows.tolist()])
            empty_BH = torch.zeros(len(sides), known_RH.shape[1])
            probe_BH = empty_BH.index_copy(0, rows, known_RH.cpu())
        return GateInputs(direct_BD, scores_B3, probe_BH)

    def decide(
        self, state_BS: Tensor, keys: Sequence[str], budget: float | None, unit: Unit = "invocation"
    ) -> Tensor:
        """(B,) int64: the depths that the gate asks for."""
        device = next(self.head.parameters()).device
        logit_BA = self.head(state_BS.to(device)).cpu()
        return self.thresholds.decide(logit_BA, keys, budget, unit)

    def _reason(self, sides: Sequence[Side], chosen_B: Tensor, direct_BD: Tensor) -> Encoded:
        depths_B, vectors_BD = torch.zeros_like(chosen_B), direct_BD.clone()
        taken: list[Rationale | None] = [None] * len(sides)
        for depth, worker in enumerate(self.workers.values(), start=1):
            rows = (chosen_B == depth).nonzero().flatten().tolist()
            if not rows:
                continue
            picked = [sides[row] for row in rows]
            written = worker.write(picked, torch.full((len(picked), 1), GREEDY))
            rationales = [draws[0] if draws else None for draws in written]
            vectors_BD[rows] = self.backbone.encode(picked, rationales)
            # A side about which the worker had nothing to say was embedded directly.
            depths_B[rows] = torch.tensor([depth * (r is not None) for r in rationales])
            for row, rationale in zip(rows, rationales, strict=True):
                taken[row] = rationale
        return _encoded(vectors_BD, depths_B, taken)

    def to(self, device: torch.device | str) -> AdaptiveEmbedder:
        """Backbone and gate move; a worker runs where it was told to."""
        self.backbone.to(device)
        self.head.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes embedder, gate, thresholds and worker settings: all of them, or nothing.

        Files of workers (a prompt, a table) are copied; models that they run stay outside.
        """
        settings = {
            "state": self.state,
            "temperature": self.temperature,
            "thresholds": self.thresholds.to_json(),
        }
        with whole_folder(folder, keep_others=True) as fresh:
            settings["workers"] = {
                depth: save_worker(worker, fresh, f"workers/{number}")
                for number, (depth, worker) in enumerate(self.workers.items(), start=1)
            }
            self.backbone.save_pretrained(fresh / "backbone")
            save_head(self.head, fresh / "gate")
            write_json(fresh / SETTINGS, settings)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        workers: Mapping[str, RationaleWorker] | None = None,
        servers: Mapping[str, str | None] | Collection[str] = (),
        models: Collection[str] = (),
    ) -> AdaptiveEmbedder:
        """Loads what `save_pretrained` wrote.

        Args:
            folder: may come from anywhere: nothing in it is executed, and it names its own files
                only, beside what is allowed here (docs/trust.md).
            workers: replace the saved ones.
            servers: hosts (`example.org`, `localhost:8000`) that a saved `ServerWorker` may ask,
                each with the environment variable whose value it is sent as a key, or None.
            models: folders and hub ids of models that saved workers may run. A run below the
                folder of all runs may name any.

        Raises:
            FileNotFoundError: no embedder was saved there, or its writing was interrupted.
            ValueError: a setting is not what `save_pretrained` writes.
        """
        settings = read_settings(Path(folder))
        where = Path(folder) / SETTINGS
        saved = with_new_names(settings.workers, str(where))
        if workers is not None and list(workers) != list(saved):
            raise ValueError(
                f"{folder} was saved with the depths {list(saved)}, but the workers given are for "
                f"{list(workers)}: expected one for each, in this order."
            )

        permissions = Permissions.for_folder(Path(folder), models, servers)
        check_links(Path(folder))
        try:
            return cls(
                load_backbone(str(Path(folder) / "backbone")),
                load_head(Path(folder) / "gate"),
                settings.thresholds.thresholds(),
                workers
                or {
                    depth: load_saved_worker(
                        saved[depth], Path(folder), permissions, f"{where}: workers.{depth}"
                    )
                    for depth in saved
                },
                check_parts(settings.state),
                settings.temperature,
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{folder} is no whole AdaptiveEmbedder: {error}") from None
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            said = f"{error.filename} cannot be read ({error.strerror})"
            raise ValueError(f"{folder} is no whole AdaptiveEmbedder: {said}.") from None


def _encoded(
    vectors_BD: Tensor, depths_B: Tensor, rationales: Sequence[Rationale | None]
) -> Encoded:
    tokens = [r.num_tokens if r is not None else 0 for r in rationales]
    return Encoded(vectors_BD, depths_B, torch.tensor(tokens, dtype=torch.long), tuple(rationales))
