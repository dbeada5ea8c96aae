"""SGR in torchvision's Mask R-CNN, below its pyramid; images keep the size of their label maps."""

import torch
from scenes import NUM_CLASSES, Scenes
from torch.utils.data import DataLoader
from torchvision.models.detection import MaskRCNN, backbone_utils
from torchvision.ops import masks_to_boxes

import sgr
from sgr.modeling.reasoning import SemanticGlobalReasoning


class Instances(Scenes):
    def __getitem__(self, index):
        image, labels, things = self.draw(index)
        masks = torch.stack([torch.from_numpy(mask) for _, mask in things]).byte()
        classes = torch.tensor([label + 1 for label, _ in things])  # 0 is the background
        target = {"boxes": masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1]), "labels": classes}
        return image, {**target, "masks": masks, "map": labels}


def main(steps=5, size=64):
    backbone = backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    model = MaskRCNN(backbone, NUM_CLASSES + 1, min_size=size, max_size=size)
    sgr.add_reasoning(model, {"backbone.body": SemanticGlobalReasoning(512, stride=32)})
    criterion, optimizer = sgr.ConceptLoss(), torch.optim.SGD(model.parameters(), 1e-3)
    collate = sgr.ComponentCollate(lambda item: item[1]["map"], collate_fn=lambda x: zip(*x))
    for (images, targets), maps in DataLoader(Instances(2 * steps, size), 2, collate_fn=collate):
        with sgr.record_concepts(model) as record:
            losses = model(images, targets)
        losses["concepts"] = criterion(record, maps)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    print(", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
    return [model]


if __name__ == "__main__":
    main()
