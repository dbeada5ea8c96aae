"""Running a function in two processes that talk by gloo."""

import os
import sys

import torch
from torch import distributed, multiprocessing


def run_twice(function, folder, *arguments):
    """Call ``function(rank, *arguments)`` in two processes; return both results.

    ``function`` must be importable in the child: define it in a module of this folder.
    """
    multiprocessing.spawn(_start, (function, str(folder), arguments), nprocs=2)
    return [torch.load(f"{folder}/result{rank}.pt", weights_only=True) for rank in range(2)]


def _start(rank, function, folder, arguments):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    try:
        torch.save(function(rank, *arguments), f"{folder}/result{rank}.pt")
        distributed.barrier()  # neither hangs up while the other still listens
    finally:
        distributed.destroy_process_group()
    # Past the interpreter's own end, which a thread of gloo or of autograd that is still there now
    # and then turns into an abort.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def concept_gradients(rank, state, batches):
    """Gradients of the concept losses under DDP, each process with its share of the images."""
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(build_concept_model(state))
    losses = model(batches[rank])
    sum(losses.values()).backward()
    return {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


def build_concept_model(state=None):
    """A foreign model with SGR and no dropout."""
    from foreign import ForeignModel, TinyBackbone
    from sgr import add_reasoning, supervise_concepts
    from sgr.modeling.reasoning import SemanticGlobalReasoning
    from sgr.modeling.supervision import ConceptCriterion, ConceptMatcher

    reasoning = SemanticGlobalReasoning(
        16, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, dropout=0.0, stride=4
    )
    model = supervise_concepts(ForeignModel)(
        add_reasoning(TinyBackbone(), {"stride4": reasoning}),
        concept_criterion=ConceptCriterion(ConceptMatcher(max_active=4)),
    )
    if state is not None:
        model.load_state_dict(state)
    return model
