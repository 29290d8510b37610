"""AdaptiveEmbedder: the one inference path, in four steps: embed, decide, write, read.

Used by tests, reports, notebooks and latency figures alike. Shapes: B sides, R eligible ones, D
embedding width, N candidates, S width of the gate's state, A depths, H width of a prompt state, M
vectors to compare with.
"""

from __future__ import annotations

import reprlib
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar, final, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mmemb.backbones import Backbone, load_backbone
from mmemb.backbones.generative import DirectVectors
from mmemb.gate.budget import (
    Amounts,
    Budget,
    BudgetCalibration,
    Unit,
    Units,
    check_budget,
    row_budgets,
)
from mmemb.gate.encoded import Embedding, Encoded, join_batches
from mmemb.gate.gate_scores import GateScores
from mmemb.gate.heads import DepthHead, load_head, save_head
from mmemb.gate.reasoners import Written, make_reasoner
from mmemb.gate.release_card import release_card
from mmemb.gate.saved_settings import FORMER, SETTINGS, read_settings
from mmemb.media.inputs import Input, are_media, sides
from mmemb.rationales import load_saved_writer, save_writer
from mmemb.rationales.writers.base import RationaleSource
from mmemb.records.gate_state import GateInputs, StatePart, check_parts, score_shape
from mmemb.records.inputs import TOKENS_PER_PICTURE, Side
from mmemb.records.old_names import with_new_names
from mmemb.records.rationales import DIRECT
from mmemb.storage.allowed_classes import allowing_classes
from mmemb.storage.files import whole_folder
from mmemb.storage.hub import model_folder, publish
from mmemb.storage.json_files import write_json
from mmemb.storage.trust import Models, Permissions, check_links

Vectors = Tensor | np.ndarray | Encoded | Embedding
"""Vectors of any origin: (B, D), or (D,) of a single input."""


