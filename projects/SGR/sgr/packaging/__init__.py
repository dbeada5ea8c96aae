"""Trained models as folders, to keep, hand on and publish; how they are read is elsewhere.

:mod:`sgr.checkpoints.model_folder` says what is in a folder, and reads it.
"""

from .card import model_card
from .hub import check_push, push_model
from .package import check_target, license_file, package_model
