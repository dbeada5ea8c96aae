#!/usr/bin/env python
"""Run a model on images and videos, and draw what it predicts.

    python tools/demo.py --config-file configs/... --weights model_final.pth \
        --input photos more/*.jpg --output predictions
    python tools/demo.py --config-file configs/... --weights model_final.pth \
        --video-input street.mp4 --output street_predicted.mp4 --regions 6

It draws what the model puts out: semantic, panoptic or instance segmentation or detections; with
--regions, concept regions beside it. Of images, it shows the image beside the prediction, and
writes the labels (PNG), the instances and the panoptic segments (COCO's formats) too, into the
folders labels, instances and panoptic of --output; see sgr.inference.Result.save. Names and colours
of the classes come from the model folder, or from the first dataset in DATASETS.TEST, whose files
may be missing. With TEST.AUG.ENABLED or TEST.SLIDING_WINDOW.ENABLED, the model sees several views
of an image, as in an evaluation. The tool opens no window. It reports and skips files that cannot
be read; if there are any, the exit status is 1.

Of images, --resume predicts those that have no picture yet. Started by torchrun or srun, each
process takes its share of the files. tools/join_predictions.py joins the results of all images:

    torchrun --nproc-per-node 2 tools/demo.py --config-file output/model \
        --input photos --output predictions --resume
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from detectron2.utils.video_visualizer import VideoVisualizer
from PIL import Image
from tqdm import tqdm

from sgr.dataset_check import spread
from sgr.engine.console import show_any_name
from sgr.engine.launch import place_of, process_group
from sgr.engine.setup import at_least
from sgr.explorer import ExplorerModel, check_folder, model_name, write_explorer
from sgr.inference import (
    IMAGE_SUFFIXES,
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    Result,
    VideoReader,
    VideoWriter,
    choose_concepts,
    data_files,
    draw_output,
    draw_output_regions,
    find_files,
    looks_like_key,
    output_files,
    output_stems,
    read_ahead,
    read_comment,
    refuse_overwriting,
    work_behind,
    write_picture,
)
from sgr.load import add_model_arguments, load_model
from sgr.predict import RUN_ERRORS, Predictor, batches, predict_each

READ_VIDEOS = (*VIDEO_SUFFIXES, ".m4v", ".mov", ".mpeg", ".mpg", ".webm", ".wmv")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run a model on images or videos, and draw what it predicts."
    )
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders of images, or patterns"
    )
    inputs.add_argument(
        "--video-input", nargs="+", metavar="PATH", help="videos, folders of videos, or patterns"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="a folder; of a single input also a file for the picture alone, "
        f"{', '.join(PICTURE_SUFFIXES)} or {', '.join(VIDEO_SUFFIXES)}",
    )
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="instances with a lower score are not shown (default: 0.5)",
    )
    parser.add_argument(
        "--regions", type=at_least(0), default=0, metavar="N", help="concept regions to draw beside"
    )
    parser.add_argument(
        "--explorer",
        type=Path,
        metavar="DIR",
        help="also write a token explorer of the images, of 200 at most (docs/explorer.md)",
    )
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=1,
        metavar="N",
        help="images that the model gets at a time; they are padded to the largest (default: 1, as "
        "in an evaluation)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="leave images out whose picture is there already"
    )
    parser.add_argument(
        "--opts",
        dest="more_opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="changes of the config, after all other arguments",
    )
    add_model_arguments(parser)
    args = parser.parse_args(arguments)
    args.opts += args.more_opts
    if not 0 <= args.confidence_threshold <= 1:
        parser.error("--confidence-threshold must be in [0, 1]")
    if args.resume and not args.input:
        parser.error("--resume is for images; a video is predicted from its start")
    if args.explorer and not args.input:
        parser.error("--explorer shows images: use --input")
    for name in filter(looks_like_key, args.input or args.video_input):
        parser.error(f"{name} looks like a key of the config; put --opts before it")
    try:
        args.jobs, args.problems = plan(args)
        if args.explorer:
            check_folder(args.explorer)
            output, explorer = args.output.expanduser().resolve(), args.explorer.resolve()
            if explorer in (output, *output.parents):
                raise ValueError(f"--output {args.output} lies in the folder of --explorer")
    except ValueError as error:
        parser.error(str(error))
    return args


def plan(args: argparse.Namespace) -> tuple[list[tuple[Path, Path, str]], dict[str, str]]:
    """What to read and to write, and for each input without a file the reason.

    Returns:
        Triples of a file to read, the picture or video to write, and the stem of the files of
        results below --output; "" writes none. And input -> reason.

    Raises:
        ValueError: if there is nothing to read, or a result cannot be written to --output.
    """
    if args.input:
        suffixes, written = IMAGE_SUFFIXES, PICTURE_SUFFIXES
    else:
        suffixes, written = READ_VIDEOS, VIDEO_SUFFIXES
    files, problems = find_files(args.input or args.video_input, suffixes)
    if not files:
        listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        raise ValueError(f"there is nothing to read: {listed}")
    videos = [file for file in files if args.input and file.suffix.lower() in READ_VIDEOS]
    if videos:
        raise ValueError(f"{videos[0]} is a video: use --video-input instead of --input")
    output = args.output.expanduser()
    stems = [""] * len(files)
    if output.suffix.lower() in written and not output.is_dir():
        if len(files) + len(problems) > 1:
            raise ValueError(f"the results of several files need a folder, not --output {output}")
        results = [output]
    elif output.exists() and not output.is_dir():
        raise ValueError(
            f"--output {output} is neither a folder nor a file with {', '.join(written)}"
        )
    else:
        results = output_files(files, output, written, ".png" if args.input else ".mp4")
        if args.input:  # of equal stems, such as those of a.jpg and a.png, one gets a number
            stems = output_stems(files)
    data = [output / file for stem in filter(None, stems) for file in data_files(stem)]
    refuse_overwriting(files, [*results, *data])
    for both in {*results} & {*data}:
        raise ValueError(f"{both} would be the picture of one file and hold results of another")
    return list(zip(files, results, stems)), problems


def origin(file: Path, stem: str) -> str:
    """Says in a picture what it was made from, and which files of results belong to it."""
    return json.dumps([file.name, stem])


def is_there(file: Path, picture: Path, stem: str) -> bool:
    """Whether an earlier run has written the results of this image.

    With other files in the input, the picture may be that of a file of an equal name. Pictures of
    earlier releases do not say what they were made from.
    """
    return picture.exists() and read_comment(picture) in ("", origin(file, stem))


def load_predictor(args: argparse.Namespace) -> Predictor:
    threshold = str(args.confidence_threshold)
    return Predictor.load(
        [args.config_file, *args.mixins],
        args.weights,
        # The model does not make masks of instances that are not drawn, nor scores of pixels.
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", threshold),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", threshold),
        *("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", threshold),
        *("MODEL.MASK_FORMER.TEST.SEMANTIC_OUTPUT", "labels"),
        *args.opts,
        *("TEST.TOKENS.ENABLED", str(args.regions > 0)),
        score_threshold=args.confidence_threshold,
        allow_pickle=args.allow_pickle,
        allow_unsafe_yaml=args.allow_unsafe_yaml,
    )


class VideoDrawer:
    """Draws the frames of one video.

    Instances keep their colours, and the concept regions are always those of the concepts that the
    first frame uses most.

    Args:
        metadata: of the model's classes.
        threshold: instances with a lower score are not drawn.
        num_regions: number of concept regions to draw beside.
    """

    def __init__(self, metadata: Metadata, threshold: float, num_regions: int):
        self.metadata = metadata
        self.threshold = threshold
        self.num_regions = num_regions
        self.video = VideoVisualizer(metadata)
        self._concepts: np.ndarray | None = None

    def __call__(self, image: np.ndarray, input_: dict, output: dict[str, Any]) -> np.ndarray:
        picture = draw_output(
            image, output, self.metadata, score_threshold=self.threshold, video=self.video
        )
        if not self.num_regions:
            return picture
        if self._concepts is None:
            self._concepts = choose_concepts(output, self.num_regions)
        return draw_output_regions(
            picture,
            image,
            output,
            self.metadata,
            input_size=tuple(input_["image"].shape[-2:]),
            concepts=self._concepts,
        )


def run_on_images(predictor: Predictor, args: argparse.Namespace) -> dict[str, str]:
    """Draw the images of ``args.jobs``. Return the failures: file -> reason."""
    problems: dict[str, str] = {}

    def report(file: Path, error: Exception) -> None:
        problems[str(file)] = _reason(error)
        tqdm.write(f"skipped {file}: {problems[str(file)]}", file=sys.stderr)

    def results() -> Iterator[tuple[tuple[Path, Path, str], Result]]:
        files = [file for file, *_ in args.jobs]
        jobs = iter(args.jobs)
        for result in predictor.stream(
            files,
            batch_size=args.batch_size,
            progress=comm.is_main_process(),
            on_error=report,
        ):
            # Failures before this image are reported already.
            yield next(job for job in jobs if str(job[0]) not in problems), result

    def write(task: tuple[tuple[Path, Path, str], Result]) -> tuple[Path, Exception | None]:
        (file, picture, stem), result = task
        if stem:
            result.save_data(args.output.expanduser(), stem)
        try:
            drawn = Image.fromarray(result.picture(args.regions))
        except RUN_ERRORS as error:
            return file, error
        # Last: it tells --resume that all is written.
        write_picture(picture, drawn, origin(file, stem))
        return file, None

    for file, error in work_behind(write, results()):
        if error is not None:
            report(file, error)
    return problems


def run_on_videos(predictor: Predictor, args: argparse.Namespace) -> dict[str, str]:
    """Draw the videos of ``args.jobs``. Return those that failed or end early: file -> reason."""
    problems: dict[str, str] = {}
    for file, result, _ in args.jobs:
        try:
            run_on_video(predictor, file, result, args)
        except (OSError, *RUN_ERRORS) as error:
            problems[str(file)] = _reason(error)
            print(f"{file}: {problems[str(file)]}", file=sys.stderr)
    return problems


def run_on_video(predictor: Predictor, file: Path, result: Path, args: argparse.Namespace) -> None:
    """Draw the frames of a video.

    Raises:
        OSError: if the video cannot be read, or ends early; the frames before are written.
    """
    batch_predictor = predictor.batch_predictor
    drawer = VideoDrawer(batch_predictor.metadata, args.confidence_threshold, args.regions)
    with ExitStack() as stack:
        reader = stack.enter_context(VideoReader(file))
        result.parent.mkdir(parents=True, exist_ok=True)
        writer = stack.enter_context(VideoWriter(result, reader.fps))
        progress = stack.enter_context(tqdm(total=reader.num_frames, unit="frame", desc=file.name))
        frames = ((frame, batch_predictor.prepare(frame)) for frame in reader)
        for batch in read_ahead(batches(frames, args.batch_size)):
            outputs = predict_each(batch_predictor, [input_ for _, input_ in batch])
            for (frame, input_), output in zip(batch, outputs):
                if isinstance(output, Exception):
                    raise output
                writer.write(drawer(frame, input_, output))
            progress.update(len(batch))
        reader.check_end()


def explore(args: argparse.Namespace, files: list[Path]) -> None:
    """Write the explorer of the images that could be predicted."""
    model, cfg = load_model(
        [args.config_file, *args.mixins],
        args.weights,
        *args.opts,
        allow_pickle=args.allow_pickle,
        allow_unsafe_yaml=args.allow_unsafe_yaml,
    )
    named = ExplorerModel(model_name(args.config_file), model, cfg)
    records = [{"file_name": str(files[index])} for index in spread(200, len(files))]
    report = write_explorer(args.explorer, [named], records)
    print(f"{report}: open {args.explorer / 'index.html'} in a browser")


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]


def run(args: argparse.Namespace) -> int:
    """Predict this process's share of the files, and tell about all. Return the exit status."""
    setup_logger(name="sgr", distributed_rank=comm.get_rank())
    predictor = load_predictor(args)
    start = time.perf_counter()
    files = [file for file, *_ in args.jobs]
    total = len(files) + len(args.problems)
    # First the share, then what is left of it: the others may be at work already.
    share = args.jobs[comm.get_rank() :: comm.get_world_size()]
    args.jobs = [job for job in share if not (args.resume and is_there(*job))]
    own = run_on_images(predictor, args) if args.input else run_on_videos(predictor, args)
    shares = comm.gather((own, len(share) - len(args.jobs)))  # waits for the slowest
    if not comm.is_main_process():
        return 0
    problems = dict(args.problems)
    for own, _ in shares:
        problems.update(own)
    seconds = time.perf_counter() - start
    num_there = sum(number for _, number in shares)
    what = "images" if args.input else "videos"
    before = f", {num_there} of them before" if num_there else ""
    print(f"{total - len(problems)} of {total} {what}{before} in {seconds:.1f} s, in {args.output}")
    if problems:
        print(f"{len(problems)} failed:", file=sys.stderr)
        for name, problem in problems.items():
            print(f"  {name}: {problem}", file=sys.stderr)
    predicted = [file for file in files if str(file) not in problems]
    if args.explorer and predicted:
        explore(args, predicted)
    return 1 if problems else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the tool and return the exit status."""
    show_any_name()
    args = parse_args(arguments)
    place = place_of(os.environ)
    if place is None:
        return run(args)
    # Processes wait for one another at the end only, as long as it takes.
    with process_group(place, timedelta(days=365), backend="gloo"):
        return run(args)


if __name__ == "__main__":
    sys.exit(main())
