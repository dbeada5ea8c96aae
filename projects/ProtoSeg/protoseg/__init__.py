"""ProtoSeg: classes as several prototypes that are not learned, on the seams of SGR.

Importing the package registers its classifier, head and backbone.
"""

from .classifier import PrototypeClassifier, PrototypePrediction
from .clustering import equal_shares
from .config import add_protoseg_config
from .hrnet import ConcatHead, build_hrnet_backbone
