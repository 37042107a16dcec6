"""The checks find nothing in what is there."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from k8s.checks import containerfile, images
from k8s.checks.all_checks import problems
from k8s.checks.pods import pods
from k8s.checks.rendering import HERE, base_with, everything


def test_nothing_is_wrong_with_what_is_there() -> None:
    found = [f"{r.name}: {problem}" for r in everything() for problem in problems(r)]
    assert found == []
    assert images.check() == []
    assert containerfile.check(everything()) == []


def test_a_containerfile_is_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "Containerfile"
    file.write_text("FROM debian\nRUN cd /tmp\n")
    told = [str(problem) for problem in images.check([file])]
    assert any("DL3006" in each for each in told)
    assert any("DL3003" in each for each in told)


def test_files_of_a_store_over_tls_are_where_its_url_says() -> None:
    (url,) = re.findall(r"url='(rediss://\S+)'", (HERE / "README.md").read_text())
    wanted = {path for values in parse_qs(urlsplit(url).query).values() for path in values}
    clients = [
        pod
        for pod in pods(base_with("external-redis"))
        if pod.labels.get("lexico-offload/store") == "client"
    ]
    assert len(clients) == 3
    for pod in clients:
        items = {
            volume["name"]: volume["secret"].get("items", [])
            for volume in pod.spec["volumes"]
            if "secret" in volume
        }
        assert wanted <= {
            f"{mount['mountPath']}/{item['path']}"
            for mount in pod.containers[0]["volumeMounts"]
            for item in items.get(mount["name"], ())
        }
