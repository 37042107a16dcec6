"""A tenant's pages as RPCs: counted, pinned, forgotten."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

import grpc

from lexico_proto.errors import InvalidInput, QuotaExceeded
from lexico_proto.limits import DIGEST_BYTES, MAX_GROUPS
from lexico_proto.metrics import CALLS, OTHER, PROCESS, Calls, Metrics
from lexico_proto.v1 import admin_pb2 as pb
from lexico_proto.v1 import admin_pb2_grpc as pb_grpc
from lexico_services.admission import ThreadCalls
from lexico_services.auth import Tenants
from lexico_services.config import ReloadConfig
from lexico_services.policies import Policies
from lexico_services.reload.inspection import inspect_pages, tenant_uses
from lexico_services.roles import ADMIN, OPERATOR
from lexico_services.status import translated
from lexico_services.telemetry.process_status import ProcessStatus
from lexico_store import Ledger, PageStore
from lexico_store.ledger import MAX_LABEL_BYTES
from lexico_store.lifetimes import MAX_PAGE
from lexico_store.scopes import tenant_scope

T = TypeVar("T")
_log = logging.getLogger(__name__)

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Admin"].full_name

EVICTION: Final = (
    "A full store lets pages go in the order in which they expire. Each use of a prompt renews all "
    "of its pages, the first one longest, so what goes first is the end of the prompt that nobody "
    "used for longest; of two that were used alike, that of the tenant whose pages live shorter. "
    "Pinned pages and dictionary sets stay."
)

Context = grpc.aio.ServicerContext[Any, Any]


class AdminServicer(pb_grpc.AdminServicer):
    """Serves lexico_proto.v1.Admin: each tenant sees and changes its own pages alone. Only the
    role operator is told of others.
    """

    def __init__(
        self,
        store: PageStore,
        tenants: Tenants,
        policies: Policies,
        config: ReloadConfig,
        calls: ThreadCalls,
        metrics: Metrics = PROCESS,
    ) -> None:
        """
        Args:
            store: where pages are.
            tenants: who is calling.
            policies: what each may have.
            config: bounds.
            calls: where store calls block.
            metrics: where calls are counted.
        """
        self._ledger = Ledger(store)
        self._tenants = tenants
        self._policies = policies
        self._config = config
        self._calls = calls
        self._store = store
        self._metrics = metrics
        names = ("usage", "pin", "unpin", "forget", "inspect", "tenants")
        self._counts = {name: Calls(metrics, CALLS, name) for name in names}

    async def Usage(self, request: pb.UsageRequest, context: Context) -> pb.UsageResponse:
        """Counts every page that the tenant has noted."""
        response = pb.UsageResponse(eviction=EVICTION)
        async with translated(context, self._counts["usage"]):
            scope = self._tenants.admit(context, ADMIN).scope
            policy = self._policies.of(scope)
            uses, pins = await self._run(
                lambda: (self._ledger.usage(scope), self._ledger.pins(scope))
            )
            response.page_ttl_s = policy.page_ttl_s or self._config.page_ttl_s
            response.max_stored_bytes = policy.max_stored_bytes or 0
            response.max_pinned_bytes = policy.max_pinned_bytes
            response.max_inflight_bytes = policy.max_inflight_bytes or 0
            response.max_calls_per_s = policy.max_calls_per_s or 0.0
            for use in uses:
                response.namespaces.add(
                    namespace=use.namespace,
                    about=use.about,
                    pages=use.pages,
                    bytes=use.size,
                    pages_gone=use.gone,
                )
            for pin in pins:
                response.pins.add(
                    pin=pin.pin,
                    namespace=pin.namespace,
                    label=pin.label,
                    pages=len(pin.keys),
                    bytes=pin.size,
                )
        return response

    async def Pin(self, request: pb.PinRequest, context: Context) -> pb.PinResponse:
        """Pins the leading pages that are there."""
        response = pb.PinResponse()
        async with translated(context, self._counts["pin"]):
            scope = self._tenants.admit(context, ADMIN).scope
            namespace, keys = self._prompt(request.prompt)
            if len(request.label.encode()) > MAX_LABEL_BYTES:
                raise InvalidInput(f"a pin's label has at most {MAX_LABEL_BYTES} bytes")
            most = self._policies.of(scope).max_pinned_bytes
            label = request.label
            pin = await self._run(lambda: self._ledger.pin(scope, namespace, keys, label, most))
            if pin is None:
                raise QuotaExceeded(
                    f"the tenant's pins would hold over max_pinned_bytes={most} of its policy: "
                    "unpin another prompt, pin fewer pages, or have it raised"
                )
            _log.info("pinned pages=%d bytes=%d", len(pin.keys), pin.size)
            response = pb.PinResponse(pin=pin.pin, pages=len(pin.keys), bytes=pin.size)
        return response

    async def Unpin(self, request: pb.UnpinRequest, context: Context) -> pb.UnpinResponse:
        """Lets a pin go."""
        response = pb.UnpinResponse()
        async with translated(context, self._counts["unpin"]):
            scope = self._tenants.admit(context, ADMIN).scope
            ttl_s = self._policies.of(scope).page_ttl_s or self._config.page_ttl_s
            response.pages = await self._run(lambda: self._ledger.unpin(scope, request.pin, ttl_s))
        return response

    async def Forget(self, request: pb.ForgetRequest, context: Context) -> pb.ForgetResponse:
        """Forgets a prompt, a namespace or everything."""
        response = pb.ForgetResponse()
        async with translated(context, self._counts["forget"]):
            scope = self._tenants.admit(context, ADMIN).scope
            response.pages = await self._run(self._forgetting(scope, request))
            _log.warning("forgotten what=%s pages=%d", request.WhichOneof("what"), response.pages)
        return response

    async def Inspect(self, request: pb.InspectRequest, context: Context) -> pb.InspectResponse:
        """What is stored of pages, one by one."""
        async with translated(context, self._counts["inspect"]):
            scope = self._tenants.admit(context, ADMIN).scope
            namespace, keys = self._prompt(request.prompt)
            if request.groups > MAX_GROUPS or request.first_page + len(keys) > MAX_PAGE:
                raise InvalidInput(
                    f"Inspect: at most {MAX_GROUPS} groups, and {MAX_PAGE} pages of a sequence"
                )
            ttl_s = self._policies.of(scope).page_ttl_s or self._config.page_ttl_s
            about = (namespace, keys, request.first_page, request.groups, ttl_s)
            return await self._run(partial(inspect_pages, self._store, scope, *about))
        raise AssertionError("translated() aborts the call")  # pragma: no cover

    async def Tenants(self, request: pb.TenantsRequest, context: Context) -> pb.TenantsResponse:
        """What each tenant that is known by name has, and may have."""
        async with translated(context, self._counts["tenants"]):
            self._tenants.admit(context, OPERATOR)
            called = {each.tenant for each in ProcessStatus(self._metrics).tenants()} - {OTHER}
            names = sorted(called | self._tenants.names() | set(self._policies.names()))
            policies = [(name, self._policies.of(tenant_scope(name))) for name in names]
            return await self._run(
                partial(tenant_uses, self._store, policies, self._config.page_ttl_s)
            )
        raise AssertionError("translated() aborts the call")  # pragma: no cover

    def _forgetting(self, scope: bytes, request: pb.ForgetRequest) -> Callable[[], int]:
        what = request.WhichOneof("what")
        if what == "prompt":
            namespace, keys = self._prompt(request.prompt)
            return lambda: self._ledger.forget_prompt(scope, namespace, keys)
        if what == "namespace":
            namespace = _digest(request.namespace, "namespace")
            return lambda: self._ledger.forget(scope, namespace)
        if what == "everything" and request.everything:
            return lambda: self._ledger.forget(scope)
        raise InvalidInput("forget what: a prompt, a namespace, or everything?")

    def _prompt(self, prompt: pb.Prompt) -> tuple[bytes, list[bytes]]:
        if not 1 <= len(prompt.page_keys) <= self._config.max_pages:
            raise InvalidInput(
                f"{len(prompt.page_keys)} pages in one call: outside 1..{self._config.max_pages}"
            )
        keys = [_digest(key, "page key") for key in prompt.page_keys]
        return _digest(prompt.namespace, "namespace"), keys

    async def _run(self, work: Callable[[], T]) -> T:
        return await self._calls.run(work, self._config.max_stream_s)


def _digest(given: bytes, what: str) -> bytes:
    if len(given) != DIGEST_BYTES:
        raise InvalidInput(f"a {what} has {DIGEST_BYTES} bytes, not {len(given)}")
    return given
