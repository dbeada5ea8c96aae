"""Records and options for the tests of the dataset checker."""

from detectron2.structures import BoxMode
from PIL import Image

from sgr.dataset_check import CheckOptions, Report, check_records

CLASSES = ("sky", "road", "car")
THINGS = ("disc", "box")


def options(truth=("sem_seg_file_name",), **more):
    return CheckOptions(**{"truth": truth, "class_names": CLASSES, "kernel_size": 1, **more})


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return str(path)


def of_instances(truth=("annotations",), **more):
    names = (*THINGS, "background") if truth == ("annotations",) else CLASSES
    more = {"class_names": names, "thing_names": THINGS, **more}
    return options(truth, **more)


def polygon(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(category, segmentation, **more):
    box = {"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYWH_ABS}
    return {"category_id": category, "segmentation": segmentation, **box, **more}


def of_segments(truth=("pan_seg_file_name",)):
    return options(truth, thing_names=CLASSES, thing_ids=frozenset({2}))


def kinds(report):
    return [fault.kind for fault in report.faults]


def checked(records, check, *, workers=1):
    """The report of a dataset "mine" that consists of these records."""
    report = Report(check, "mine", len(records))
    check_records(records, report, workers=workers)
    return report
