"""What can be known of images without building one; `make image-check` builds and runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from k8s.checks import containerfile
from k8s.checks.pods import pods
from k8s.checks.rendering import base_with, overlay
from k8s.images import bill, build, check, container, machine
from requirements import lock

TEXT: Final = containerfile.FILE.read_text()


def told(text: str) -> list[str]:
    return [str(problem) for problem in containerfile.check([base_with(), overlay("dev")], text)]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("COPY lexico_lab lexico_lab", "COPY lexico_labs lexico_lab", "copies lexico_labs, which"),
        ("COPY lexico_lab lexico_lab\n", "", "the wheel needs lexico_lab"),
        ("COPY LICENSE ", "COPY CHANGELOG.md ", "copies CHANGELOG.md, which .dockerignore leaves"),
        (
            "torch-${FLAVOUR}.lock ./",
            "torchs-${FLAVOUR}.lock ./",
            "copies requirements/images/torch",
        ),
        ("WORKDIR /src\nARG FLAVOUR\n", "", "uses FLAVOUR, which its stage does not declare"),
        ("COPY --from=build /layers/torch", "COPY --from=built /layers/torch", "out of built"),
        ("USER 10001:10001", "USER 10002:10001", "and reload runs as 10001:10001"),
        ("HOME=/tmp", "HOME=/home/lexico", "HOME is not /tmp, as reload has it"),
        ("EXPOSE 7411 7412", "EXPOSE 7411", "EXPOSE lacks 7412 of reload"),
    ],
)
def test_a_broken_containerfile_is_refused(old: str, new: str, problem: str) -> None:
    assert old in TEXT
    assert any(problem in each for each in told(TEXT.replace(old, new)))


def test_a_folder_that_a_job_writes_to_is_made() -> None:
    found = containerfile.check([base_with("train")], TEXT.replace("/training", "/trained"))
    assert [str(each) for each in found] == [
        "images/Containerfile: no folder /training is made, which train writes to"
    ]


def test_locks_of_images_have_the_versions_of_the_others() -> None:
    parts = [path.read_text() for path in lock.files().values() if path.parent == lock.HERE]
    known = {entry for text in parts for each in lock.entries(text).values() for entry in each}
    for path in lock.files().values():
        if path.parent != lock.HERE and path.stem not in ("build", "torch-cuda"):
            found = lock.entries(path.read_text())
            assert {entry for each in found.values() for entry in each} <= known, path.name


def test_torch_for_cuda_comes_with_hashes_and_its_libraries() -> None:
    found = lock.entries((lock.HERE / "images" / "torch-cuda.lock").read_text())
    assert {"torch", "triton", "nvidia-cublas"} <= set(found)
    assert all("--hash=sha256:" in entry for each in found.values() for entry in each)


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[str], list[Path]]:
    def make(torch: str) -> list[Path]:
        native = tmp_path / "lexico_codec/kernels/native"
        native.mkdir(parents=True)
        (native / "liblexico.so").touch()
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch/version.py").write_text(f"__version__ = '{torch}'\n")
        return [tmp_path]

    return make


@pytest.mark.parametrize(
    ("torch", "flavour", "problem"),
    [
        ("2.13.0+cpu", "cpu", ""),
        ("2.13.0+cu130", "cuda", ""),
        ("2.13.0+cu130", "cpu", "pip found a CUDA build of torch for FLAVOUR=cpu"),
        ("2.13.0+cpu", "cuda", "pip found a CPU build of torch for FLAVOUR=cuda"),
    ],
)
def test_an_image_has_the_torch_of_its_flavour(
    installed: Callable[[str], list[Path]], torch: str, flavour: str, problem: str
) -> None:
    found = list(bill.problems(installed(torch), flavour))
    assert len(found) == bool(problem)
    assert "".join(found).startswith(problem)


def test_an_image_without_kernels_is_refused(tmp_path: Path) -> None:
    (problem,) = bill.problems([tmp_path], "cpu")
    assert problem.startswith("the CPU kernels were not compiled")


def test_debians_packages_have_package_urls() -> None:
    (found,) = bill.of_debian("libstdc++6\t1:12.2.0-14+deb12u1\tamd64\n")
    assert found["name"] == "libstdc++6"
    assert found["purl"].startswith("pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14%2Bdeb12u1?arch=")


DEFAULT: Final[dict[str, Any]] = {
    "process": {},
    "linux": {"resources": {}},
    "mounts": [{"destination": "/proc"}, {"destination": "/dev/shm"}],
}
CONFIGURATION: Final = {"Env": ["HOME=/", "PATH=/opt/lexico/bin"], "WorkingDir": "/tmp"}


def described(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    rendering = overlay("dev")
    (pod,) = pods(rendering)
    return container.specification(
        DEFAULT, rendering, pod, CONFIGURATION, tmp_path / "root", tmp_path, **changes
    )


def test_a_container_is_run_as_its_manifest_says(tmp_path: Path) -> None:
    found = described(tmp_path)
    process = found["process"]
    assert process["args"] == ["lexico", "serve", "--config", "/etc/lexico/config/lexico.toml"]
    assert process["user"] == {"uid": 10001, "gid": 10001, "additionalGids": [10001]}
    assert process["env"] == ["HOME=/tmp", "PATH=/opt/lexico/bin"]
    assert (process["capabilities"], process["noNewPrivileges"]) == ({}, True)
    assert found["root"]["readonly"]
    assert found["linux"]["resources"]["memory"] == {"limit": 4 << 30}
    mounts = {each["destination"]: each for each in found["mounts"]}
    assert sorted(mounts) == ["/dev/shm", "/etc/lexico/config", "/proc", "/tmp"]
    assert f"size={512 << 20}" in mounts["/dev/shm"]["options"]
    assert "ro" in mounts["/etc/lexico/config"]["options"]
    assert (Path(mounts["/etc/lexico/config"]["source"]) / "lexico.toml").exists()
    json.dumps(found)


def test_a_container_is_run_as_another_user_of_group_zero(tmp_path: Path) -> None:
    found = described(tmp_path, user=123_456, command=("lexico", "doctor"))
    assert found["process"]["user"] == {"uid": 123_456, "gid": 0, "additionalGids": [10001]}
    assert found["process"]["args"] == ["lexico", "doctor"]


def test_what_cannot_be_mounted_is_refused(tmp_path: Path) -> None:
    rendering = base_with()
    (pod,) = (each for each in pods(rendering) if each.component == "reload")
    with pytest.raises(ValueError, match="Deployment/lexico-reload: volume store cannot be"):
        container.specification(DEFAULT, rendering, pod, CONFIGURATION, tmp_path, tmp_path)


def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert check.main() == 2
    said = capsys.readouterr().err
    assert "the Debian package buildah, the Debian package debootstrap" in said
    assert said.count("\n") == 1
    assert build.main(["cpu"]) == 2


def test_a_base_is_named_by_its_digest(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["cuda", "--base", "debian:bookworm-slim"]) == 2
    assert "names no digest" in capsys.readouterr().err


def test_what_pip_is_set_to_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index, certificates = tmp_path / "index" / "simple", tmp_path / "ca.crt"
    index.mkdir(parents=True)
    certificates.touch()
    for name in ("PIP_CERT", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    settings = tmp_path / "pip.conf"
    settings.write_text(f"[global]\ncert = {certificates}\nextra-index-url = file://{index}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    text, places = machine.pip_settings()
    assert f"cert = {machine.FILES / 'ca.crt'}\n" in text
    assert f"extra-index-url = file://{index}\n" in text
    assert places[machine.FILES / "ca.crt"] == certificates
    assert places[index.parent] == index.parent
