"""HSSN: deep hierarchical semantic segmentation (Li et al., CVPR 2022), on the seams of SGR.

Importing the package registers its loss, side criterion, meta-architecture, evaluator, head and
backbone.
"""

from .config import add_hssn_config
from .deeplab_v3_plus import AnySizeDeepLabV3PlusHead
from .evaluator import TreeEvaluator
from .losses import level_cross_entropies, node_losses
from .node_index import NodeIndex, find_tree
from .pixel_loss import TreeLoss
from .resnet_v1d import V1dResNet
from .segmentor import ConceptTreeSegmentor, TreeSegmentor
from .triplet import TreeTripletLoss, TreeTripletSupervision
