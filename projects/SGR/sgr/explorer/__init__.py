"""The token explorer: a folder that shows in any browser what the tokens of models do.

:func:`write_explorer` makes the folder. ``web`` has the sources of the page, and ``page`` the page
as it is shipped (docs/explorer.md).
"""

from .models import ExplorerModel, add_models_arguments, load_models, model_name
from .writer import MIN_SIDE, ExplorerReport, check_folder, explore_dataset, write_explorer
