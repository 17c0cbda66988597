"""Installs keras_tracin; `pip install ".[test]"` adds what its tests need."""

import runpy
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent
VERSION_FILE = ROOT / "keras_tracin" / "_version.py"

PROGRAMS = (
    "check",
    "index",
    "label_issues",
    "query",
    "report",
    "score",
    "self_influence",
)
PLOTS = ["matplotlib>=3.8"]
BASELINES = ["bm25s>=0.2.14", "scikit-learn>=1.4"]
INDEX = ["faiss-cpu>=1.9"]
REPORT = ["jinja2>=3.1", "pillow>=10"]
TENSORBOARD = [*PLOTS, "tensorboard>=2.18"]
EXAMPLES = [*PLOTS, *REPORT, "pandas>=2.2", "scikit-learn>=1.4"]
NOTEBOOKS = ["ipykernel>=6.29", "jupytext>=1.16", "nbclient>=0.10"]
# The site is built strictly: a new release must not bring a new warning. Ruff
# formats the signatures.
DOCS = ["mkdocs-material~=9.8", "mkdocstrings[python]~=1.0", "ruff~=0.17.6"]
HUB = ["keras-hub>=0.32", "tensorflow-text"]  # it brings Keras 3.15 or newer
RELEASE = ["build>=1.2", "pyyaml>=6", "twine>=6"]
BEAM = ["apache-beam>=2.60"]  # in an environment of its own: docs/scaling.md
# New releases of the formatter, linter and type checker bring new findings:
# a fresh environment must not fail because of the day it was made on.
TEST = [
    *EXAMPLES,
    *BASELINES,
    *INDEX,
    *NOTEBOOKS,
    *DOCS,
    *HUB,
    *TENSORBOARD,
    *RELEASE,
    "grain>=0.2",  # whose datasets `fit` of Keras 3.15 takes
    "hypothesis>=6.100",
    "mypy~=2.4.1",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "selenium>=4.20",
    "starlark-pyo3>=2025.1",  # reads the BUILD files
    "tf-keras>=2.18",  # Keras 2, whose models and files are refused
]

# What tests need where Keras and TensorFlow are the oldest: tests/lowest.txt.
LOWEST = [
    *PLOTS,
    *REPORT,
    *BASELINES,
    "hypothesis>=6.100",
    "pandas>=2.2",
    "pytest>=8",
    "pytest-xdist>=3.5",
    "selenium>=4.20",
    "starlark-pyo3>=2025.1",
    "tf-keras>=2.18",
]

setuptools.setup(
    name="keras_tracin",
    version=runpy.run_path(str(VERSION_FILE))["__version__"],
    description=(
        "Training-data attribution for Keras: which training examples "
        "helped or hurt a prediction."
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=setuptools.find_packages(
        include=["keras_tracin", "keras_tracin.*"]
    ),
    package_data={
        "keras_tracin": ["py.typed"],
        "keras_tracin.report": ["assets/*"],
    },
    entry_points={
        "console_scripts": [
            f"keras_tracin-{name}=keras_tracin.scripts.{name}:main"
            for name in PROGRAMS
        ]
    },
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.0",
        "importlib_resources>=6.0",  # tensorflow-datasets forgets to ask for it
        "keras>=3.8",
        "numpy>=1.26",
        "scipy>=1.12",
        "tensorflow>=2.18",
        "tensorflow-datasets>=4.9.7",
    ],
    extras_require={
        "plots": PLOTS,
        "baselines": BASELINES,
        "index": INDEX,
        "report": REPORT,
        "tensorboard": TENSORBOARD,
        "examples": EXAMPLES,
        "notebooks": [*EXAMPLES, *NOTEBOOKS],
        "docs": DOCS,
        "hub": HUB,
        "beam": BEAM,
        "release": RELEASE,
        "lowest": LOWEST,
        "test": TEST,
        "all": TEST,
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
