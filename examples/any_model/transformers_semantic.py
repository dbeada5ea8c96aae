"""SGR in SegFormer and UperNet of transformers (small models with random weights)."""

from functools import partial

import torch
import transformers
from scenes import NUM_CLASSES, batches

import sgr
from sgr.modeling.reasoning import SemanticGlobalReasoning

STAGES = [f"stage{stage}" for stage in (1, 2, 3, 4)]
SWIN = transformers.SwinConfig(embed_dim=12, depths=[1] * 4, window_size=4, out_features=STAGES)
SMALL = {"backbone_config": SWIN, "hidden_size": 32, "use_auxiliary_head": False}
MODELS = [  # and where the last feature of the backbone comes out
    (transformers.SegformerConfig(num_labels=NUM_CLASSES), "segformer[hidden_states]"),
    (transformers.UperNetConfig(num_labels=NUM_CLASSES, **SMALL), "backbone"),
]


def main(steps=10):
    for config, place in MODELS:
        torch.manual_seed(0)
        model = transformers.AutoModelForSemanticSegmentation.from_config(config).train()
        sgr.add_reasoning(model, {place: partial(SemanticGlobalReasoning, num_concepts=32)})
        criterion = sgr.ConceptLoss(max_active=24)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for (images, labels), component_maps in batches(steps):
            with sgr.record_concepts(model) as record:
                task_loss = model(images, labels=labels).loss
            concept_loss = criterion(record, component_maps)
            optimizer.zero_grad()
            (task_loss + concept_loss).backward()
            optimizer.step()
        print(f"{type(model).__name__}: task {task_loss:.3f}, concepts {concept_loss:.3f}")
        yield model


if __name__ == "__main__":
    list(main())
