"""Fine-tuning of a chat model on rationales: the M-step of a second EM round.

See docs/method.md section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from torch import Tensor

from mmemb.llm.decoding.text_model import read_behind, read_prefix
from mmemb.llm.lora import LoraSettings
from mmemb.llm.prompts.chat_model import ChatModel
from mmemb.losses.terms import LossTerm
from mmemb.rationales.supervised import ReplyTokens, ReplyTuner, pack_replies, reply_loss
from mmemb.records.inputs import Side
from mmemb.records.rationales import Rationale


@final
class ChatTuner(ReplyTuner):
    """A language model whose LoRA updates learn what it should have written.

    It reads the prompt of inference. The few-shot prefix is read once a step, with gradient, and
    shared by the rows: exact, since the updates change its keys and values at every step, and 350
    tokens a step instead of 350 a row. The updates are no module of this object; the
    trainer takes `parameters`.

    Args:
        chat: the model, which is changed in place; without an adapter.
        lora: rank, scale, layers.
        seed: seed of the updates' start.
    """

    def __init__(self, chat: ChatModel, lora: LoraSettings, seed: int = 0) -> None:
        if chat.adapter:
            raise ValueError(
                f"The worker to be fitted has the adapter {chat.adapter}, and a second one on top "
                "of it could not be saved. Every EM round fits the base model anew: leave "
                "`adapter` out and give the rationales kept in the last round."
            )

        self._chat, self._shared = chat, chat.shares_prefix  # asked before there are updates
        super().__init__(chat.model, chat.model, chat.label, lora, seed)

    def loss(self, sides: Sequence[Side], rationales: Sequence[Rationale]) -> LossTerm:
        """See `ReplyTuner.loss`; the rationales are of the prompt's depth."""
        chat = self._chat
        prompts = [chat.question_ids(chat.prompt.question(side)) for side in sides]
        replies = [chat.reply_ids(rationale) for rationale in rationales]
        if not self._shared:
            prompts = [[*chat.prefix_ids, *prompt] for prompt in prompts]

        tokens = pack_replies(prompts, replies, chat.model.device)
        return reply_loss(self._logits(tokens), tokens)

    def _logits(self, tokens: ReplyTokens) -> Tensor:
        """Computes the logits (B, T + 1, V), from the column before the longest reply on."""
        model = self._chat.model
        prefix = read_prefix(model, self._chat.prefix_ids) if self._shared else None
        keep = tokens.longest_reply + 1
        output = read_behind(model, prefix, tokens.ids_BL, tokens.mask_BL, keep, use_cache=False)
        return output.logits  # type: ignore[no-any-return]
