"""SGR in DeepLabV3 and FCN of torchvision, here on the IntermediateLayerGetter of a ResNet-18."""

from functools import partial

import torch
from scenes import NUM_CLASSES, batches
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCN, FCNHead

import sgr
from sgr.modeling.reasoning import SemanticGlobalReasoning


def main(steps=10):
    for architecture, head in ((DeepLabV3, DeepLabHead), (FCN, FCNHead)):
        torch.manual_seed(0)
        backbone = IntermediateLayerGetter(resnet18(), {"layer3": "aux", "layer4": "out"})
        model = architecture(backbone, head(512, NUM_CLASSES))
        reasoning = partial(SemanticGlobalReasoning, num_concepts=32, token_dim=64)
        sgr.add_reasoning(model, {"backbone[out]": reasoning})  # "out" in the dict of the backbone
        criterion = sgr.ConceptLoss(max_active=24)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for (images, labels), component_maps in batches(steps):
            with sgr.record_concepts(model) as record:
                task_loss = F.cross_entropy(model(images)["out"], labels, ignore_index=255)
            concept_loss = criterion(record, component_maps)
            optimizer.zero_grad()
            (task_loss + concept_loss).backward()
            optimizer.step()
        print(f"{architecture.__name__}: task {task_loss:.3f}, concepts {concept_loss:.3f}")
        yield model


if __name__ == "__main__":
    list(main())
