"""What each of several processes does with its share of a batch."""

import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from protoseg import PrototypeClassifier

OPTIONS = {"in_channels": 6, "num_outputs": 4, "num_prototypes": 3, "momentum": 0.5}


def train_shares(rank, state, steps):
    """Train on ``steps[i][rank]``, pairs of features and labels.

    Returns:
        The gradients after the last step, and the prototypes after each.
    """
    torch.manual_seed(rank)  # as in a training
    model = PrototypeClassifier(**OPTIONS)
    if rank == 0:  # which shares its parameters, but no buffers
        model.load_state_dict(state)
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    return train(model, parallel, [step[rank] for step in steps])


def train(model, forward, batches):
    prototypes = []
    for features, labels in batches:
        model.zero_grad()
        prediction = forward(features, labels)
        # Its mean over processes is that of the whole batch, however many cells are labelled.
        task = F.cross_entropy(prediction.logits, labels, ignore_index=255, reduction="sum")
        (task / labels.numel() + 100 * sum(prediction.losses.values())).backward()
        prototypes.append(model.prototypes.clone())
    return {name: each.grad for name, each in model.named_parameters()}, prototypes
