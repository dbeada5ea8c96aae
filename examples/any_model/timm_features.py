"""SGR on an encoder of timm, in a model of one's own and a plain training loop."""

import timm
import torch
from scenes import NUM_CLASSES, batches
from torch import nn
from torch.nn import functional as F

import sgr
from sgr.modeling.reasoning import SemanticGlobalReasoning


class Segmenter(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = timm.create_model("resnet18", features_only=True, out_indices=(1, 2))
        self.head = nn.Conv2d(self.encoder.feature_info.channels()[-1], NUM_CLASSES, 1)
        sgr.add_reasoning(self, {"encoder": SemanticGlobalReasoning})  # on its last feature

    def forward(self, images):
        return F.interpolate(self.head(self.encoder(images)[-1]), images.shape[-2:])


def main(steps=20):
    model, criterion = Segmenter(), sgr.ConceptLoss()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    for step, ((images, labels), component_maps) in enumerate(batches(steps)):
        with sgr.record_concepts(model) as record:
            task_loss = F.cross_entropy(model(images), labels, ignore_index=255)
        concept_loss = criterion(record, component_maps)
        optimizer.zero_grad()
        (task_loss + concept_loss).backward()
        optimizer.step()
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step}: task {task_loss:.3f}, concepts {concept_loss:.3f}")
    return [model]


if __name__ == "__main__":
    main()
