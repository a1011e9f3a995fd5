"""raysweep out of its wheel, in bare environments, away from the checkout. `make test-package`: fifteen minutes, 9 GB."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.package

ROOT = Path(__file__).parents[1]


def call(*command: str | Path, cwd: Path, timeout: float = 1800, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution of what git has, and a wheel out of that."""
    folder = tmp_path_factory.mktemp("package")
    call("git", "clone", "--quiet", ROOT, folder / "checkout", cwd=folder)
    call(sys.executable, "-m", "venv", folder / "tools", cwd=folder)
    tools = folder / "tools" / "bin"
    call(tools / "pip", "install", "--quiet", "build", "twine", cwd=folder)
    call(tools / "python", "-m", "build", "--outdir", folder / "dist", folder / "checkout", cwd=folder)
    checked = call(tools / "twine", "check", "--strict", *(folder / "dist").iterdir(), cwd=folder)
    assert checked.count("PASSED") == 2
    # Where nothing of it lies beside what is installed.
    shutil.move(folder / "checkout" / "constraints.txt", folder / "constraints.txt")
    shutil.rmtree(folder / "checkout")
    return folder


@pytest.mark.parametrize("python", ["python3.11", "python3.12"])
def test_it_works_out_of_its_wheel(python: str, distributions: Path, tmp_path: Path) -> None:
    found = shutil.which(python)
    if found is None or subprocess.run([found, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"no {python}")
    environment = tmp_path / "environment"
    call(found, "-m", "venv", environment, cwd=tmp_path)
    programs = environment / "bin"
    (wheel,) = (distributions / "dist").glob("*.whl")
    # Of auto-gptq only the solver is used; else its build asks for torch and a CUDA compiler.
    call(programs / "pip", "install", "--quiet", "--constraint", distributions / "constraints.txt", wheel, cwd=tmp_path,
         BUILD_CUDA_EXT="0")  # fmt: skip
    size = sum(path.stat().st_size for path in environment.rglob("*") if path.is_file())
    print(f"\n{python}: the environment has {size / 1e9:.2f} GB")

    raysweep = programs / "raysweep"
    own = {"RAYSWEEP_CACHE": str(tmp_path / "cache"), "RAY_ADDRESS": "local"}
    looked = json.loads(call(raysweep, "doctor", "--json", cwd=tmp_path, **own))
    assert {one["what"]: one["how"] for one in looked}["packages"] == "ok"
    begun = call(raysweep, "new", "study", "first", cwd=tmp_path)
    assert "first/first.yaml" in begun
    study = tmp_path / "first"
    assert json.loads(call(raysweep, "schema", cwd=study)) == json.loads((study / "raysweep.schema.json").read_text())
    rehearsed = call(raysweep, "run", "first.yaml", "--rehearse", cwd=study, **own)
    assert "every step of first works; nothing was kept" in rehearsed
    # GPTQ's solver, the report's page and figures, and a suite's tables come with it.
    call(programs / "python", "-m", "raysweep.analysis.example", "example", cwd=tmp_path, **own)
    call(raysweep, "analyze", "example/simulated.yaml", "--store", "example/store", "--output", "report", cwd=tmp_path)
    assert (tmp_path / "report" / "report.html").stat().st_size > 100_000
    call(programs / "python", "-c", "from auto_gptq.quantization import GPTQ", cwd=tmp_path)
    (tmp_path / "suite.yaml").write_text("name: s\nsuite: pythia\nselect: size == '14m'\nmirror: .\n")
    listed = subprocess.run([raysweep, "plan", "suite.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert "has no EleutherAI/pythia-14m" in listed.stderr