@final
class AdaptiveEmbedder:
    """Embeds sides, and reasons about those that the gate chooses.

    `encode` is four steps, each usable alone and without a state of its own: `embed` the sides,
    `decide` on a depth for each, `write` rationales, `read` the sides with them. Without a gate
    every side is embedded directly.

    Args:
        backbone: embeds a side with and without a rationale.
        head: reads the state, never a rationale; None = there is no gate.
        calibration: gives the price that keeps a budget; None without a gate.
        writers: name of a depth -> where its rationales come from, the cheapest first:
            `{"full": writer}`, or `{"short": one, "full": other}`. A side that they cannot read is
            embedded directly.
        state: what the head's state is made of. A `prompt_state` is the last writer's.
        gallery_temperature: tau of the scores whose shape a state with `scores` holds.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: DepthHead | None = None,
        calibration: BudgetCalibration | None = None,
        writers: Mapping[str, RationaleSource] | None = None,
        state: Sequence[StatePart] = ("embedding",),
        gallery_temperature: float = 0.05,
    ) -> None:
        writers = dict(writers or {})
        if (head is None) != (calibration is None) or (head is None and writers):
            raise ValueError(
                "A gate is head, calibration and writers: give all three, or the backbone alone."
            )

        # They are printed, and may come from a folder of a stranger.
        for name in writers:
            if not name.isprintable() or name in ("", DIRECT):
                raise ValueError(
                    f"a writer's depth is called {name!r}: expected a printable name other than "
                    f"{DIRECT!r}, which is the depth without a writer."
                )

        num_depths = 1 if head is None else head.config().get("num_depths", 1 + len(writers))
        if num_depths != 1 + len(writers):
            raise ValueError(
                f"the gate chooses among {num_depths} depths, but there are {len(writers)} "
                "writers: expected one for every depth but the direct one."
            )

        self.backbone = backbone.eval()
        self.head = head.eval() if head is not None else None
        self.calibration = calibration
        self.writers = writers
        self.reasoner = make_reasoner(self.backbone, self.writers)
        self.state, self.gallery_temperature = tuple(state), gallery_temperature

    @property
    def depths(self) -> tuple[str, ...]:
        """Names of the depths, in the order of the head's logits."""
        return (DIRECT, *self.writers)

    @property
    def embedding_dim(self) -> int:
        """D, the width of the vectors."""
        return self.backbone.embedding_dim

    @property
    def device(self) -> torch.device:
        """The device of the backbone."""
        return self.backbone.device

    def __repr__(self) -> str:
        kind = type(self.backbone).__name__
        depths = ", ".join(self.depths)
        return f"AdaptiveEmbedder({kind}, {self.embedding_dim} numbers, {self.device}; {depths})"

    def can_reason(self, side: Side) -> bool:
        """Tells if the writers can read the side: only such queries are eligible."""
        return self.reasoner.can_reason(side)

    @overload
    def encode(self, inputs: list[Input] | tuple[Input, ...], **options: Any) -> Encoded: ...

    @overload
    def encode(self, inputs: Input, **options: Any) -> Embedding: ...

    def encode(
        self,
        inputs: Input | Sequence[Input],
        budget: Amounts = None,
        unit: Units = "invocation",
        *,
        depth: str | None = None,
        instruction: str = "",
        keys: str | Sequence[str] | None = None,
        gallery: Vectors | Sequence[Vectors] | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        device: torch.device | str | None = None,
    ) -> Encoded | Embedding:
        """Embeds B inputs by all four steps, in batches of inputs of like length.

        Args:
            inputs: a list of texts, pictures, clips and mixtures of them, or one of these alone:
                `str` (always a text), `Path` of a picture or clip, PIL image, array, bytes,
                `{"text": ..., "image": ...}`, `Media`, `Side` (`mmemb.media.inputs`).
            budget: see `decide`, as `unit`, `depth`, `keys` and `gallery`.
            unit: of the budget.
            depth: forces a depth.
            instruction: of inputs that bring none of their own, as the model was trained with.
            keys: break ties; one for each input.
            gallery: vectors of the candidates, such as `encode_document` gives, or B of them.
            batch_size: inputs that are embedded together.
            show_progress_bar: None = on a terminal, from three seconds on.
            device: where the model is moved first; None = it stays where it is.

        Returns:
            Vectors on the CPU, with depth, rationale, tokens and milliseconds of each input; an
            `Embedding` of an input that was given alone.

        Raises:
            ValueError: an input cannot be read, a budget cannot be met, or there is no such depth.
        """
        # A tuple of frames is one clip, as `mmemb.media.clip` gives it.
        is_clip = isinstance(inputs, tuple) and are_media(inputs)
        if is_clip or not isinstance(inputs, list | tuple):
            keys = [keys] if isinstance(keys, str) else keys
            options = {"instruction": instruction, "keys": keys, "gallery": gallery}
            return self.encode([inputs], budget, unit, depth=depth, device=device, **options)[0]

        _check_batch_size(batch_size)
        self.check_depth(depth)
        if device is not None:
            self.to(device)

        # Before the first batch, as what is given for each input may be of another list.
        num = len(inputs)
        budgets = row_budgets(budget, unit, num)
        _check_one_each("keys", keys, num)
        gallery = _galleries(gallery, num, self.backbone.embedding_dim)

        # Equal lengths pad little, and the slowest batch comes first, as its memory is the largest.
        order = range(num)
        if num > batch_size:
            order = sorted(order, key=lambda row: -_length(inputs[row]))
        batches = [order[start : start + batch_size] for start in range(0, num, batch_size)]

        # Pictures are decoded batch by batch: all of them together may exceed the memory.
        encoded = [
            self._encode_batch(
                self._sides(inputs, rows, instruction),
                _of_rows(budgets, rows),
                depth,
                None if keys is None else _of_rows(keys, rows),
                _of_rows(gallery, rows) if isinstance(gallery, list) else gallery,
            )
            for rows in _with_bar(batches or [order], show_progress_bar)
        ]
        return join_batches(encoded, order)

    def encode_query(
        self, inputs: Input | Sequence[Input], budget: Amounts = None, **options: Any
    ) -> Encoded | Embedding:
        """Embeds queries, as `encode` does: the gate decides which of them reason.

        Args:
            inputs: see `encode`.
            budget: see `decide`.
            **options: see `encode`.
        """
        return self.encode(inputs, budget, **options)

    def encode_document(
        self, inputs: Input | Sequence[Input], **options: Any
    ) -> Encoded | Embedding:
        """Embeds candidates, which are searched: directly, as in training and in the benchmarks.

        Args:
            inputs: see `encode`.
            **options: see `encode`.
        """
        return self.encode(inputs, depth=DIRECT, **options)

    @staticmethod
    def similarity(embeddings1: Vectors, embeddings2: Vectors) -> Tensor:
        """Returns cosines (B, M) of results, tensors or arrays of vectors.

        Args:
            embeddings1: B vectors, or a single one.
            embeddings2: M vectors, or a single one.

        Raises:
            ValueError: their vectors have different widths.
        """
        one_BD, other_MD = _unit(embeddings1), _unit(embeddings2)
        if one_BD.shape[1] != other_MD.shape[1]:
            raise ValueError(
                f"Vectors of {one_BD.shape[1]} and {other_MD.shape[1]} numbers cannot be compared: "
                "they come from two models."
            )
        return one_BD @ other_MD.T

    @staticmethod
    def similarity_pairwise(embeddings1: Vectors, embeddings2: Vectors) -> Tensor:
        """Returns cosines (B,) of vectors that stand side by side.

        Args:
            embeddings1: B vectors, or a single one.
            embeddings2: as many.

        Raises:
            ValueError: they are not as many.
        """
        one_BD, other_BD = _unit(embeddings1), _unit(embeddings2)
        if one_BD.shape != other_BD.shape:
            raise ValueError(
                f"Vectors of the shapes {tuple(one_BD.shape)} and {tuple(other_BD.shape)} do not "
                "stand side by side: expected equal shapes."
            )
        return (one_BD * other_BD).sum(1)

    def _sides(self, inputs: Sequence[Input], rows: Sequence[int], instruction: str) -> list[Side]:
        """Sides of some inputs; an error names the place of the input in the whole list."""
        batch = sides(_of_rows(inputs, rows), instruction, places=rows)
        for row, side in zip(rows, batch, strict=True):
            self.backbone.check_side(side, f"Input {row}")
        return batch

    def _encode_batch(
        self,
        batch: Sequence[Side],
        budgets: Sequence[Budget],
        depth: str | None,
        keys: Sequence[str] | None,
        gallery: Tensor | Sequence[Tensor] | None,
    ) -> Encoded:
        """Takes the four steps, and measures them."""
        amounts, units = [b.amount for b in budgets], [b.unit for b in budgets]

        start = time.perf_counter()
        direct = self.embed(batch)
        depths_B = self.decide(direct, amounts, units, depth=depth, keys=keys, gallery=gallery)
        decided = time.perf_counter()
        encoded = self.read(direct, self.write(direct, depths_B))
        vectors_BD = encoded.vectors_BD.cpu()  # waits for the device, so that its time counts
        end = time.perf_counter()

        # Writing and reading are shared by those that reason, all else by all.
        reasons_B = depths_B > 0 if depths_B.any() else torch.ones_like(depths_B, dtype=torch.bool)
        share_of_all = 1000 * (decided - start) / max(1, len(batch))
        share_of_reasoning = 1000 * (end - decided) / max(1, int(reasons_B.sum()))
        milliseconds_B = share_of_all + reasons_B.double() * share_of_reasoning
        return replace(encoded, vectors_BD=vectors_BD, milliseconds_B=milliseconds_B)

    @torch.inference_mode()
    def embed(self, batch: Sequence[Side]) -> DirectVectors:
        """Step 1: embeds B sides without a rationale.

        A backbone that writes by itself keeps its caches of all B prompts in the result.

        Raises:
            ValueError: a side that the backbone cannot read.
        """
        return self.reasoner.embed(batch)

    @torch.inference_mode()
    def decide(
        self,
        direct: DirectVectors,
        budget: Amounts = None,
        unit: Units = "invocation",
        *,
        depth: str | None = None,
        keys: Sequence[str] | None = None,
        gallery: Vectors | Sequence[Vectors] | None = None,
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
            depth: forces a depth, by its name, for every eligible side; the gate is not asked.
            keys: B of them, which break ties between equal gate scores; by default the content of
                each side.
            gallery: (N, D) vectors of the candidates, or B such tensors; only a gate whose state
                holds `scores` needs it.
            prompt_states: B hidden states (H,) that were measured earlier, None of a side without
                one; by default the last writer is asked, where the state holds a `prompt_state`.

        Returns:
            Depths (B,) int64 on the CPU.

        Raises:
            ValueError: a budget that cannot be met; there is no such depth; or the state holds what
                was not measured.
        """
        num = len(direct.sides)
        self.check_depth(depth)
        # A wrong budget is refused also where no side can reason.
        for amount, of_unit in dict.fromkeys(row_budgets(budget, unit, num)):
            self.check_budget(amount, of_unit)
            if amount is not None and depth not in (None, DIRECT):
                raise ValueError(
                    f"A budget ({amount:g}) is kept by the gate, and depth={depth!r} asks no gate: "
                    "leave one of them out."
                )
        _check_one_each("keys", keys, num)

        eligible_B = torch.tensor(list(map(self.can_reason, direct.sides)), dtype=torch.bool)
        if depth is not None:
            return torch.full((num,), self.depths.index(depth)) * eligible_B
        if self.head is None or not eligible_B.any():
            return torch.zeros(num, dtype=torch.long)

        # By content, a side has the same tie-break in any batch and run.
        keys = [side.digest for side in direct.sides] if keys is None else keys
        inputs = self._inputs(direct, eligible_B, gallery, prompt_states)
        logit_BA = self.logits(inputs.state(self.state))
        return self.calibration.decide(logit_BA, keys, budget, unit) * eligible_B

    @torch.inference_mode()
    def gate_scores(
        self,
        queries: Sequence[Input],
        *,
        instruction: str = "",
        gallery: Vectors | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
    ) -> GateScores:
        """Asks the gate about queries, whose labels nobody needs to know; nothing is written.

        Args:
            queries: see `encode`; they are read batch by batch.
            instruction: of those that bring none of their own.
            gallery: vectors of the candidates, for a gate whose state holds `scores`.
            batch_size: queries that are embedded together.
            show_progress_bar: see `encode`.

        Raises:
            ValueError: there is no gate, or a query cannot be read.
        """
        if self.head is None:
            raise ValueError(
                "This embedder has no gate, so there is no budget to calibrate: load a run of "
                "stage 4, such as runs/pocket/gate."
            )
        _check_batch_size(batch_size)

        num = len(queries)
        batches = [
            range(start, min(start + batch_size, num)) for start in range(0, num, batch_size)
        ]
        keys, logits = [], [torch.zeros(0, len(self.depths))]
        for rows in _with_bar(batches, show_progress_bar):
            direct = self.embed(self._sides(queries, rows, instruction))
            eligible_B = torch.tensor(list(map(self.can_reason, direct.sides)), dtype=torch.bool)
            if not eligible_B.any():
                continue

            inputs = self._inputs(direct, eligible_B, gallery, None)
            logits.append(self.logits(inputs.state(self.state))[eligible_B])
            eligible = zip(direct.sides, eligible_B.tolist(), strict=True)
            keys += [side.digest for side, can_reason in eligible if can_reason]
        return GateScores(tuple(keys), torch.cat(logits), num)

    def calibrate(
        self,
        queries: Sequence[Input],
        *,
        token_costs: Sequence[float] | None = None,
        **options: Any,
    ) -> BudgetCalibration:
        """Returns the calibration by which budgets are kept on queries like these.

        It is used once it is set, and saved with the embedder:
        `embedder.calibration = embedder.calibrate(queries)`.

        Args:
            queries: see `gate_scores`.
            token_costs: tokens that are expected at each depth, 0 for `direct`; None = the means of
                the calibration so far, whose milliseconds stay, too.
            **options: see `gate_scores`.

        Raises:
            ValueError: there is no gate, or none of the queries can reason.
        """
        scores = self.gate_scores(queries, **options)
        cost_A = self.calibration.mean_tokens() if token_costs is None else Tensor(token_costs)
        return scores.calibrate(cost_A, self.calibration.milliseconds)

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
        depths_B = written.depths_B * has_rationale_B
        return Encoded(vectors_BD, depths_B, tokens_B, rationales, self.depths)

    def check_depth(self, depth: str | None) -> None:
        """Refuses the name of a depth that the embedder does not have; None is no depth.

        Raises:
            ValueError: there is none of this name.
        """
        if depth is not None and depth not in self.depths:
            raise ValueError(
                f"depth {depth!r} is none of this embedder: choose one of {list(self.depths)}, or "
                "leave it out to ask the gate."
            )

    def check_budget(self, budget: float | None, unit: Unit = "invocation") -> None:
        """Refuses a budget that is wrong in itself, or one of an embedder without a gate.

        Raises:
            ValueError: an unknown unit, a negative budget, a share above 1; or there is no gate.
        """
        if budget is None:
            return
        check_budget(budget, unit)

        if self.head is None:
            raise ValueError(
                "This embedder has no gate, so it embeds directly and takes no budget: load a run "
                "of stage 4, such as runs/pocket/gate, or leave the budget out."
            )

    def logits(self, state_BS: Tensor) -> Tensor:
        """Returns the gate's logits (B, A) of states (B, S), on the CPU."""
        device = next(self.head.parameters()).device
        logit_BA: Tensor = self.head(state_BS.to(device))
        return logit_BA.cpu()

    def _inputs(
        self,
        direct: DirectVectors,
        eligible_B: Tensor,
        gallery: Vectors | Sequence[Vectors] | None,
        prompt_states: Sequence[Tensor | None] | None,
    ) -> GateInputs:
        """Measures what the gate's state is made of, and no more."""
        direct_BD = direct.vectors_BD.cpu()
        inputs = GateInputs.of_embedding(direct_BD)

        if "scores" in self.state and gallery is not None:
            # Galleries differ in size, so each row is scored by itself.
            galleries = _galleries(gallery, len(direct_BD), direct_BD.shape[1])
            galleries = [galleries] * len(direct_BD) if isinstance(galleries, Tensor) else galleries
            scored = zip(direct_BD.split(1), galleries or (), strict=True)
            shapes = [
                score_shape(x_1D @ y_ND.T / self.gallery_temperature) for x_1D, y_ND in scored
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
        """Moves backbone and gate; a writer runs where it was told to.

        Raises:
            ValueError: there is no such device.
        """
        try:
            self.backbone.to(device)
            if self.head is not None:
                self.head.to(device)
        except (RuntimeError, AssertionError) as error:  # the latter without a build for it
            reason = str(error).partition("\n")[0]
            raise ValueError(f"device {str(device)!r} cannot be used: {reason}") from None
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes embedder, gate, calibration and writer settings: all of them, or nothing.

        Without a gate it is the embedder alone.

        Files of writers (a prompt, a table) are copied; models that they run stay outside.
        """
        settings = {
            "state": self.state,
            "gallery_temperature": self.gallery_temperature,
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }

        # A gate that was saved there before is no part of an embedder without one.
        with whole_folder(folder, keep_others=True, replaced=("gate", "writers", FORMER)) as fresh:
            settings["writers"] = {
                depth: save_writer(writer, fresh, f"writers/{number}")
                for number, (depth, writer) in enumerate(self.writers.items(), start=1)
            }

            self.backbone.save_pretrained(fresh / "backbone")
            if self.head is not None:
                save_head(self.head, fresh / "gate")

            # Last: without it the folder is unfinished.
            write_json(fresh / SETTINGS, settings)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload an AdaptiveEmbedder",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        card: str | None = None,
    ) -> str:
        """Publishes all that `save_pretrained` writes, with a model card, as one commit.

        Args:
            repo_id: `org/name` on the hub.
            commit_message: of the commit.
            private: whether a model that is made here is private; None = as the account has it.
            token: of the account; None = the one that huggingface_hub finds.
            branch: that is committed to; None = the main branch.
            create_pr: True for a pull request.
            card: text of README.md; None = one that says what the model is and how it is loaded.

        Returns:
            The address of the commit.

        Raises:
            ValueError: the hub does not answer, or refuses.
        """
        with tempfile.TemporaryDirectory() as place:
            fresh = Path(place) / "release"
            self.save_pretrained(fresh)

            # The owner's own text goes before ours.
            text = card if card is not None else release_card(repo_id, self.backbone, self.writers)
            (fresh / "README.md").write_text(text, encoding="utf-8")

            return publish(
                fresh,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                branch=branch,
                create_pr=create_pr,
                delete_patterns=[SETTINGS, "backbone/*", "gate/*", "writers/*"],
            )

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        writers: Mapping[str, RationaleSource] | None = None,
        servers: Mapping[str, str | None] | Collection[str] = (),
        models: Models = (),
        allow_classes: Collection[str] = (),
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> AdaptiveEmbedder:
        """Loads what `save_pretrained` wrote, or `push_to_hub` published.

        Args:
            folder: may come from anywhere: nothing in it is executed, and it names its own files
                only, beside what is allowed here (docs/trust.md). Or `org/name` on the hub.
            writers: replace the saved ones.
            servers: hosts (`example.org`, `localhost:8000`) that a saved `ServerWriter` may ask,
                each with the environment variable whose value it is sent as a key, or None.
            models: folders and hub ids of models that saved writers may run; a mapping says where
                each one that the folder names lies here. A run below the
                folder of all runs may name any.
            allow_classes: classes of other packages that the folder may name
                (`mmemb.load_backbone`).
            revision: of a model of the hub: branch, tag or commit; None = the main branch.
            token: of an account of the hub; None = the one that huggingface_hub finds.
            cache_dir: of huggingface_hub; None = its own.
            local_files_only: True if the network may not be asked.

        Raises:
            FileNotFoundError: no embedder was saved there, or its writing was interrupted; the hub
                has none, or does not answer.
            ValueError: a setting is not what `save_pretrained` writes.
        """
        folder = model_folder(
            folder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        settings = read_settings(folder)
        where = folder / SETTINGS
        saved = with_new_names(settings.writers, str(where))
        if writers is not None and list(writers) != list(saved):
            raise ValueError(
                f"{folder} was saved with the depths {list(saved)}, but the writers given are for "
                f"{list(writers)}: expected one for each, in this order."
            )

        # Before anything is built: a link could lead out of the folder.
        permissions = Permissions.for_folder(folder, models, servers)
        check_links(folder)

        calibration = settings.calibration
        try:
            with allowing_classes(allow_classes):
                return cls(
                    load_backbone(str(folder / "backbone")),
                    load_head(folder / "gate") if calibration is not None else None,
                    calibration.record() if calibration is not None else None,
                    writers
                    or {
                        depth: load_saved_writer(
                            saved[depth], folder, permissions, f"{where}: writers.{depth}"
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


def _length(value: Input) -> int:
    """Estimates how long the model reads an input, without opening a file."""
    if isinstance(value, Side):
        return value.num_tokens
    text = value.get("text", "") if isinstance(value, dict) else value
    return Side(text).num_tokens if isinstance(text, str) else TOKENS_PER_PICTURE


def _check_batch_size(batch_size: Any) -> None:
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}.")


_Value = TypeVar("_Value")


def _of_rows(values: Sequence[_Value], rows: Sequence[int]) -> list[_Value]:
    return [values[row] for row in rows]


def _check_one_each(name: str, values: Any, num: int) -> None:
    """Refuses another number of values than of inputs; letters of a text are no values.

    Raises:
        ValueError: names the values.
    """
    if values is None:
        return
    is_list = isinstance(values, Sized) and hasattr(values, "__getitem__")
    if isinstance(values, str) or not is_list or len(values) != num:
        raise ValueError(
            f"{name} must be a list with one for each of {num} input(s), got "
            f"{reprlib.repr(values)}."
        )


def _galleries(gallery: Any, num: int, width: int) -> Tensor | list[Tensor] | None:
    """Returns the gallery of all inputs, or those of `num` inputs, as float32 on the CPU.

    Raises:
        ValueError: they are not as many, or no vectors of this width.
    """
    if gallery is None or isinstance(gallery, Tensor | np.ndarray | Encoded):
        return None if gallery is None else _gallery(gallery, width)
    _check_one_each("gallery", gallery, num)
    return [_gallery(each, width) for each in gallery]


def _gallery(vectors: Any, width: int) -> Tensor:
    vector_ND = vectors if isinstance(vectors, Tensor) else torch.as_tensor(np.asarray(vectors))
    if vector_ND.ndim != 2 or vector_ND.shape[1] != width or not len(vector_ND):
        raise ValueError(
            f"gallery has the shape {tuple(vector_ND.shape)}: expected vectors (N, {width}) of one "
            "candidate or more."
        )
    return vector_ND.cpu().float()


def _with_bar(batches: Sequence[Sequence[int]], shown: bool | None) -> Iterable[Sequence[int]]:
    """Shows how many batches are done, if that takes long or the caller asks for it."""
    if shown is False or (shown is None and len(batches) == 1):
        return batches

    # tqdm comes with the libraries of models, which the gate itself does not need.
    from tqdm import tqdm

    is_hidden = None if shown is None else False  # None = hidden unless this is a terminal
    return tqdm(batches, desc="encode", disable=is_hidden, delay=0 if shown else 3)


def _unit(vectors: Vectors) -> Tensor:
    """Returns vectors (B, D) at length 1, of whatever holds them."""
    vector_BD = torch.as_tensor(np.asarray(vectors)) if not isinstance(vectors, Tensor) else vectors
    return functional.normalize(torch.atleast_2d(vector_BD).float(), dim=-1)


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
