"""What the README promises to users of plain PyTorch, in a process that cannot find Detectron2."""

import subprocess
import sys

SCRIPT = """
import importlib.util
import sys

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "detectron2" else find_spec(name)
sys.modules["detectron2"] = None  # an import of it fails

import numpy as np
import torch
import sgr
from sgr.data.components import connected_components
from sgr.evaluation.token_metrics import label_histograms, semantics
from sgr.modeling.reasoning import GloRe, SemanticGlobalReasoning
from sgr.modeling.supervision import ConceptCriterion, ConceptMatcher

module = SemanticGlobalReasoning(8, num_concepts=6, token_dim=8, num_heads=2, stride=4)
labels = np.zeros((16, 16), np.uint8)
labels[:, 8:] = 1
components = connected_components(labels)
with sgr.record_concepts(module) as record:
    module(torch.rand(1, 8, 4, 4))
regions = record[""]
criterion = ConceptCriterion(ConceptMatcher(max_active=4))
maps, counts = [torch.from_numpy(components.indices)], [len(components.classes)]
sum(criterion(regions, maps, counts).losses.values()).backward()
histograms, _, _ = label_histograms(
    regions.probabilities[0], torch.from_numpy(labels), 4, input_size=(16, 16)
)
assert 0 <= semantics(histograms) <= 1
baseline = GloRe(8, num_concepts=3, token_dim=6, stride=4)
with sgr.record_concepts(baseline) as record:
    baseline(torch.rand(1, 8, 4, 4))
assert record[""].probabilities.shape == (1, 3, 4, 4)

net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU())
sgr.add_reasoning(net, {"0": lambda channels: SemanticGlobalReasoning(channels, num_concepts=6)})
(images, _), maps = sgr.ComponentCollate()([(torch.rand(3, 16, 16), torch.from_numpy(labels))])
with sgr.record_concepts(net) as record:
    net(images)
sgr.ConceptLoss(max_active=4)(record, maps).backward()
sgr.remove_reasoning(net)
assert not any(name.startswith("detectron2.") for name in sys.modules)
"""


def test_reasoning_supervision_components_and_metrics_work_alone():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
