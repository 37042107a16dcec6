"""Cases of alerts on pods; see `rule_cases`. Names are as KubeRay and Kubernetes make them."""

from __future__ import annotations

from typing import Final

from tests.monitoring.rule_case import Case

W, C = "warning", "critical"
IN: Final = {"namespace": "a"}


def ready(pod: str, samples: str) -> str:
    """Whether a pod is, as kube-state-metrics says it."""
    return f'kube_pod_status_ready{{namespace="a",pod="{pod}",condition="true"}} {samples}'


def phase(pod: str, name: str) -> str:
    return f'kube_pod_status_phase{{namespace="a",pod="{pod}",phase="{name}"}} 1x180'


def set_of(name: str, wanted: int, there: str) -> str:
    of = f'{{namespace="a",statefulset="{name}"}}'
    return (
        f"kube_statefulset_replicas{of} {wanted}x180\n"
        f"kube_statefulset_status_replicas_ready{of} {there}"
    )


def certificate(name: str, end: int) -> str:
    return f'certmanager_certificate_expiration_timestamp_seconds{{name="{name}"}} {end}x180'


_OURS: Final = 'lexico_build_info{namespace="a",pod="%s",part="ingress"} 1x180'
_HEAD: Final = "lexico-x7k2p-head-9qz4w"
_NEW_HEAD: Final = "lexico-b5m8t-head-2c6dj"
_INGRESS: Final = "lexico-x7k2p-ingress-worker-n4v7s"
_RELOAD: Final = "lexico-reload-6d5f7c9b8d-k2lmn"
_NOT_READY: Final = {
    **IN,
    "condition": "true",
}

PODS: Final = (
    Case("LexicoPodsUnseen", W, "no kube-state-metrics", "40m", _OURS % _INGRESS, (IN,)),
    Case("LexicoPodsUnseen", W, "no Kubernetes", "40m", _OURS % ""),
    Case(
        "LexicoPodsUnseen", W, "seen", "40m",
        f"{_OURS % _INGRESS}\n{ready(_INGRESS, '1x180')}",
    ),
    Case("LexicoRayHeadDown", C, "not ready", "30m", ready(_HEAD, "1x20 0x100"), (IN,)),
    Case("LexicoRayHeadDown", C, "gone", "40m", ready(_HEAD, "1x20 stale"), (IN,)),
    Case(
        "LexicoRayHeadDown", C, "another cluster's took over", "40m",
        f"{ready(_HEAD, '1x20 stale')}\n{ready(_NEW_HEAD, '0x10 1x100')}",
    ),
    Case("LexicoRayHeadDown", C, "a restart", "30m", ready(_HEAD, "1x20 0x3 1x100")),
    Case("LexicoRayHeadDown", C, "a worker", "30m", ready(_INGRESS, "1x20 0x100")),
    Case(
        "LexicoRayStateDown", W, "gone", "30m", set_of("lexico-ray-state", 1, "1x20 0x100"),
        ({**IN, "statefulset": "lexico-ray-state"},),
    ),
    Case("LexicoRayStateDown", W, "there", "30m", set_of("lexico-ray-state", 1, "1x100")),
    Case("LexicoRayStateDown", W, "the store", "30m", set_of("lexico-store", 1, "0x100")),
    Case(
        "LexicoServersNotReady", W, "one of two ingresses", "60m",
        f"{ready(_INGRESS, '1x20 0x100')}\n{ready('lexico-x7k2p-ingress-worker-z', '1x100')}",
        ({**_NOT_READY, "pod": _INGRESS},),
    ),
    Case(
        "LexicoServersNotReady", W, "a reload server", "60m", ready(_RELOAD, "1x20 0x100"),
        ({**_NOT_READY, "pod": _RELOAD},),
    ),
    Case("LexicoServersNotReady", W, "it starts", "30m", ready(_INGRESS, "0x15 1x100")),
    Case(
        "LexicoServersNotReady", W, "one that was evicted", "60m",
        f"{ready(_RELOAD, '0x100')}\n{phase(_RELOAD, 'Failed')}",
    ),
    Case(
        "LexicoServersNotReady", W, "an encoder alone", "60m",
        ready("lexico-x7k2p-encoders-worker-n4v7s", "0x100"),
    ),
    Case(
        "LexicoStoreReplicasMissing", W, "a replica", "60m",
        set_of("lexico-store", 3, "3x20 2x100"), ({**IN, "statefulset": "lexico-store"},),
    ),
    Case(
        "LexicoStoreReplicasMissing", W, "sentinels that wait", "60m",
        set_of("lexico-sentinel", 3, "0x100"), ({**IN, "statefulset": "lexico-sentinel"},),
    ),
    Case("LexicoStoreReplicasMissing", W, "all there", "60m", set_of("lexico-store", 3, "3x100")),
    Case(
        "LexicoStoreReplicasMissing", W, "a restart", "40m",
        set_of("lexico-store", 3, "3x20 2x10 3x100"),
    ),
    Case(
        "LexicoStoreCertificateEnding", C, "22 hours", "2h", certificate("lexico-store", 86400),
        ({"name": "lexico-store"},),
    ),
    Case("LexicoStoreCertificateEnding", C, "six days", "2h", certificate("lexico-store", 525600)),
    Case(
        "LexicoStoreCertificateEnding", W, "six days", "2h", certificate("lexico-store", 525600),
        ({"name": "lexico-store"},),
    ),
    Case("LexicoStoreCertificateEnding", W, "30 days", "2h", certificate("lexico-store", 2592000)),
    Case("LexicoStoreCertificateEnding", W, "another", "2h", certificate("lexico-node", 525600)),
)  # fmt: skip
