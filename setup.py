"""Set-up of the Python package ``sgr``, whose sources are in projects/SGR/sgr.

Detectron2 is a true dependency that cannot be listed here: PyPI does not have it under its own
name, and an official build must fit the torch that is installed. ``make install`` sees to it, or
``python tools/install_detectron2.py`` after ``pip install -e .``.
"""

from setuptools import find_packages, setup

SOURCES = "projects/SGR"
EXPORT = ["onnx", "onnxscript", "onnxruntime"]

setup(
    name="sgr",
    version="0.1.0",
    description="Semantically-aware Global Reasoning for segmentation, a Detectron2 project",
    packages=find_packages(SOURCES, include=["sgr", "sgr.*"]),
    package_dir={"sgr": SOURCES + "/sgr"},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        # A torchvision works with the torch it was built for only. Left unpinned, so that pip
        # takes the one which belongs to the torch at hand.
        "torchvision",
        "faster-coco-eval>=1.8",
        "fvcore>=0.1.5",
        "matplotlib",
        "numpy",
        # Headless: the same cv2 without its windows, which we never open. The plain opencv-python
        # needs libGL.so.1, which servers and containers lack. Both put their files into one folder
        # `cv2`: where the plain one is wanted, install it after this package.
        "opencv-python-headless",
        "pillow",
        "pycocotools",
        "scipy",
        "tabulate",
        "tensorboard",
        "tqdm",
    ],
    extras_require={"export": EXPORT, "test": ["pytest", "pytest-xdist", "torchmetrics", *EXPORT]},
)
