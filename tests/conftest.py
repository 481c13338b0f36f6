"""What do all tests share? The builders' folder on sys.path, the digits that ship with the project, optional assets."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from onnxcomp.distill import environment
from onnxcomp.errors import EnvironmentLacksError, OutputError
from onnxcomp.files import user_cache

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(Path(__file__).resolve().parent))  # `import builders` from any test file

# deadline off: timings never decide a test; derandomized: the same tests run everywhere, every time
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], max_examples=50
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache of the user's, for this session and what it starts: times of other days decide nothing here.

    The training runtime alone is the user's own: it takes half a minute to make, and holds nothing that is measured.
    """
    folder = tmp_path_factory.mktemp("cache")
    own = user_cache() / "training"
    with suppress(OSError):  # no symlinks, or a home that is read-only: then it is made in the empty cache
        own.mkdir(parents=True, exist_ok=True)
        (folder / "onnxcomp").mkdir()
        (folder / "onnxcomp" / "training").symlink_to(own, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            patch.setenv(name, str(folder))
        yield folder


@pytest.fixture(scope="session")
def runtime(cache: Path) -> environment.Environment:
    """The training runtime, made on first use; .ci/run makes it before, and fails where that is impossible."""
    del cache
    try:
        return environment.provide()
    except (EnvironmentLacksError, OutputError) as error:
        pytest.skip(f"no training runtime here: {error}")


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def digits() -> Path:
    """The CNN with BatchNormalization that ships in models/."""
    return ROOT / "models" / "digits-cnn.onnx"


@pytest.fixture(scope="session")
def digits_data() -> tuple[Path, Path]:
    """Its .npz files: training (calibration) and test."""
    return ROOT / "models" / "digits-train.npz", ROOT / "models" / "digits-test.npz"


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of large models and data named by ONNXCOMP_TEST_ASSETS; tests that need it skip without it."""
    folder = os.environ.get("ONNXCOMP_TEST_ASSETS", "")
    if not folder:
        pytest.skip("ONNXCOMP_TEST_ASSETS is not set: the folder with larger models and data is optional")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"ONNXCOMP_TEST_ASSETS names {folder}, which is not a folder")
    return path
