"""SeMask: semantically masked transformers for semantic segmentation, on the seams of SGR.

Importing the package registers its backbones, heads, pixel decoders, losses and criterion.
"""

from .config import add_semask_config
from .feature_alignment import FaPNPixelDecoder, MSFaPNPixelDecoder
from .mit import MixTransformer
from .segformer import SegFormerHead
from .semantic_decoder import SemanticMapSupervision
from .semantic_fpn import SemanticFPNHead
from .semantic_layer import SemanticAttention, SemanticLayer
from .swin import SeMaskSwinTransformer
