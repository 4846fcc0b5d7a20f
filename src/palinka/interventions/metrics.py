"""Outcomes of runs: of prompts, where the answer is predicted, or of whole texts."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from palinka.errors import InputError, did_you_mean


class Targets(NamedTuple):
    """Answers, and clean logits, that the outcomes of several rows refer to.

    Attributes:
        answers: Token ids, `(rows, k)`, padded.
        answer_weights: Weights of their mean, 0 for padding.
        wrong: Ids of wrong answers, as for `answers`.
        wrong_weights: Weights of their mean.
        prompts: Number of each row's prompt.
        clean: Logits of the clean prompts, `(prompts, vocabulary)`.
    """

    answers: Tensor
    answer_weights: Tensor
    wrong: Tensor
    wrong_weights: Tensor
    prompts: Tensor
    clean: Tensor

    @classmethod
    def of(
        cls, answers: Sequence[Sequence[int]], wrong: Sequence[Sequence[int]], clean: Tensor
    ) -> "Targets":
        """Pad the ids of each prompt, one or more."""
        prompts = torch.arange(len(clean), device=clean.device)
        return cls(*padded_sets(answers, clean), *padded_sets(wrong, clean), prompts, clean)

    def of_prompts(self, prompts: Tensor) -> "Targets":
        """The targets of some of the prompts, also repeated."""
        rows = {name: self._asdict()[name][prompts] for name in self._fields[:-1]}
        return self._replace(**rows)

    def columns(self) -> tuple[Tensor, "Targets"]:
        """Ids of all answers, `(rows, k)`, and targets in logits of these alone."""
        ids = torch.cat((self.answers, self.wrong), 1)
        columns = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        right = self.answers.shape[1]
        return ids, self._replace(answers=columns[:, :right], wrong=columns[:, right:])


def padded_sets(sets: Sequence[Sequence[int]], like: Tensor) -> tuple[Tensor, Tensor]:
    """Ids of each set, `(sets, most)`, and the weights of their mean, 0 for padding."""
    rows = [torch.tensor(list(ids), device=like.device) for ids in sets]
    weights = [torch.full(row.shape, 1 / len(row), device=row.device).double() for row in rows]
    return pad_sequence(rows, batch_first=True), pad_sequence(weights, batch_first=True)


def logit_difference(logits: Tensor, targets: Targets) -> Tensor:
    """Logit of the answer minus that of the wrong one; means over sets of them."""
    right = logits.gather(1, targets.answers).double() * targets.answer_weights
    wrong = logits.gather(1, targets.wrong).double() * targets.wrong_weights
    return right.sum(1) - wrong.sum(1)


def log_probability(logits: Tensor, targets: Targets) -> Tensor:
    """Log probability of the answer in nats; the mean over a set of them."""
    logs = logits.double().log_softmax(1).gather(1, targets.answers)
    return (logs * targets.answer_weights).sum(1)


def probability(logits: Tensor, targets: Targets) -> Tensor:
    """Probability of the answer, which hides negative effects (arXiv:2309.16042)."""
    logs = logits.double().log_softmax(1).gather(1, targets.answers)
    return (logs.exp() * targets.answer_weights).sum(1)


def rank(logits: Tensor, targets: Targets) -> Tensor:
    """Number of tokens with a larger logit than the answer: 0 for the prediction."""
    answers = logits.gather(1, targets.answers)
    larger = [(logits > answers[:, k, None]).sum(1) for k in range(answers.shape[1])]
    return (torch.stack(larger, 1) * targets.answer_weights).sum(1)


def kl(logits: Tensor, targets: Targets) -> Tensor:
    """KL divergence in nats of the prediction from that of the clean prompt."""
    clean = targets.clean.double().log_softmax(1)[targets.prompts]
    return (clean.exp() * (clean - logits.double().log_softmax(1))).sum(1)


TOP = "most probable token"  # its id: to compare, not an outcome to average
METRICS: dict[str, Callable[[Tensor, Targets], Tensor]] = {
    function.__name__: function
    for function in (logit_difference, log_probability, probability, rank, kl)
}


class Text(NamedTuple):
    """A text as the model reads it: ids, logits and final states, one row for each token."""

    ids: Tensor
    logits: Tensor
    states: Tensor  # after the final norm


def cross_entropy(text: Text, _: Text) -> Tensor:
    """Mean cross-entropy in nats of all tokens but the first."""
    logs = text.logits[:-1].double().log_softmax(1)
    return -logs.gather(1, text.ids[1:, None]).mean()


def text_kl(text: Text, clean: Text) -> Tensor:
    """Mean KL divergence in nats of the predictions from the clean ones, first token left out."""
    logs, others = (each.logits[:-1].double().log_softmax(1) for each in (text, clean))
    return (others.exp() * (others - logs)).sum(1).mean()


def hidden_change(text: Text, clean: Text) -> Tensor:
    """Frobenius norm of the change of the final states, first token left out."""
    return (text.states[1:].double() - clean.states[1:].double()).square().sum().sqrt()


def cosine(text: Text, _: Text) -> Tensor:
    """Mean cosine of the final states of each two tokens, first token left out."""
    units = functional.normalize(text.states[1:].double(), dim=1)
    return (units.sum(0).square().sum() - len(units)) / (len(units) * (len(units) - 1))


TEXT_METRICS: dict[str, Callable[[Text, Text], Tensor]] = {
    "kl": text_kl, "cross_entropy": cross_entropy, "hidden_change": hidden_change, "cosine": cosine,
}  # fmt: skip


def find_metrics(names: Sequence[str], of_texts: bool = False) -> dict[str, Callable[..., Tensor]]:
    """Outcomes by name: `(logits, targets) -> (rows,)`, or `(text, clean text) -> ()`."""
    known: dict[str, Callable[..., Tensor]] = {**(TEXT_METRICS if of_texts else METRICS)}
    kind, offered = "texts" if of_texts else "prompts", list(known)
    if not of_texts:
        known[TOP] = lambda logits, targets: logits.argmax(1).double()
    if unknown := [name for name in names if name not in known]:
        hint = did_you_mean(unknown[0], offered)
        raise InputError(f"there is no outcome {unknown[0]!r} of {kind}{hint}")
    return {name: known[name] for name in names}


def rounding_of(metric: str, unchanged: NDArray[np.float64], logits: Tensor) -> NDArray[np.float64]:
    """Largest effect, `(prompts,)`, that the rounding of the logits of the base may make."""
    eps = torch.finfo(torch.promote_types(logits.dtype, torch.float32)).eps
    rounding: NDArray[np.float64] = 16 * eps * logits.abs().amax(1).double().cpu().numpy()
    if metric in ("hidden_change", "cosine"):  # whatever the logits are
        return np.full_like(rounding, 16 * eps)
    if metric == "probability":  # rounded as its logarithm is
        return rounding * unchanged
    if metric == "kl":  # from the base itself, of second order, and computed in float64
        second = np.maximum(rounding, np.finfo(np.float64).eps / eps)
        return rounding * np.where(unchanged == 0, second, 1.0)
    return rounding
