import numpy as np
import pytest

from sgr.inference import VideoReader, VideoWriter


@pytest.fixture
def frames():
    """Five frames of 48 x 64 pixels, each of one grey."""
    return [np.full((48, 64, 3), 40 * index + 20, np.uint8) for index in range(5)]


def write(path, frames, fps=12.0):
    try:
        with VideoWriter(path, fps) as writer:
            for frame in frames:
                writer.write(frame)
    except OSError as error:
        pytest.skip(str(error))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_there_and_back(tmp_path, frames, suffix):
    frames[0][..., 0] = 200  # channels are not exchanged
    path = write(tmp_path / f"vidéo{suffix}", frames)
    with VideoReader(path) as reader:
        assert reader.fps == pytest.approx(12.0)
        assert reader.num_frames == 5
        read = list(reader)
        reader.check_end()
    assert [frame.shape for frame in read] == [(48, 64, 3)] * 5
    for frame, expected in zip(read, frames):
        np.testing.assert_allclose(frame.mean((0, 1)), expected.mean((0, 1)), atol=6)


def test_an_end_before_the_announced_one_is_told(tmp_path, frames):
    with VideoReader(write(tmp_path / "video.avi", frames)) as reader:
        reader.num_frames = 6  # may be an estimate
        list(reader)
        reader.check_end()
        reader.num_frames = 9
        with pytest.raises(OSError, match=r"video.avi ends early, after 5 of 9 frames"):
            reader.check_end()
        reader.num_read, reader.num_frames = 0, None
        with pytest.raises(OSError, match="after 0 of an unknown number"):
            reader.check_end()


def test_files_that_are_no_videos(tmp_path):
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(OSError, match="text.mp4 cannot be opened"):
        VideoReader(tmp_path / "text.mp4")
    with pytest.raises(FileNotFoundError, match="none.mp4 does not exist"):
        VideoReader(tmp_path / "none.mp4")


def test_mistakes_in_writing(tmp_path, frames):
    with pytest.raises(ValueError, match=".mp4, .mkv, .avi, not to .*x.mov"):
        VideoWriter(tmp_path / "x.mov", 25)
    with VideoWriter(tmp_path / "x.avi", 25) as writer:
        writer.write(frames[0])
        with pytest.raises(ValueError, match=r"\(40, 64, 3\), the first one was \(48, 64, 3\)"):
            writer.write(frames[1][:40])
    with VideoWriter(tmp_path / "none" / "x.avi", 25) as writer:
        with pytest.raises(OSError, match="cannot be written by this build of OpenCV$"):
            writer.write(frames[0])


def test_rates_that_cannot_be_written(tmp_path, frames):
    with VideoWriter(tmp_path / "x.mp4", 90000) as writer:
        with pytest.raises(OSError, match="x.mp4 cannot be .* rate, 90000 frames per second: .*-r"):
            writer.write(frames[0])
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"fps .* must be a positive number, not {fps}"):
            VideoWriter(tmp_path / "x.mp4", fps)
