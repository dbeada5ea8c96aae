"""Random predictions of queries and random targets, for matchers and criteria."""

import torch


def random_layer(generator=None, queries=4, size=(6, 8), scale=3.0):
    """A layer's predictions of three classes for two images."""
    return {
        "pred_logits": torch.randn(2, queries, 4, generator=generator),
        "pred_masks": scale * torch.randn(2, queries, *size, generator=generator),
    }


def random_targets(*counts):
    """For each image as many labels and masks as counted, of three classes and 16 x 24 pixels."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "labels": torch.randint(3, (count,), generator=generator),
            "masks": torch.rand(count, 16, 24, generator=generator) > 0.6,
        }
        for count in counts
    ]


def random_outputs(aux=1):
    """A predictor's output, with the predictions of ``aux`` inner layers; all want gradients."""
    generator = torch.Generator().manual_seed(0)
    layers = [random_layer(generator, 5, (4, 6), scale=1.0) for _ in range(aux + 1)]
    for layer in layers:
        for prediction in layer.values():
            prediction.requires_grad_()
    return {**layers[0], "aux_outputs": layers[1:]}
