"""Run trained models on images and videos that belong to no dataset."""

from ..data.truth.image_files import IMAGE_SUFFIXES
from .drawing import choose_concepts, draw_output, draw_output_regions
from .files import (
    find_files,
    looks_like_key,
    output_files,
    output_stems,
    refuse_overwriting,
)
from .joined import join_results
from .metadata import dataset_metadata, numbers_of_classes, output_metadata
from .predictor import BatchPredictor, puts_out_regions, read_ahead, work_behind
from .result import (
    PICTURE_SUFFIXES,
    PredictedInstances,
    PredictedSegments,
    Result,
    data_files,
    read_comment,
    write_picture,
)
from .video import VIDEO_SUFFIXES, VideoReader, VideoWriter
