"""Rationales from vLLM in this very process: no server, and every draw of a batch in one call.

See docs/method.md section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from mmemb.llm.decoding.sampling import Sampling
from mmemb.llm.loading import revision_of
from mmemb.llm.prompts.few_shot import FewShotPrompt
from mmemb.llm.prompts.special_tokens import as_text, media_marks
from mmemb.rationales.writers.base import DrawingWriter, check_reads
from mmemb.rationales.writers.server import picture, short_seed
from mmemb.records.hashing import stable_hash
from mmemb.records.inputs import Side
from mmemb.records.rationales import GREEDY, Rationale
from mmemb.storage.spec import arguments_of

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

_OF_THE_MACHINE = {
    "tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization", "max_num_seqs",
    "max_num_batched_tokens", "cpu_offload_gb", "enforce_eager", "disable_log_stats",
}  # fmt: skip
"""Engine arguments that change speed and rounding alone, and are left out of the identity."""


@final
class VllmWriter(DrawingWriter):
    """Writes rationales with vLLM, prefix caching on: a few-shot prompt is read about once.

    It has been tested against a stand-in with vLLM's interface (that of 0.33), and not been run
    with vLLM itself. Equal seeds give equal text as far as vLLM does: its batching may round
    differently. It has no prompt state. Prompt files are those of `LanguageModelWriter`, the
    opening included.

    Args:
        model: local folder, or hub id with its `revision`.
        prompt: path of the few-shot file (`FewShotPrompt`).
        name: recorded as the rationales' writer.
        revision: commit of a hub model; of a local folder the weights are hashed.
        max_new_tokens: longest draw; one that is cut off has no answer and is dropped later.
        temperature: temperature of sampled draws; the greedy draw is one at 0.
        top_p: nucleus of sampled draws.
        top_k: sampled draws come from this many likeliest tokens.
        reads: modalities that the model understands, of `text`, `image`, `video` (frames, as
            pictures in their order); its chat template must know parts of type `image`.
        max_image_side: larger pictures are shrunk to this many pixels; null takes them as they are.
        max_pictures: most pictures and frames of a side.
        dtype: type of the weights, by its name in vLLM.
        engine: further arguments of `vllm.LLM`, such as `max_model_len` or
            `tensor_parallel_size`.
    """

    file_arguments: ClassVar[tuple[str, ...]] = ("prompt",)
    model_arguments: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(
        self,
        model: str,
        prompt: str,
        name: str = "vllm",
        revision: str | None = None,
        max_new_tokens: int = 96,
        temperature: float = 0.8,
        top_p: float = 0.95,
        top_k: int = 50,
        reads: Sequence[str] = ("text",),
        max_image_side: int | None = None,
        max_pictures: int = 8,
        dtype: str = "auto",
        engine: dict[str, Any] | None = None,
    ) -> None:
        self.name, self.model_id, self._commit = name, str(model), revision
        self.prompt_path, self.prompt = str(prompt), FewShotPrompt.load(prompt)
        self.concepts = self.prompt.concepts

        self.sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
        self.reads, self.dtype, self.engine = check_reads(reads), dtype, dict(engine or {})
        self.max_image_side, self.max_pictures = max_image_side, max_pictures

        if self.max_pictures < 1 or (self.max_image_side or 1) < 1:
            raise ValueError(
                f"max_pictures {self.max_pictures}, max_image_side {self.max_image_side}: expected "
                "at least 1."
            )

        if self._commit is None and not Path(self.model_id).is_dir():
            raise ValueError(
                f"model {self.model_id!r} is no folder. If it is the id of a hub model, give its "
                "commit in `revision`: without it nobody could tell which weights wrote."
            )

    def config(self) -> dict[str, Any]:
        init_args = {"model": self.model_id, "prompt": self.prompt_path, "revision": self._commit}
        return arguments_of(self, **init_args, reads=sorted(self.reads), **asdict(self.sampling))

    def identity(self) -> str:
        """Covers what is asked of which weights, not how the machine is used for it."""
        engine = sorted((k, v) for k, v in self.engine.items() if k not in _OF_THE_MACHINE)
        parts = (self.name, self.prompt.identity, self.model, self.revision, self.sampling)
        settings = (sorted(self.reads), self.max_image_side, self.dtype, engine)
        return f"{stable_hash('vllm', *parts, *settings, bits=64):016x}"

    @property
    def model(self) -> str:
        """The model's name for a reader: a local folder's without the path to it."""
        folder = Path(self.model_id)
        return folder.name if folder.is_dir() else self.model_id

    @cached_property
    def revision(self) -> str:
        """Hash of a local folder's weights, or the commit of a hub model."""
        return revision_of(self.model_id, self._commit)

    def _draw(self, seeded_sides: Sequence[tuple[Side, int]]) -> list[Rationale]:
        """Makes all draws in one call.

        Raises:
            ValueError: vLLM is not installed, or a side's pictures are too many or not decoded.
        """
        if not seeded_sides:
            return []

        # Once for all draws about a side: its pictures are shrunk here.
        sides = {side.digest: side for side, _ in seeded_sides}
        prompts = {digest: self._asked(side) for digest, side in sides.items()}
        replies = self._llm.generate(
            [prompts[side.digest] for side, _ in seeded_sides],
            [self._params(seed) for _, seed in seeded_sides],
            use_tqdm=False,
        )
        rows = zip(replies, seeded_sides, strict=True)
        return [self._rationale(reply.outputs[0], seed) for reply, (_, seed) in rows]

    def _asked(self, side: Side) -> dict[str, Any]:
        """Makes a prompt for vLLM: tokens, so that no second start token is put before them."""
        tokenizer, pictures = self._llm.get_tokenizer(), self._pictures(side)
        question = as_text(self.prompt.question(side), tokenizer, media_marks(tokenizer))

        # vLLM puts the tokens of each picture where the template has left its place.
        text = self.prompt.render(tokenizer, question, [{"type": "image"} for _ in pictures])
        tokens = tokenizer.encode(text, add_special_tokens=False)
        media = {"multi_modal_data": {"image": pictures}} if pictures else {}
        return {"prompt_token_ids": tokens, **media}

    def _pictures(self, side: Side) -> list[Picture]:
        if len(side.media) > self.max_pictures:
            raise ValueError(
                f"A side holds {len(side.media)} pictures or frames, more than max_pictures "
                f"({self.max_pictures}) of the writer {self.name!r}. Raise it, or prepare fewer."
            )
        return [picture(media, self.max_image_side) for media in side.media]

    def _params(self, seed: int) -> Any:
        sampling = self.sampling
        shared: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "stop": [self.prompt.closing] if self.prompt.closing else None,
            "include_stop_str_in_output": True,
            "logprobs": 0,  # of the drawn token alone, at temperature 1: without it, no sum
        }

        if seed == GREEDY:
            return _vllm().SamplingParams(temperature=0.0, **shared)
        drawn = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
        return _vllm().SamplingParams(**drawn, seed=short_seed(seed), **shared)

    def _rationale(self, output: Any, seed: int) -> Rationale:
        complete = output.finish_reason == "stop" or self.prompt.finished(output.text)
        log_probability = output.cumulative_logprob

        return Rationale(
            text=self.prompt.rationale_text(output.text, complete),
            writer=self.name,
            model=self.model,
            revision=self.revision,
            prompt=self.prompt.identity,
            decoding=self.sampling.describe(seed),
            seed=seed,
            num_tokens=len(output.token_ids),
            log_probability=None if log_probability is None else round(float(log_probability), 4),
            depth=self.prompt.depth,
        )

    @cached_property
    def _llm(self) -> Any:
        """The engine, made at the first `write`: a run that finds all its draws never starts it."""
        looks = bool(self.reads & {"image", "video"})
        arguments: Mapping[str, Any] = {
            "model": self.model_id,
            "revision": self._commit,
            "dtype": self.dtype,
            "enable_prefix_caching": True,
            **({"limit_mm_per_prompt": {"image": self.max_pictures}} if looks else {}),
            # Last, so that the arguments of the user win.
            **self.engine,
        }
        return _vllm().LLM(**arguments)


def _vllm() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise ValueError(
            f"VllmWriter needs vLLM, which cannot be imported here ({error}). Install it into an "
            "environment of its own by `pip install -e '.[vllm]'`, or start a server and use "
            "ServerWriter (docs/servers.md)."
        ) from None
    return vllm
