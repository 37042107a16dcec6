"""What counts nothing of ours: pods, by kube-state-metrics, and certificates, by cert-manager.
Prometheus has to scrape their metrics. Names are those that the manifests give, and KubeRay.
"""

from __future__ import annotations

from typing import Final

from k8s.monitoring.alerts.alert import Alert

HEAD: Final = "lexico-.+-head-.+"
"""Names of the pod of Ray's head: KubeRay has the RayService's, its cluster's and a random one."""
SERVERS: Final = "lexico-.+-ingress-worker-.+|lexico-reload-.+"
"""Names of pods that nodes call."""
STORE: Final = "lexico-store|lexico-sentinel"
"""StatefulSets of the page store."""


def _ready(pods: str) -> str:
    return f'kube_pod_status_ready{{pod=~"{pods}", condition="true"}}'


_ENDED: Final = 'kube_pod_status_phase{phase=~"Succeeded|Failed"} == 1'
_CERTIFICATE_LEFT: Final = (
    'certmanager_certificate_expiration_timestamp_seconds{name="lexico-store"} - time()'
)
_CERTIFICATE_ENDS: Final = "The certificate of the store ends in {{ $value | humanizeDuration }}"

ALERTS: Final = (
    Alert(
        "LexicoPodsUnseen",
        "warning",
        # Outside Kubernetes no process has a pod.
        'group by (namespace) (lexico_build_info{pod!=""}) unless on () kube_pod_status_ready',
        "30m",
        "Prometheus has no kube-state-metrics, and {{ $labels.namespace }} has pods",
        "No alert on Ray's head, its state, or servers that are not ready can fire.",
    ),
    Alert(
        "LexicoRayHeadDown",
        "critical",
        f"group by (namespace) (max_over_time({_ready(HEAD)}[1d]) == 1)"
        f" unless group by (namespace) ({_ready(HEAD)} == 1)",
        "5m",
        "Ray in {{ $labels.namespace }} has no head that is ready",
        "Ingress and encoders that run go on for some minutes; what ends is not replaced.",
    ),
    Alert(
        "LexicoRayStateDown",
        "warning",
        'kube_statefulset_status_replicas_ready{statefulset="lexico-ray-state"} == 0',
        "5m",
        "The state of Ray's head in {{ $labels.namespace }} is not there",
        "Ray's head ends without it, or does not come back: see LexicoRayHeadDown.",
    ),
    Alert(
        "LexicoServersNotReady",
        "warning",
        f"{_ready(SERVERS)} == 0 unless on (namespace, pod) {_ENDED}",
        "20m",
        "{{ $labels.namespace }} {{ $labels.pod }} is not ready",
        "The others have its part of the load, and the next one that is lost may be the last.",
    ),
    Alert(
        "LexicoStoreReplicasMissing",
        "warning",
        f'kube_statefulset_replicas{{statefulset=~"{STORE}"}}'
        " - on (namespace, statefulset) kube_statefulset_status_replicas_ready > 0",
        "15m",
        "{{ $labels.namespace }} {{ $labels.statefulset }} lacks {{ $value }} servers",
        "Nothing is lost yet. The next failure may find nobody to take over.",
    ),
    Alert(
        "LexicoStoreCertificateEnding",
        "critical",
        f"{_CERTIFICATE_LEFT} < 86400",
        "5m",
        _CERTIFICATE_ENDS,
        "From then on nobody connects to the store: every load is a miss, every offload is lost.",
    ),
    Alert(
        "LexicoStoreCertificateEnding",
        "warning",
        f"{_CERTIFICATE_LEFT} < 7 * 86400",
        "1h",
        _CERTIFICATE_ENDS,
        "cert-manager should have renewed it 30 days before.",
    ),
)
