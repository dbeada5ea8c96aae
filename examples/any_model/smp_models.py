"""SGR in Unet, FPN and DeepLabV3+ of segmentation-models-pytorch."""

from functools import partial

import segmentation_models_pytorch as smp
import torch
from scenes import NUM_CLASSES, batches
from torch.nn import functional as F

import sgr
from sgr.modeling.reasoning import SemanticGlobalReasoning


def main(steps=10):
    for architecture in (smp.Unet, smp.FPN, smp.DeepLabV3Plus):
        torch.manual_seed(0)
        model = architecture("resnet18", encoder_weights=None, classes=NUM_CLASSES)
        reasoning = partial(SemanticGlobalReasoning, num_concepts=32, token_dim=64)
        sgr.add_reasoning(model, {"encoder": reasoning})  # on the last feature, as always
        criterion = sgr.ConceptLoss(max_active=24)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for (images, labels), component_maps in batches(steps):
            with sgr.record_concepts(model) as record:
                task_loss = F.cross_entropy(model(images), labels, ignore_index=255)
            concept_loss = criterion(record, component_maps)
            optimizer.zero_grad()
            (task_loss + concept_loss).backward()
            optimizer.step()
        stride = record["reasoning.encoder"].stride
        print(
            f"{architecture.__name__}, stride {stride}: task {task_loss:.3f}, "
            f"concepts {concept_loss:.3f}"
        )
        yield model


if __name__ == "__main__":
    list(main())
