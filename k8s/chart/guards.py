"""Values that cannot work together: a template that refuses them, each with what to do instead.

What a value may be by itself is in values.schema.json; see `values`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Final

from k8s.checks.pods import quantity
from k8s.checks.rendering import base_with
from k8s.new_secrets import SMOKE_TEST
from lexico_services.policies import TenantPolicy
from lexico_worker.config import EncoderConfig

LEAST_STORE: Final = 256
"""MiB of a store's maxmemory: a page has tens of them."""
PROGRAMS: Final = 2048
"""MiB of Ray's processes, an ingress and an encoder with PyTorch, without what they hold."""

_MEBIBYTES: Final = """{{- define "lexico.mebibytes" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- if regexMatch "^[0-9]+g" (lower .) }}{{ mul 1024 $number }}{{ else }}{{ $number }}{{ end -}}
{{- end }}
"""
"""Of a quantity of Kubernetes, or of bytes as Valkey takes them."""


@dataclass(frozen=True)
class Guard:
    """What is refused."""

    when: str
    """Condition, as Helm writes it."""
    says: str
    """Which value, and what to do; `%v` stands for each of `of`."""
    of: Sequence[str] = ()
    """Expressions."""

    def template(self, indent: str = "") -> str:
        """One line."""
        told = " ".join([json.dumps(self.says), *(f"({each})" for each in self.of)])
        return f"{indent}{{{{- if {self.when} }}}}{{{{ fail (printf {told}) }}}}{{{{ end }}}}\n"


def _mebibytes(value: str) -> str:
    return f'include "lexico.mebibytes" .Values.{value} | int64'


def least_worker() -> int:
    """MiB of a worker: programs, dictionary sets, and twice /dev/shm, which pages come from and go
    to in memory of processes.
    """
    service = base_with().find("RayService", "lexico")
    if service is None:
        raise LookupError("the base has no RayService")
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    volumes = [v for group in groups for v in group["template"]["spec"]["volumes"]]
    shared = max(quantity(v["emptyDir"]["sizeLimit"]) for v in volumes if v["name"] == "shm")
    return int(2 * shared + EncoderConfig.dictionary_cache_bytes) // (1 << 20) + PROGRAMS


def guards() -> tuple[Guard, ...]:
    """All but those of the policy."""
    ours = 'ne .Values.store.kind "external"'
    maxmemory, memory = _mebibytes("store.maxmemory"), _mebibytes("store.memory")
    least = least_worker()
    return (
        Guard(
            "gt (int .Values.reload.minReplicas) (int .Values.reload.maxReplicas)",
            "reload.minReplicas is %v and reload.maxReplicas is %v: raise the latter, or lower the "
            "former",
            (".Values.reload.minReplicas", ".Values.reload.maxReplicas"),
        ),
        Guard(
            f"and ({ours}) (lt ({maxmemory}) (int64 {LEAST_STORE}))",
            f"store.maxmemory is %v: give at least {LEAST_STORE}mb, as a page has tens of MiB",
            (".Values.store.maxmemory",),
        ),
        Guard(
            f"and ({ours}) (lt (mul 3 ({memory})) (mul 4 ({maxmemory})))",
            "store.memory is %v and store.maxmemory is %v: give the pod a third more than its "
            "pages, %vMi or above, for buffers of clients and replicas",
            (
                ".Values.store.memory",
                ".Values.store.maxmemory",
                f"div (add 2 (mul 4 ({maxmemory}))) 3",
            ),
        ),
        Guard(
            f"lt ({_mebibytes('encoders.memory')}) (int64 {least})",
            f"encoders.memory is %v: give a worker {least}Mi or above, for Ray's shared memory, "
            "pages, dictionary sets and PyTorch",
            (".Values.encoders.memory",),
        ),
        Guard(
            "and .Values.secrets.create (not .Values.secrets.tenants)",
            "secrets.tenants is empty, so that nobody would have a token: name a tenant, or make "
            "the Secrets yourself and set secrets.create to false",
        ),
        Guard(
            "ne (len .Values.secrets.tenants) (len (uniq .Values.secrets.tenants))",
            "secrets.tenants names one tenant twice: %v",
            ('.Values.secrets.tenants | join ", "',),
        ),
        Guard(
            f"has {json.dumps(SMOKE_TEST)} .Values.secrets.tenants",
            f"secrets.tenants has {SMOKE_TEST}, which is given a token anyway: leave it out",
        ),
    )


def guards_template() -> str:
    """All of them; it renders nothing."""
    names = ("default", "tenants")
    known = [field.name for field in fields(TenantPolicy)]
    whole = Guard('hasKey $policy "Error"', "policy is no TOML: %v", ("$policy.Error",))
    table = Guard(
        f"not (has $table (list {_words(names)}))",
        "policy has %v: there are the tables [default] and [tenants.NAME] alone",
        ("$table",),
    )
    entry = Guard(
        f"not (has $name (list {_words(known)}))",
        "policy: %v is none of " + ", ".join(known),
        ("$name",),
    )
    kind = Guard(
        'not (kindIs "map" $entries)', "policy: %v has a value where a table of values must be",
        ("$table",),
    )  # fmt: skip
    number = Guard(
        f"and (has $name (list {_words(n for n in known if n.endswith('_s'))}))"
        ' (or (not (has (kindOf $value) (list "int64" "float64"))) (le (float64 $value) 0.0))',
        "policy: %v is %v: give a positive number",
        ("$name", "$value"),
    )
    lines = [
        _MEBIBYTES,
        *(each.template() for each in guards()),
        "{{- $policy := fromToml .Values.policy }}\n",
        whole.template(),
        "{{- range $table, $_ := $policy }}\n",
        table.template("  "),
        "{{- end }}\n",
        '{{- $tables := dict "default" (dict "default" (get $policy "default" | default dict)) '
        '"tenants" (get $policy "tenants" | default dict) }}\n',
        "{{- range $group := $tables }}\n",
        "  {{- range $table, $entries := $group }}\n",
        kind.template("    "),
        "    {{- range $name, $value := $entries }}\n",
        entry.template("      "),
        number.template("      "),
        "    {{- end }}\n",
        "  {{- end }}\n",
        "{{- end }}\n",
    ]
    return "".join(lines)


def _words(names: Iterable[str]) -> str:
    return " ".join(json.dumps(name) for name in names)
