"""The Secrets of `k8s.new_secrets` as a template, with passwords that Helm draws."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from unittest import mock

from k8s import new_secrets

TENANT = "TENANT"
"""Stands for each tenant of the values."""


def secret_templates() -> str:
    """All of them. One that is there stays as it is, whatever else changes."""
    drawn = itertools.count(1)
    with mock.patch.object(new_secrets, "_random", side_effect=lambda: f"<{next(drawn)}>"):
        made = new_secrets.secrets_of([TENANT])
    lines = ["{{- if .Values.secrets.create }}"]
    lines += [f"{{{{- $r{number} := randAlphaNum 64 }}}}" for number in range(1, next(drawn))]
    for secret in made:
        name = secret["metadata"]["name"]
        lines += [
            "---",
            f'{{{{- $old := lookup "v1" "Secret" .Release.Namespace "{name}" }}}}',
            "apiVersion: v1",
            "kind: Secret",
            "metadata:",
            f"  name: {name}",
            "  namespace: {{ .Release.Namespace }}",
            f"  labels: {json.dumps(secret['metadata']['labels'])}",
            "  annotations:",
            "    helm.sh/resource-policy: keep",
            "type: Opaque",
            "{{- if $old }}",
            "data: {{ $old.data | toJson }}",
            "{{- else }}",
            "stringData:",
            *_data(secret["stringData"]),
            "{{- end }}",
        ]
    lines.append("{{- end }}")
    return "\n".join(lines) + "\n"


def _data(data: dict[str, str]) -> Iterator[str]:
    for key, text in data.items():
        if "\n" not in text:
            yield f"  {key}: {_drawn(text)}"
            continue
        yield f"  {key}: |"
        for line in text.splitlines():
            if line.startswith(TENANT):
                yield "    {{- range .Values.secrets.tenants }}"
                yield "    {{ . }}:{{ randAlphaNum 64 }}"
                yield "    {{- end }}"
            else:
                yield f"    {_drawn(line)}"


def _drawn(text: str) -> str:
    """With variables of the template in place of what was drawn."""
    while "<" in text:
        before, _, rest = text.partition("<")
        number, _, after = rest.partition(">")
        text = f"{before}{{{{ $r{number} }}}}{after}"
    return text
