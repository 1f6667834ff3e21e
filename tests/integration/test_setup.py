"""tools/setup.sh on a miniature of the project: real uv, wheels from a folder, no network."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

_PROJECT = Path(__file__).parents[2]
_BACKEND = """
import shutil
def build_editable(folder, config_settings=None, metadata_directory=None):
    return shutil.copy("d5agent-1-py3-none-any.whl", folder).rpartition("/")[2]
"""


def _write_wheel(folder: Path, name: str, scripts: dict[str, str] | None = None) -> Path:
    """Write a wheel of one module and some programs."""
    data, info = f"{name}-1.data/scripts", f"{name}-1.dist-info"
    files = {f"{name}.py": "", f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
    files |= {f"{data}/{script}": text for script, text in (scripts or {}).items()}
    record = [f"{path},sha256={_record_hash(text)},{len(text)}\n" for path, text in files.items()]
    files[f"{info}/RECORD"] = "".join(record) + f"{info}/RECORD,,\n"
    wheel = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        for path, text in files.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if path.startswith(data) else 0o100644) << 16
            opened.writestr(entry, text)
    return wheel


def _record_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


class _Checkout:
    """A folder with the set-up, locks that name wheels beside it, and the servers on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._wheels = folder / "wheels"
        self._servers = folder / "servers"
        for each in (self._wheels, self._servers, folder / "tools"):
            each.mkdir(parents=True)
        for name in ("setup.sh", "uv_settings.py"):
            shutil.copy(_PROJECT / "tools" / name, folder / "tools")
        for name in ("mongod", "mongodump", "mongorestore"):
            (self._servers / name).touch(mode=0o755)
        self._adopt_uv()
        wheels = {name: _write_wheel(self._wheels, name) for name in ("first", "second", "server")}
        self.lock("requirements-dev.lock", wheels["first"], wheels["second"])
        self.lock("requirements-s3.lock", wheels["server"])
        _write_wheel(folder, "d5agent", {"d5agent": "#!python\n"})
        (folder / "backend.py").write_text(_BACKEND, encoding="utf-8")
        (folder / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
            '[project]\nname = "d5agent"\nversion = "1"\n',
            encoding="utf-8",
        )

    def _adopt_uv(self) -> None:
        """Take the project's own uv: pip would need three seconds to install it."""
        shutil.copy(_PROJECT / "tools" / "uv.lock", self.folder / "tools")
        stamps, uv = self.folder / ".tools" / "stamps", self.folder / ".tools" / "uv"
        stamps.mkdir(parents=True)
        uv.symlink_to(_PROJECT / ".tools" / "uv")
        digest = hashlib.sha256((self.folder / "tools" / "uv.lock").read_bytes()).hexdigest()
        (stamps / "uv").write_text(f"{digest} {(uv / 'bin' / 'python').resolve()} {self.folder}\n", encoding="utf-8")

    def lock(self, name: str, *wheels: Path) -> None:
        """Write a lock that names these wheels."""
        lines = [
            f"{wheel.name.split('-')[0]}==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
            for wheel in wheels
        ]
        (self.folder / name).write_text("".join(lines), encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text in a file."""
        path = self.folder / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")

    def set_up(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the set-up, offline."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
        environment = kept | {
            "PATH": f"{self._servers}:{os.environ['PATH']}",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self._wheels),
            "UV_CACHE_DIR": str(self.folder / "cache"),
        }
        command = [str(self.folder / "tools" / "setup.sh"), *options]
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)

    def modules(self, environment: str = ".venv") -> set[str]:
        """Return the names of the modules that an environment holds."""
        return {path.stem for path in (self.folder / environment).glob("lib/python3*/site-packages/*.py")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> _Checkout:
    checkout = _Checkout(tmp_path_factory.mktemp("setup") / "checkout")
    result = checkout.set_up()
    assert result.returncode == 0, result.stderr
    return checkout


@pytest.fixture
def checkout(made: _Checkout) -> _Checkout:
    """Return the checkout, its locks as they were and its environments made."""
    wheels = made.folder / "wheels"
    made.lock("requirements-dev.lock", wheels / "first-1-py3-none-any.whl", wheels / "second-1-py3-none-any.whl")
    assert made.set_up().returncode == 0
    return made


def _steps(result: subprocess.CompletedProcess[str]) -> set[str]:
    return {line.split(":")[1].strip() for line in result.stdout.splitlines() if line.endswith(": installed")}


def test_second_setup_installs_nothing(checkout: _Checkout) -> None:
    result = checkout.set_up()
    assert (result.returncode, result.stdout, result.stderr) == (0, "setup: ready\n", "")
    assert checkout.modules() == {"first", "second", "d5agent"}
    assert checkout.modules(".tools/s3-server") == {"server"}


def test_wrong_hash_is_refused_until_repaired(checkout: _Checkout) -> None:
    checkout.edit("requirements-dev.lock", "sha256:", "sha256:0000")
    text = (checkout.folder / "requirements-dev.lock").read_text(encoding="utf-8")
    cut = "".join(f"{line[: line.index('sha256:') + 71]}\n" for line in text.splitlines())
    (checkout.folder / "requirements-dev.lock").write_text(cut, encoding="utf-8")
    for _ in range(2):
        result = checkout.set_up()
        assert result.returncode == 1
        assert "not what the lock names" in result.stderr
        assert "ready" not in result.stdout


def test_package_that_left_the_lock_is_removed(checkout: _Checkout) -> None:
    checkout.lock("requirements-dev.lock", checkout.folder / "wheels" / "second-1-py3-none-any.whl")
    result = checkout.set_up()
    assert (result.returncode, _steps(result)) == (0, {"project"})
    assert checkout.modules() == {"second", "d5agent"}


def test_environment_of_an_interrupted_setup_is_made_again(checkout: _Checkout) -> None:
    (checkout.folder / ".tools" / "stamps" / "s3-server").unlink()
    for module in (checkout.folder / ".tools" / "s3-server").glob("lib/python3*/site-packages/server.py"):
        module.unlink()
    result = checkout.set_up()
    assert (result.returncode, _steps(result)) == (0, {"s3-server"})
    assert checkout.modules(".tools/s3-server") == {"server"}


def test_environment_without_interpreter_is_made_again(checkout: _Checkout) -> None:
    (checkout.folder / ".venv" / "bin" / "python").unlink()
    result = checkout.set_up("--python-only")
    assert (result.returncode, _steps(result)) == (0, {"project"})


def test_one_failed_step_fails_the_setup(checkout: _Checkout) -> None:
    (checkout.folder / ".tools" / "stamps" / "s3-server").unlink()
    (checkout.folder / "requirements-dev.lock").write_text(f"absent==1 --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    result = checkout.set_up()
    assert result.returncode == 1
    assert "setup: project was not installed" in result.stderr
    assert "absent" in result.stderr
