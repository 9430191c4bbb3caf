"""What every test stands on: no network, one thread, fixed seeds, a home of its own, warnings as errors."""

import importlib
import os
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Before any library reads its environment.
_HOME = tempfile.TemporaryDirectory(prefix="microtome-tests-")
os.environ |= {
    "HOME": _HOME.name,
    "HF_HOME": f"{_HOME.name}/huggingface",
    "XDG_CACHE_HOME": f"{_HOME.name}/cache",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

import runtime_types  # noqa: E402

torch.set_num_threads(1)
runtime_types.install("microtome")

# The same examples on every run, and no clock: a test fails for a reason in the code or not at all.
settings.register_profile(
    "microtome",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("microtome")

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _defaults_kept() -> Iterator[None]:
    """A module that changes torch's defaults would change the tests after it."""
    yield
    assert torch.get_default_dtype() == torch.float32, "this module left another default dtype behind"
    assert torch.is_grad_enabled(), "this module left gradients switched off"


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """A folder of real models, tokenizers and texts that is not part of the repository; skips where it is absent."""
    folder = Path(os.environ.get("MICROTOME_SHARED") or ROOT.parent / "shared")
    if not (folder / "models").is_dir():
        pytest.skip(f"no models at {folder}; set MICROTOME_SHARED to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def shared_models(shared: Path) -> Path:
    """The real models in that folder."""
    return shared / "models"


Offer = Callable[..., None]


@pytest.fixture
def offer(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Installs a package for one test, as `pip` would: `offer("methods", name="module")`, with its source if new.

    Entry points are read from the metadata of what is installed, so a folder of metadata on the path is enough.
    """
    site = tmp_path_factory.mktemp("site")
    monkeypatch.syspath_prepend(str(site))

    def install(kind: str, source: str | None = None, package: str = "stranger", **points: str) -> None:
        metadata = site / f"{package}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (metadata / "entry_points.txt").write_text("\n".join([f"[microtome.{kind}]", *lines]))
        for module in points.values() if source is not None else ():
            (site / f"{module}.py").write_text(source)
            monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    return install
