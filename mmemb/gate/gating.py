"""The gate of METHOD 7: depth heads, rewards and policy gradients (thresholds: `budget.py`).

Depth 0 is direct. Shapes: B states, S state width, A depths, J sampled actions of a state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mmemb.gate.budget import unit_hash
from mmemb.losses.infonce import LossTerm
from mmemb.records.schema import check_arguments, read_json
from mmemb.records.text import quote
from mmemb.storage.files import whole_folder
from mmemb.storage.lineage import write_json
from mmemb.storage.tensor_files import read_weights


class DepthHead(nn.Module, ABC):
    """Maps a state to logits over depths; by its signature it never sees a rationale.

    Attributes:
        sources: arguments of the constructor that say where something is read. A saved head needs
            none of them.
    """

    sources: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def forward(self, state_BS: Tensor) -> Tensor:
        """(B, S) states to (B, A) logits."""

    @abstractmethod
    def standardise(self, state_NS: Tensor) -> None:
        """Learns location and scale of the states from those it will be trained on."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, to build the head again."""


@final
class MlpDepthHead(DepthHead):
    """One hidden layer over standardised states; starts undecided (all logits 0).

    Args:
        state_dim: width of the state.
        num_depths: 2 = direct or full, as in the paper.
        hidden_dim: width of the hidden layer; 0 makes the head linear.
        dropout: on the standardised state and the hidden layer.
    """

    mean_S: Tensor
    scale_S: Tensor

    def __init__(
        self, state_dim: int, num_depths: int = 2, hidden_dim: int = 64, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self._settings = {"state_dim": state_dim, "num_depths": num_depths}
        self._settings |= {"hidden_dim": hidden_dim, "dropout": dropout}
        self.register_buffer("mean_S", torch.zeros(state_dim))
        self.register_buffer("scale_S", torch.ones(state_dim))
        hidden: list[nn.Module] = []
        if hidden_dim:
            hidden = [nn.Linear(state_dim, hidden_dim), nn.GELU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(nn.Dropout(dropout), *hidden)
        self.output = nn.Linear(hidden_dim or state_dim, num_depths)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, state_BS: Tensor) -> Tensor:
        state_BS = (state_BS.to(self.mean_S.dtype) - self.mean_S) / self.scale_S
        return self.output(self.hidden(state_BS))

    @torch.no_grad()
    def standardise(self, state_NS: Tensor) -> None:
        assert len(state_NS), "no state has no mean: a gate needs eligible queries"
        self.mean_S.copy_(state_NS.mean(0))
        scale_S = state_NS.std(0, unbiased=False)
        self.scale_S.copy_(torch.where(scale_S > 1e-6, scale_S, 1.0))  # a constant says nothing

    def settings(self) -> dict[str, Any]:
        return dict(self._settings)


def save_head(head: DepthHead, folder: str | Path) -> None:
    """Writes `weights.pt` (plain tensors) and `config.json` with class and settings, together."""
    with whole_folder(folder, keep_others=True) as fresh:
        torch.save(head.state_dict(), fresh / "weights.pt")
        write_json(fresh / "config.json", {"class": type(head).__name__, **head.settings()})


def load_head(folder: str | Path) -> DepthHead:
    """Reads what `save_head` wrote; runs no code from the folder."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}/config.json is missing: {folder} holds no saved gate.")
    where = f"{folder}/config.json"
    settings = read_json(folder / "config.json", dict[str, Any])

    import_module("mmemb.gate.first_token")  # a head of ours that lives in a file of its own
    kinds = {kind.__name__: kind for kind in DepthHead.__subclasses__()}
    if (name := str(settings.pop("class", None))) not in kinds:
        raise ValueError(
            f"{folder}/config.json names the depth head {name!r}; known are {sorted(kinds)}. "
            "Import the module that defines it first."
        )

    if named := sorted(settings.keys() & set(kinds[name].sources)):
        raise ValueError(
            f"{folder}/config.json: {named[0]} names {settings[named[0]]!r}, and a saved gate "
            "needs nothing but its own files. Remove the key."
        )
    check_arguments(kinds[name], settings, where, "Fit the gate again.")

    try:
        head = kinds[name](**settings)
        head.load_state_dict(read_weights(folder / "weights.pt"))
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{folder} holds no whole gate: config.json and weights.pt do not fit "
            f"({quote(error)}). Fit the gate again."
        ) from None
    return head


def reward_BA(utility_BA: Tensor, cost_BA: Tensor, *, clip: float, price: float) -> Tensor:
    """clip(u_a - u_0, -c, c) - lambda * cost(a), METHOD 7.

    >>> reward_BA(torch.tensor([[-5.0, -1.0]]), torch.tensor([[0.0, 40.0]]), clip=3.0, price=0.01)
    tensor([[0.0000, 2.6000]])
    """
    return (utility_BA - utility_BA[:, :1]).clamp(-clip, clip) - price * cost_BA


def exact_loss(logit_BA: Tensor, reward_BA: Tensor, valid_B: Tensor | None = None) -> LossTerm:
    """Minus the expected reward, in closed form over cached utilities."""
    logit_BA, reward_BA, valid_B = _without_invalid(logit_BA, reward_BA, valid_B)
    return _term(-(logit_BA.softmax(1) * reward_BA).sum(1), valid_B)


def reinforce_loss(
    logit_BA: Tensor,
    reward_BA: Tensor,
    num_samples: int = 4,
    generator: torch.Generator | None = None,
    *,
    uniform_BJ: Tensor | None = None,
    valid_B: Tensor | None = None,
) -> LossTerm:
    """REINFORCE with the mean of the state's OTHER samples as baseline.

    The mean of its gradient equals that of `exact_loss`; its value means nothing.

    Args:
        logit_BA: of the policy.
        reward_BA: of every depth; only those of sampled depths are read.
        num_samples: actions per state, at least 2.
        generator: where the noise comes from, unless
        uniform_BJ: noise in [0, 1) is given (`uniform_by_key`: the same on any number of ranks).
        valid_B: states that take part (eligible queries); the others may hold anything.
    """
    logit_BA, reward_BA, valid_B = _without_invalid(logit_BA, reward_BA, valid_B)
    if uniform_BJ is None:
        noise_device = generator.device if generator else logit_BA.device
        shape = (len(logit_BA), num_samples)
        uniform_BJ = torch.rand(shape, generator=generator, device=noise_device)
    num_samples = uniform_BJ.shape[1]
    if num_samples < 2:
        raise ValueError(f"a leave-one-out baseline needs 2 samples per state, not {num_samples}")

    log_policy_BA = logit_BA.log_softmax(1)
    action_BJ = _sample(log_policy_BA.detach(), uniform_BJ.to(logit_BA.device))
    reward_BJ = reward_BA.gather(1, action_BJ)

    # A baseline without the sample itself leaves the gradient's mean as it is.
    others_BJ = (reward_BJ.sum(1, keepdim=True) - reward_BJ) / (num_samples - 1)
    advantage_BJ = (reward_BJ - others_BJ).detach()
    return _term(-(advantage_BJ * log_policy_BA.gather(1, action_BJ)).mean(1), valid_B)


def grpo_loss(
    logit_BA: Tensor,
    reward_BA: Tensor,
    old_logit_BA: Tensor,
    *,
    uniform_BJ: Tensor,
    ratio_clip: float = 0.2,
    valid_B: Tensor | None = None,
) -> LossTerm:
    """GRPO: the clipped surrogate with advantages normalised within the group of a state's samples.

    Biased: with two depths a mixed group's advantages depend on its split alone, so the reward gap
    counts by its sign, not by its size.

    Args:
        logit_BA: of the policy that is trained.
        reward_BA: of every depth; only those of sampled depths are read.
        old_logit_BA: of the policy that samples, some steps old; no gradient.
        uniform_BJ: noise in [0, 1), J >= 2 samples per state.
        ratio_clip: how far the ratio of the two policies may move a sample.
        valid_B: states that take part.
    """
    if uniform_BJ.shape[1] < 2:
        raise ValueError(f"a group needs 2 samples per state, not {uniform_BJ.shape[1]}")

    old_logit_BA, _, _ = _without_invalid(old_logit_BA, reward_BA, valid_B)
    logit_BA, reward_BA, valid_B = _without_invalid(logit_BA, reward_BA, valid_B)
    old_BA = old_logit_BA.detach().log_softmax(1)
    action_BJ = _sample(old_BA, uniform_BJ.to(logit_BA.device))
    reward_BJ = reward_BA.gather(1, action_BJ)

    # Equal rewards have no spread, and no advantage either.
    spread_B1 = reward_BJ.std(1, keepdim=True, unbiased=False)
    advantage_BJ = (reward_BJ - reward_BJ.mean(1, keepdim=True)) / spread_B1.clamp(min=1e-6)

    log_ratio_BJ = logit_BA.log_softmax(1).gather(1, action_BJ) - old_BA.gather(1, action_BJ)
    ratio_BJ = log_ratio_BJ.exp()
    clipped_BJ = ratio_BJ.clamp(1 - ratio_clip, 1 + ratio_clip)
    surrogate_BJ = torch.minimum(ratio_BJ * advantage_BJ, clipped_BJ * advantage_BJ)
    return _term(-surrogate_BJ.mean(1), valid_B)


def supervised_loss(logit_BA: Tensor, reward_BA: Tensor, valid_B: Tensor | None = None) -> LossTerm:
    """Cross-entropy against the best depth, weighted by what the worst choice would lose.

    The baseline of a gate without reinforcement: it knows every depth's reward.
    """
    logit_BA, reward_BA, valid_B = _without_invalid(logit_BA, reward_BA, valid_B)
    weight_B = reward_BA.amax(1) - reward_BA.amin(1)
    loss_B = -logit_BA.log_softmax(1).gather(1, reward_BA.argmax(1, keepdim=True))[:, 0]
    return _term(weight_B * loss_B, valid_B)


def uniform_by_key(keys: Sequence[str], num_samples: int, seed: int, step: int) -> Tensor:
    """(B, J) noise in [0, 1) that depends on key, seed and step alone, not on batch or rank.

    Seed and step are hashed apart: with their sum two seeds would be one training, some steps
    later.
    """
    draws = [[unit_hash("gate", seed, step, j, key) for j in range(num_samples)] for key in keys]
    return torch.tensor(draws, dtype=torch.float64).reshape(len(keys), num_samples)


def _sample(log_policy_BA: Tensor, uniform_BJ: Tensor) -> Tensor:
    edge_BA = log_policy_BA.exp().cumsum(1)[:, :-1].contiguous()
    return torch.searchsorted(edge_BA, uniform_BJ.to(edge_BA.dtype).contiguous(), right=True)


def _without_invalid(
    logit_BA: Tensor, reward_BA: Tensor, valid_B: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and rewards with zeros in rows that do not take part, and which rows do.

    A loss that is masked at its end alone still has gradient 0 * NaN there, which is NaN.
    """
    if valid_B is None:
        valid_B = torch.ones(len(logit_BA), dtype=torch.bool, device=logit_BA.device)
    valid_B = valid_B.bool()
    kept_B1 = valid_B[:, None]
    return torch.where(kept_B1, logit_BA, 0.0), torch.where(kept_B1, reward_BA, 0.0), valid_B


def _term(value_B: Tensor, valid_B: Tensor) -> LossTerm:
    return LossTerm(torch.where(valid_B, value_B, 0.0).sum(), valid_B.sum())


def oracle_depth(utility_BA: Tensor, cost_BA: Tensor) -> Tensor:
    """The cheapest depth that reaches the query's best utility, (B,).

    >>> oracle_depth(torch.tensor([[-1.0, -1.0], [-2.0, -1.0]]), torch.tensor([[0.0, 40.0]] * 2))
    tensor([0, 1])
    """
    best_BA = utility_BA >= utility_BA.amax(1, keepdim=True)
    return cost_BA.masked_fill(~best_BA, torch.inf).argmin(1)


def per_task_rule(reward_BA: Tensor, tasks: Sequence[str]) -> dict[str, int]:
    """The best constant depth of each task, of equals the cheaper.

    >>> per_task_rule(torch.tensor([[0.0, 1.0], [0.0, -2.0], [0.0, 1.0]]), ["a", "b", "a"])
    {'a': 1, 'b': 0}
    """
    rows = {task: [i for i, other in enumerate(tasks) if other == task] for task in tasks}
    return {task: int(reward_BA[chosen].mean(0).argmax()) for task, chosen in rows.items()}


def best_threshold(
    score_N: Sequence[float], gain_N: Sequence[float], weight_N: Sequence[float]
) -> float:
    """The threshold above which taking the gain is worth most in all; of equals the highest.

    Lies halfway between two neighbouring scores; infinite where nothing, or everything, is taken.

    Args:
        score_N: what is compared with the threshold.
        gain_N: what each row gains if it is above.
        weight_N: how much each row counts.

    >>> best_threshold([1.0, 2.0, 3.0], [-1.0, 2.0, -1.0], [1.0, 1.0, 1.0])
    1.5
    """
    rows = sorted(zip(score_N, gain_N, weight_N, strict=True), reverse=True)
    below_N = [score for score, _, _ in rows[1:]] + [-math.inf] * bool(rows)
    best, total, threshold = 0.0, 0.0, math.inf
    for (score, gain, weight), below in zip(rows, below_N, strict=True):
        total += gain * weight
        if below < score and total > best:
            best, threshold = total, (score + below) / 2
    return threshold
