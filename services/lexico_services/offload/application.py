"""The application as a cluster imports it that has a configuration of its own for Ray Serve, such
as a RayService on Kubernetes:

    proxy_location: Disabled
    applications:
      - name: lexico
        route_prefix: null
        import_path: lexico_services.offload.application:build
        args: {config: /etc/lexico/lexico.toml, ingresses: 2}

Ray, its token and its memory are the cluster's, and so are the restarts of what ends. Settings come
from the file and from the environment of the process that builds, which Ray starts on any node.
Files that the settings name are read where the ingress runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

from ray.serve.exceptions import RayServeException

from lexico_proto.errors import ConfigurationError, LexicoError
from lexico_services.offload.deployment import IngressConfig, Placement, offload_app
from lexico_services.settings import Settings

INGRESS_RESOURCE: Final = "lexico_ingress"
"""Ray resource of which each node has one that an ingress may run on."""


@dataclass(frozen=True)
class BuildArguments:
    """`args` of the application in Ray Serve's configuration."""

    config: Path | None = None
    """Settings in TOML, on every node; without it those of the environment count."""
    ingresses: int = 1
    """Ingresses, each on a node of its own: as many as there are nodes with `INGRESS_RESOURCE`."""

    def __post_init__(self) -> None:
        if self.ingresses < 1:
            raise ConfigurationError(f"ingresses is {self.ingresses}: give 1 or more")

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Self:
        """From what Ray Serve passes on.

        Raises:
            ConfigurationError: a name that is none of ours, or a value of another type.
        """
        unknown = sorted(set(args) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigurationError(f"args: {', '.join(unknown)}: there are config and ingresses")
        config, ingresses = args.get("config"), args.get("ingresses", cls.ingresses)
        if not isinstance(config, str | None) or config == "":
            raise ConfigurationError("args: config must be the path of a file")
        if not isinstance(ingresses, int) or isinstance(ingresses, bool):
            raise ConfigurationError("args: ingresses must be a whole number")
        return cls(None if config is None else Path(config), ingresses)


# `args` is a plain dict: Ray Serve makes models of annotations that are classes of pydantic alone.
def build(args: dict[str, Any]) -> Any:
    """The bound application, for Ray Serve to deploy.

    Args:
        args: as in `BuildArguments`.

    Raises:
        RayServeException: an argument or a setting cannot be used. Ray Serve gives its text as the
            state of the application; of any other exception it would give the traceback, after
            three more tries.
    """
    try:
        return _built(BuildArguments.of(args))
    except LexicoError as error:
        raise RayServeException(error.message) from error


def _built(given: BuildArguments) -> Any:
    settings = Settings.of({}, given.config)
    encoder = settings.encoder(settings.store_url)
    if encoder.num_gpus is None:
        raise ConfigurationError(
            "encoder.num_gpus is not given: a cluster may grow, so what it has now decides "
            "nothing. Give 0, or the GPUs of one encoder"
        )
    listen = settings.listen_offload
    if not listen.port:
        raise ConfigurationError("offload.port is 0: nobody would know where an ingress listens")
    placement = Placement(INGRESS_RESOURCE, given.ingresses)
    # Nobody else on the ingress's node could say that it is ready.
    ingress = IngressConfig(
        listen,
        settings.offload,
        health_address=listen.health_address,
        telemetry=settings.telemetry,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    return offload_app(ingress, encoder, placement)
