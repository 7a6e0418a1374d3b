"""Build llmops_kit: metadata from settings.ini; launchers, runs and sample data travel with it."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(ROOT / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

EXTRAS = {
    "providers": ["accelerate"],
    "ray": ["ray"],
    "redis": ["redis"],
    "postgres": ["psycopg[binary]"],
    "presidio": ["presidio-analyzer", "spacy"],
    "bench": [
        *("onnx", "onnxruntime", "onnxscript"),
        *("presidio-analyzer", "spacy"),
        *("chonkie", "langchain-experimental", "langchain-text-splitters"),
    ],
    "dev": settings["dev_requirements"].split(),
}

# What a wheel carries beside the code; a checkout reads the same folders in place.
SAMPLES = sorted(path.parent.name for path in (ROOT / "data").glob("*/README.md"))
SHARED = {"nbs/apps": "apps", "nbs/runs": "runs"} | {f"data/{n}": f"data/{n}" for n in SAMPLES}


class build_with_shared_files(build_py):
    """Copy the launchers, the runs and the sample data into the wheel as llmops_kit/_share."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target in SHARED.items():
            destination = Path(self.build_lib) / "llmops_kit" / "_share" / target
            ignore = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
            shutil.copytree(ROOT / source, destination, dirs_exist_ok=True, ignore=ignore)


setup(
    name="llmops-kit",
    version=settings["version"],
    description=settings["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author=settings["author"],
    keywords=settings["keywords"],
    packages=find_packages(include=["llmops_kit", "llmops_kit.*"]),
    package_data={"": ["*.pyi", "py.typed", "*.css", "*.svg"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["llmops-kit = llmops_kit.apps.cli:main"]},
    cmdclass={"build_py": build_with_shared_files},
    zip_safe=False,
)
