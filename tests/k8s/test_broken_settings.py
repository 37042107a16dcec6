"""Broken settings, commands, and what Ray is told."""

from __future__ import annotations

import pytest

from tests.support.broken_manifests import Broken, Case, environment, put, said, swap

WORKER = "spec.rayClusterConfig.workerGroupSpecs.0.template.spec"
POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"
SERVE_CONFIG = "spec/serveConfigV2"
SETTINGS = "data/lexico.toml"

CASES: list[Case] = [
    # settings, by the code that reads them
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, "drain_s", "drain_seconds"),
        "listen.drain_seconds is no setting",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, "port = 7412", "port = 7413"),
        "its port reload is 7412, and reload.port is 7413",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, 'token_file = "/etc/lexico/tokens/tokens"', ""),
        "listening on 0.0.0.0 without tokens",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, "drain_s = 15.0", "drain_s = 60.0"),
        "is killed after 45 s",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, 'drain_file = "/tmp/drain"', ""),
        "preStop does not touch offload.drain_file, None",
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{WORKER}.containers.0.lifecycle.preStop.exec.command.2", "touch /tmp/drain; sleep 9"),
        "preStop ends before listen.drain_s",
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{WORKER}.terminationGracePeriodSeconds", 30),
        "is killed after 30 s, and its preStop takes 25",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.livenessProbe.grpc.service", "ready"),
        "livenessProbe asks for 'ready'",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, "7413", "7414"),
        "readinessProbe asks port 7413, and listen.health_address is 0.0.0.0:7414",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap("data/policy.toml", "page_ttl_s", "page_ttl"),
        "policy.toml: ",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        environment(CONTAINER, "LEXICO_RELOAD__MAX_PAGE", "3"),
        "LEXICO_RELOAD__MAX_PAGE is no setting",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        environment(CONTAINER, "LEXICO_LOG__LEVEL", "debug"),
        "differently: keep one of them",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.args.0", "reload"),
        "invalid choice: 'reload'",
    ),
    (
        "dev",
        "Deployment/lexico",
        put(f"{CONTAINER}.args.1", "--configuration"),
        "unrecognized arguments",
    ),
    (
        "dev",
        "Deployment/lexico",
        put(f"{POD}.volumes.1.emptyDir.sizeLimit", "64Mi"),
        "/dev/shm is smaller than pages in flight need",
    ),
    # the operator
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.tlsOptions", {"enabled": True}),
        "tlsOptions needs a feature gate",
    ),
    (
        "base",
        "RayService/lexico",
        environment(f"{WORKER}.containers.0", "RAY_AUTH_MODE", "token"),
        "group ingress: variable RAY_AUTH_MODE is the operator's",
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{WORKER}.restartPolicy", "Always"),
        "group ingress: restartPolicy must be Never",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.workerGroupSpecs.0.resources", {"CPU": "4"}),
        "resources and rayStartParams both",
    ),
    # Ray
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.rayVersion", "2.59.0"),
        "rayVersion 2.59.0 is not the locked one",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.authOptions.mode", "disabled"),
        "authOptions.mode is not token",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", "1"),
        "the head takes work",
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{WORKER}.containers.0.readinessProbe", None),
        "group ingress: has no readinessProbe",
    ),
    (
        "base",
        "RayService/lexico",
        swap(SERVE_CONFIG, "application:build", "application:built"),
        "application:built is not there",
    ),
    (
        "base",
        "RayService/lexico",
        swap(SERVE_CONFIG, "ingresses:", "ingress:"),
        "args.ingress is no argument",
    ),
    (
        "base",
        "RayService/lexico",
        swap(SERVE_CONFIG, "Disabled", "EveryNode"),
        "proxy_location is not Disabled",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.workerGroupSpecs.1.minReplicas", 5),
        "needs minReplicas <= replicas <= maxReplicas",
    ),
    (
        "base",
        "RayService/lexico",
        environment(f"{WORKER}.containers.0", "LEXICO_ENCODER__NUM_GPUS", "2"),
        "head and workers have different settings",
    ),
    (
        "base",
        "RayService/lexico",
        put(
            "spec.rayClusterConfig.workerGroupSpecs.0.rayStartParams.object-store-memory",
            "9000000000",
        ),
        "object-store-memory is not within /dev/shm",
    ),
]


@pytest.mark.parametrize(("rendering", "of", "broken", "told"), CASES)
def test_a_broken_copy_is_refused(rendering: str, of: str, broken: Broken, told: str) -> None:
    found = said(rendering, of, broken)
    assert any(told in each for each in found), "\n".join(found)
