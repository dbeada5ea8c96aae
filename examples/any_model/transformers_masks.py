"""SGR in MaskFormer and Mask2Former of transformers (small models with random weights)."""

from functools import partial

import torch
import transformers
from scenes import NUM_CLASSES, batches

import sgr
from sgr.modeling.reasoning import SemanticGlobalReasoning

STAGES = [f"stage{stage}" for stage in (1, 2, 3, 4)]
SWIN = transformers.SwinConfig(embed_dim=12, depths=[1] * 4, window_size=4, out_features=STAGES)
BACKBONE = "model.pixel_level_module.encoder"  # its last feature has stride 32


def main(steps=5):
    for config_class in (transformers.MaskFormerConfig, transformers.Mask2FormerConfig):
        torch.manual_seed(0)
        config = config_class(backbone_config=SWIN, num_labels=NUM_CLASSES)
        model = transformers.AutoModelForUniversalSegmentation.from_config(config).train()
        sgr.add_reasoning(model, {BACKBONE: partial(SemanticGlobalReasoning, num_concepts=32)})
        criterion = sgr.ConceptLoss(max_active=24)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
        for (images, labels), component_maps in batches(steps):
            classes = [each[each < 255].unique() for each in labels]
            masks = [(each == of[:, None, None]).float() for each, of in zip(labels, classes)]
            with sgr.record_concepts(model) as record:
                task_loss = model(images, mask_labels=masks, class_labels=classes).loss
            concept_loss = criterion(record, component_maps)
            optimizer.zero_grad()
            (task_loss + concept_loss).backward()
            optimizer.step()
        print(f"{type(model).__name__}: task {task_loss:.3f}, concepts {concept_loss:.3f}")
        yield model


if __name__ == "__main__":
    list(main())
