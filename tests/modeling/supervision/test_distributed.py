"""Two processes with an image each learn what one process with both learns."""

import pytest
import torch

from foreign import tiny_inputs
from two_processes import build_concept_model, concept_gradients, run_twice


@pytest.mark.parametrize(
    "counts, compiled",
    [((3, 1), False), ((1, 0), True)],  # starting two processes takes ten seconds
    ids=["unequal", "fewer components than processes, compiled"],
)
def test_gradients_are_those_of_the_joined_batch(tmp_path, counts, compiled):
    batch = [tiny_inputs(sizes=((32, 24),), num_components=max(count, 1))[0] for count in counts]
    for image, count in zip(batch, counts):
        if count == 0:
            image["component_map"].fill_(-1)
            image["component_classes"] = torch.zeros(0, dtype=torch.int64)
    model = build_concept_model()
    losses = model(batch)
    sum(losses.values()).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    batches = [[image] for image in batch]
    for gradients in run_twice(concept_gradients, tmp_path, model.state_dict(), batches, compiled):
        for name, wanted in expected.items():
            assert torch.allclose(gradients[name], wanted, rtol=1e-4, atol=1e-7), name
