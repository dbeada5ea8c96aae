"""SGR in a LightningModule: the same lines, in training_step."""

import lightning
import torch
from scenes import batches
from timm_features import Segmenter
from torch.nn import functional as F

import sgr


class ConceptSegmenter(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model, self.criterion = Segmenter(), sgr.ConceptLoss()

    def training_step(self, batch, _index):
        (images, labels), component_maps = batch
        with sgr.record_concepts(self.model) as record:
            task_loss = F.cross_entropy(self.model(images), labels, ignore_index=255)
        concept_loss = self.criterion(record, component_maps)
        self.log_dict({"task": task_loss, "concepts": concept_loss}, prog_bar=True)
        return task_loss + concept_loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 3e-4)


def main(steps=20):
    lightning.seed_everything(0, verbose=False)
    model = ConceptSegmenter()
    trainer = lightning.Trainer(max_steps=steps, logger=False, enable_checkpointing=False)
    trainer.fit(model, batches(steps))
    print(", ".join(f"{name} {value:.3f}" for name, value in trainer.callback_metrics.items()))
    return [model.model]


if __name__ == "__main__":
    main()
