"""Running a function in two processes that talk by gloo."""

import os
import signal
import sys
import time
from pathlib import Path

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


def concept_gradients(rank, state, batches, compiled):
    """Gradients of the concept losses under DDP, each process with its share of the images."""
    from torch.nn.parallel import DistributedDataParallel

    model = build_concept_model(state)
    if compiled:
        # Without kernels, whose compilation takes long.
        model.backbone.compile(backend="aot_eager")
    model = DistributedDataParallel(model)
    losses = model(batches[rank])
    sum(losses.values()).backward()
    return {name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}


def pixel_loss_and_gradient(rank, logits, labels):
    """The mean over labelled pixels of this process' image, and its gradient."""
    from sgr.modeling.per_pixel import CrossEntropyLoss

    logits = logits[rank : rank + 1].requires_grad_()
    loss = CrossEntropyLoss(3)(logits, labels[rank : rank + 1], 4)["loss_sem_seg"]
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def found_when_ended(rank, folder):
    """Whether a process that a signal ends finds the checkpoint, which the first one writes."""
    from types import SimpleNamespace

    from sgr.engine.preemption import PreemptionHook

    def save(name, **_):
        if rank == 0:
            time.sleep(1)  # a large model
            (Path(folder) / name).touch()

    hook = PreemptionHook()
    hook.trainer = SimpleNamespace(
        iter=3, max_iter=9, checkpointer=SimpleNamespace(save=save, save_dir=str(folder))
    )
    hook.before_train()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    try:
        hook.after_step()
    except SystemExit as end:
        return end.code, (Path(folder) / "model_0000003").exists()
    return None


def build_concept_model(state=None):
    """A foreign model with SGR and no dropout."""
    from foreign import ForeignModel, TinyBackbone
    from sgr import add_reasoning, supervise
    from sgr.modeling.reasoning import SemanticGlobalReasoning
    from sgr.modeling.supervision import ConceptCriterion, ConceptMatcher

    reasoning = SemanticGlobalReasoning(
        16, num_concepts=6, token_dim=8, num_heads=2, dim_feedforward=16, dropout=0.0, stride=4
    )
    model = supervise(ForeignModel)(
        add_reasoning(TinyBackbone(), {"stride4": reasoning}),
        concept_criterion=ConceptCriterion(ConceptMatcher(max_active=4)),
    )
    if state is not None:
        model.load_state_dict(state)
    return model
