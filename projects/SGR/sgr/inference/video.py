"""Read and write videos, frame by frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

# MPEG-4 and motion JPEG are what OpenCV's wheels can write everywhere.
_CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
VIDEO_SUFFIXES = tuple(_CODECS)
_USUAL_FPS = 25.0
# Frames per second that the codecs have for certain. Some files tell the ticks of their clock.
_SLOWEST, _FASTEST = 0.01, 1000


class VideoReader:
    """Reads the frames of a video file, without its sound.

    Args:
        path: a file that OpenCV can read.

    Attributes:
        fps: frames per second; 25 if the file does not tell.
        num_frames: number of frames that the file tells; None if it does not.
        num_read: number of frames read so far.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it cannot be opened as a video.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise FileNotFoundError(f"video {path} does not exist")
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise OSError(f"video {path} cannot be opened: it is damaged, or no video")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and fps > 0 else _USUAL_FPS
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.num_frames = int(count) if math.isfinite(count) and count > 0 else None
        self.num_read = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 frames, RGB. All get the size of the first one."""
        size = None
        while True:
            ok, frame = self._capture.read()
            if not ok:
                break
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
            self.num_read += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def check_end(self) -> None:
        """Check, after the last frame, that there were enough.

        Raises:
            OSError: if there was no frame, or fewer than the file tells. One may be missing,
                because the number can be an estimate.
        """
        if self.num_read < max(1, (self.num_frames or 0) - 1):
            raise OSError(
                f"video {self.path} ends early, after {self.num_read} of "
                f"{self.num_frames or 'an unknown number of'} frames"
            )

    def close(self) -> None:
        self._capture.release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class VideoWriter:
    """Writes a video file. The first frame makes the file and sets its size.

    MPEG-4 has even sides only. If a side is odd, OpenCV leaves out the last row or column.

    Args:
        path: a path that ends in ".mp4", ".mkv" or ".avi".
        fps: frames per second.

    Raises:
        ValueError: if the path has another suffix, or ``fps`` is not positive.
    """

    def __init__(self, path: Path, fps: float):
        if path.suffix.lower() not in _CODECS:
            raise ValueError(f"a video is written to {', '.join(VIDEO_SUFFIXES)}, not to {path}")
        if not (math.isfinite(fps) and fps > 0):  # OpenCV would not come back from infinity
            raise ValueError(f"fps of a video must be a positive number, not {fps}")
        self.path = path
        self.fps = fps
        self._writer: cv2.VideoWriter | None = None
        self._size: tuple[int, ...] = ()

    def write(self, frame: np.ndarray) -> None:
        """Write a frame.

        Args:
            frame: (H, W, 3) uint8, RGB.

        Raises:
            OSError: if the file cannot be written.
            ValueError: if the first frame had another size.
        """
        if self._writer is None:
            codec = cv2.VideoWriter.fourcc(*_CODECS[self.path.suffix.lower()])
            self._size = frame.shape
            self._writer = cv2.VideoWriter(str(self.path), codec, self.fps, frame.shape[1::-1])
            if not self._writer.isOpened():
                message = f"video {self.path} cannot be written by this build of OpenCV"
                if not _SLOWEST <= self.fps <= _FASTEST:
                    message += (
                        f", probably because of its rate, {self.fps:g} frames per second: if it is "
                        "that of another video, write that one anew at its true rate, for example "
                        "by ffmpeg -i VIDEO -r 25 NEW"
                    )
                raise OSError(message)
        # OpenCV would silently leave such frames out.
        if frame.shape != self._size:
            raise ValueError(f"a frame is {frame.shape}, the first one was {self._size}")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()
