"""Functions that turn NumPy arrays into RGB pictures."""

from ..data.colors import class_colors, distinct_colors
from .comparison import draw_comparison
from .confusion_matrix import draw_confusion_matrix
from .contact_sheet import Sample, draw_contact_sheet
from .curves import draw_training_curves, read_metrics
from .figure import also_as_svg
from .grid import draw_grid
from .histograms import draw_token_histograms
from .metric_names import HIGHER_IS_BETTER, higher_is_better, metric_title
from .overlays import color_labels, overlay_heat, overlay_labels
from .panel import draw_panel
from .region_tiles import draw_beside, draw_regions_beside, region_tile_size
from .regions import upsample_region, upsample_regions
from .segments import draw_segments, number_names
