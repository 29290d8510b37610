"""AdaptiveEmbedder: the one inference path, in four steps: embed, decide, write, read.

Used by tests, reports, notebooks and latency figures alike. Shapes: B sides, R eligible ones, D
embedding width, N candidates, S width of the gate's state, A depths, H width of a prompt state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from mmemb.backbones import Backbone, load_backbone
from mmemb.backbones.generative import DirectVectors
from mmemb.gate.budget import Amounts, BudgetCalibration, Units, row_budgets
from mmemb.gate.heads import DepthHead, load_head, save_head
from mmemb.gate.reasoners import Written, make_reasoner
from mmemb.gate.saved_settings import SETTINGS, read_settings
from mmemb.rationales import load_saved_writer, save_writer
from mmemb.rationales.writers.base import RationaleSource
from mmemb.records.gate_state import GateInputs, StatePart, check_parts, score_shape
from mmemb.records.inputs import Side
from mmemb.records.old_names import with_new_names
from mmemb.records.rationales import DIRECT, Rationale
from mmemb.storage.files import whole_folder
from mmemb.storage.json_files import write_json
from mmemb.storage.trust import Permissions, check_links


@final
class Encoded(NamedTuple):
    """B embedded sides.

    Attributes:
        vectors_BD: unit vectors.
        depths_B: int64, the depth that was taken; 0 = direct, also where nothing was written.
        tokens_B: int64, reasoning tokens that were spent.
        rationales: B of them; None where a side was embedded directly.
    """

    vectors_BD: Tensor
    depths_B: Tensor
    tokens_B: Tensor
    rationales: tuple[Rationale | None, ...]


@final
class AdaptiveEmbedder:
    """Embeds sides, and reasons about those that the gate chooses.

    `encode` is four steps, each usable alone and without a state of its own: `embed` the sides,
    `decide` on a depth for each, `write` rationales, `read` the sides with them.

    Args:
        backbone: embeds a side with and without a rationale.
        head: reads the state, never a rationale.
        calibration: gives the price that keeps a budget.
        writers: name of a depth -> where its rationales come from, the cheapest first:
            `{"full": writer}`, or `{"short": one, "full": other}`. A side that they cannot read is
            embedded directly.
        state: what the head's state is made of. A `prompt_state` is the last writer's.
        gallery_temperature: tau of the scores whose shape a state with `scores` holds.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DepthHead,
        calibration: BudgetCalibration,
        writers: Mapping[str, RationaleSource],
        state: Sequence[StatePart] = ("embedding",),
        gallery_temperature: float = 0.05,
    ) -> None:
        num_depths = head.config().get("num_depths", 1 + len(writers))
        if num_depths != 1 + len(writers):
            raise ValueError(
                f"the gate chooses among {num_depths} depths, but there are {len(writers)} "
                "writers: expected one for every depth but the direct one."
            )

        self.backbone = backbone.eval()
        self.head = head.eval()
        self.calibration = calibration
        self.writers = dict(writers)
        self.reasoner = make_reasoner(self.backbone, self.writers)
        self.state, self.gallery_temperature = tuple(state), gallery_temperature

    @property
    def depths(self) -> tuple[str, ...]:
        """Names of the depths, in the order of the head's logits."""
        return (DIRECT, *self.writers)

    def can_reason(self, side: Side) -> bool:
        """Tells if the writers can read the side: only such queries are eligible."""
        return self.reasoner.can_reason(side)

    def encode(
        self,
        sides: Sequence[Side],
        budget: Amounts = None,
        unit: Units = "invocation",
        *,
        depth: int | None = None,
        keys: Sequence[str] | None = None,
        gallery: Tensor | Sequence[Tensor] | None = None,
    ) -> Encoded:
        """Embeds B sides: all four steps.

        Args:
            sides: B sides.
            budget: see `decide`, as all that follow.
            unit: of the budget.
            depth: forces a depth.
            keys: break ties.
            gallery: vectors of the candidates.
        """
        direct = self.embed(sides)
        depths_B = self.decide(direct, budget, unit, depth=depth, keys=keys, gallery=gallery)
        written = self.write(direct, depths_B)
        return self.read(direct, written)

    @torch.inference_mode()
    def embed(self, sides: Sequence[Side]) -> DirectVectors:
        """Step 1: embeds B sides without a rationale.

        A backbone that writes by itself keeps its caches of all B prompts in the result.

        Raises:
            ValueError: a side that the backbone cannot read.
        """
        return self.reasoner.embed(sides)

    @torch.inference_mode()
    def decide(
        self,
        direct: DirectVectors,
        budget: Amounts = None,
        unit: Units = "invocation",
        *,
        depth: int | None = None,
        keys: Sequence[str] | None = None,
        gallery: Tensor | Sequence[Tensor] | None = None,
        prompt_states: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Step 2: asks the gate for a depth of each side; 0 (direct) where no writer can read it.

        A row depends on its own budget alone.

        Args:
            direct: B sides with their vectors.
            budget: upper bound on what eligible sides cost on average, in expectation over sides
                like those of split `calibration`, on which it is never exceeded; None = no bound.
                One for all sides, or B of them.
            unit: what the budget counts; `invocation` is the share that reasons. One for all sides,
                or B of them.
            depth: forces a depth for every eligible side (0 = direct); the gate is not asked.
            keys: B of them, which break ties between equal gate scores; by default the content of
                each side.
            gallery: (N, D) vectors of the candidates, or B such tensors; only a gate whose state
                holds `scores` needs it.
            prompt_states: B hidden states (H,) that were measured earlier, None of a side without
                one; by default the last writer is asked, where the state holds a `prompt_state`.

        Returns:
            Depths (B,) int64 on the CPU.

        Raises:
            ValueError: a budget that cannot be met; or the state holds what was not measured.
        """
        sides = direct.sides
        row_budgets(budget, unit, len(sides))  # a wrong one is refused also where none can reason
        eligible_B = torch.tensor([self.can_reason(side) for side in sides], dtype=torch.bool)
        if depth is not None:
            if not 0 <= depth < len(self.depths):
                raise ValueError(f"depth must be from 0 to {len(self.writers)}, got {depth}.")
            return torch.full((len(sides),), depth) * eligible_B
        if not eligible_B.any():
            return torch.zeros(len(sides), dtype=torch.long)

        # By content, a side has the same tie-break in any batch and run.
        keys = [side.digest for side in sides] if keys is None else keys
        inputs = self._inputs(direct, eligible_B, gallery, prompt_states)
        logit_BA = self.logits(inputs.state(self.state))
        return self.calibration.decide(logit_BA, keys, budget, unit) * eligible_B

    @torch.inference_mode()
    def write(self, direct: DirectVectors, depths_B: Tensor) -> Written:
        """Step 3: writes one greedy rationale about each side whose depth is not 0.

        Args:
            direct: B sides with their vectors; they stay as they are.
            depths_B: int64.
        """
        return self.reasoner.write(direct, depths_B)

    @torch.inference_mode()
    def read(self, direct: DirectVectors, written: Written) -> Encoded:
        """Step 4: embeds B sides with their rationales, written now or earlier.

        Args:
            direct: B sides with their vectors.
            written: rationales about them; a side without one keeps its direct vector.
        """
        vectors_BD = self.reasoner.read(direct, written)
        rationales = written.rationales

        # A writer may write nothing about a side, which is then embedded directly.
        has_rationale_B = torch.tensor(
            [rationale is not None for rationale in rationales], dtype=torch.bool
        )
        tokens = [rationale.num_tokens if rationale is not None else 0 for rationale in rationales]
        tokens_B = torch.tensor(tokens, dtype=torch.long)
        return Encoded(vectors_BD, written.depths_B * has_rationale_B, tokens_B, rationales)

    def logits(self, state_BS: Tensor) -> Tensor:
        """Returns the gate's logits (B, A) of states (B, S), on the CPU."""
        device = next(self.head.parameters()).device
        logit_BA: Tensor = self.head(state_BS.to(device))
        return logit_BA.cpu()

    def _inputs(
        self,
        direct: DirectVectors,
        eligible_B: Tensor,
        gallery: Tensor | Sequence[Tensor] | None,
        prompt_states: Sequence[Tensor | None] | None,
    ) -> GateInputs:
        """Measures what the gate's state is made of, and no more."""
        direct_BD = direct.vectors_BD.cpu()
        inputs = GateInputs.of_embedding(direct_BD)

        if "scores" in self.state and gallery is not None:
            # Galleries differ in size, so each row is scored by itself.
            galleries = [gallery] * len(direct_BD) if isinstance(gallery, Tensor) else gallery
            scored = zip(direct_BD.split(1), galleries, strict=True)
            shapes = [
                score_shape(x_1D @ y_ND.cpu().T / self.gallery_temperature) for x_1D, y_ND in scored
            ]
            inputs = inputs._replace(scores_B3=torch.cat(shapes))

        if "prompt_state" in self.state:
            # A prompt state costs a prefill: sides that cannot reason are spared it.
            row_R = eligible_B.nonzero().flatten()
            sides = [direct.sides[row] for row in row_R.tolist()]
            if prompt_states is None:
                prompt_state_RH = self.reasoner.prompt_states(sides).cpu()
            else:
                prompt_state_RH = _stacked(sides, [prompt_states[row] for row in row_R.tolist()])
            empty_BH = torch.zeros(len(direct_BD), prompt_state_RH.shape[1])
            inputs = inputs._replace(prompt_state_BH=empty_BH.index_copy(0, row_R, prompt_state_RH))
        return inputs

    def to(self, device: torch.device | str) -> AdaptiveEmbedder:
        """Moves backbone and gate; a writer runs where it was told to."""
        self.backbone.to(device)
        self.head.to(device)
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes embedder, gate, calibration and writer settings: all of them, or nothing.

        Files of writers (a prompt, a table) are copied; models that they run stay outside.
        """
        settings = {
            "state": self.state,
            "gallery_temperature": self.gallery_temperature,
            "calibration": self.calibration.to_json(),
        }
        with whole_folder(folder, keep_others=True) as fresh:
            settings["writers"] = {
                depth: save_writer(writer, fresh, f"writers/{number}")
                for number, (depth, writer) in enumerate(self.writers.items(), start=1)
            }
            self.backbone.save_pretrained(fresh / "backbone")
            save_head(self.head, fresh / "gate")
            write_json(fresh / SETTINGS, settings)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        writers: Mapping[str, RationaleSource] | None = None,
        servers: Mapping[str, str | None] | Collection[str] = (),
        models: Collection[str] = (),
    ) -> AdaptiveEmbedder:
        """Loads what `save_pretrained` wrote.

        Args:
            folder: may come from anywhere: nothing in it is executed, and it names its own files
                only, beside what is allowed here (docs/trust.md).
            writers: replace the saved ones.
            servers: hosts (`example.org`, `localhost:8000`) that a saved `ServerWriter` may ask,
                each with the environment variable whose value it is sent as a key, or None.
            models: folders and hub ids of models that saved writers may run. A run below the
                folder of all runs may name any.

        Raises:
            FileNotFoundError: no embedder was saved there, or its writing was interrupted.
            ValueError: a setting is not what `save_pretrained` writes.
        """
        settings = read_settings(Path(folder))
        where = Path(folder) / SETTINGS
        saved = with_new_names(settings.writers, str(where))
        if writers is not None and list(writers) != list(saved):
            raise ValueError(
                f"{folder} was saved with the depths {list(saved)}, but the writers given are for "
                f"{list(writers)}: expected one for each, in this order."
            )

        # Before anything is built: a link could lead out of the folder.
        permissions = Permissions.for_folder(Path(folder), models, servers)
        check_links(Path(folder))

        try:
            return cls(
                load_backbone(str(Path(folder) / "backbone")),
                load_head(Path(folder) / "gate"),
                settings.calibration.record(),
                writers
                or {
                    depth: load_saved_writer(
                        saved[depth], Path(folder), permissions, f"{where}: writers.{depth}"
                    )
                    for depth in saved
                },
                check_parts(settings.state),
                settings.gallery_temperature,
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{folder} is no whole AdaptiveEmbedder: {error}") from None
        except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
            reason = f"{error.filename} cannot be read ({error.strerror})"
            raise ValueError(f"{folder} is no whole AdaptiveEmbedder: {reason}.") from None


def _stacked(sides: Sequence[Side], prompt_states: Sequence[Tensor | None]) -> Tensor:
    """Prompt states (R, H) that were measured earlier."""
    states = [prompt_state for prompt_state in prompt_states if prompt_state is not None]
    if len(states) < len(sides):
        side = sides[[prompt_state is None for prompt_state in prompt_states].index(True)]
        raise ValueError(
            f"No hidden state was written about {side.text[:60]!r}: make the rationales again with "
            "`prompt_state` set, or choose a gate state without it."
        )
    return torch.stack(states).cpu()
