"""The mean loss of answers that are given: what training minimises, on other data."""

from collections.abc import Sequence

import torch

from icarus.training.batches import collate
from icarus.training.examples import Example
from icarus.training.loss import AnswerLoss


@torch.no_grad()
def mean_answer_loss(loss: AnswerLoss, examples: Sequence[Example], batch_size: int) -> float:
    """Nats an answer token, end tokens included. Leaves the module in the mode that it had."""
    device = next(loss.parameters()).device
    ordered = sorted(examples, key=len)
    training = loss.training
    loss.eval()
    total = 0.0
    for start in range(0, len(ordered), batch_size):
        batch = collate(ordered[start : start + batch_size]).to(device)
        total += loss(batch.input_ids, batch.positions, batch.labels).item()
    loss.train(training)
    return total / sum(len(example.answer_ids) for example in examples)
