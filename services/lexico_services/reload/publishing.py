"""Which set nodes of a model take: the logic of Publish and Find, without gRPC."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from lexico_proto.errors import InvalidInput, UnknownDictionary
from lexico_proto.limits import DIGEST_BYTES
from lexico_proto.metrics import CODECS
from lexico_proto.v1 import dictionaries_pb2 as pb
from lexico_store import PageStore, PublishedSets
from lexico_store.lifetimes import now_us
from lexico_store.scopes import SHARED_SCOPE

_log = logging.getLogger(__name__)

MAX_MODELS: Final = 4
"""Names of one model in a call."""


class Publishing:
    """The published sets of every tenant. Calls block, and raise what the store's may.

    A tenant is told of its own records and of the operator's for all, and of no other tenant's.
    """

    def __init__(
        self,
        store: PageStore,
        find: Callable[[bytes, bytes], bytes | None],
        put: Callable[[bytes, bytes, bytes], None],
    ) -> None:
        """
        Args:
            store: where records are.
            find: gives the set of a digest that a scope may fetch; None where there is none.
            put: stores a set for a scope, within its bounds.
        """
        self._published = PublishedSets(store)
        self._find = find
        self._put = put

    def publish(
        self, scope: bytes, models: Sequence[bytes], digest: bytes | None, *, shared: bool
    ) -> list[str]:
        """Names a set for these models, for the codecs that it serves, or takes that back.

        Args:
            scope: of the caller.
            models: names of the model, 32 bytes each.
            digest: of a set that the caller may fetch; None to take back what is published.
            shared: for every tenant; the set is then stored for all of them.

        Returns:
            The codecs.

        Raises:
            UnknownDictionary: the caller may fetch no such set.
            Busy: there are as many records, or sets for every tenant, as there may be.
        """
        owner = SHARED_SCOPE if shared else scope
        if digest is None:
            codecs = self._published.take_back(owner, models)
            _log.warning("published sets taken back codecs=%s shared=%s", codecs, shared)
            return codecs
        data = self._find(scope, digest)
        if data is None:
            raise UnknownDictionary(
                f"dictionary set {digest.hex()[:16]} is not registered: register it first"
            )
        from lexico_codec.sets.dictionary import DictionarySet  # torch, which no other call needs

        made = DictionarySet.load(data)
        if shared:
            self._put(owner, digest, data)
        self._published.publish(owner, models, made.codecs, digest)
        _log.warning("set=%s published codecs=%s shared=%s", digest.hex(), made.codecs, shared)
        return list(made.codecs)

    def find(self, scope: bytes, models: Sequence[bytes], codec: str) -> pb.FindResponse:
        """What is published for a model: by the tenant, else for every tenant.

        Args:
            scope: of the caller.
            models: names of the model, the most exact one first.
            codec: that the set is to serve.

        Raises:
            InvalidInput: the codec is none that is known.
        """
        if codec not in CODECS:
            raise InvalidInput(f"Find: {len(codec.encode())} bytes of a codec that is not known")
        for owner in (scope, SHARED_SCOPE):
            found = self._published.find(owner, models, codec)
            if found is not None:
                return pb.FindResponse(
                    digest=found.digest,
                    age_s=max(0, now_us() - found.first_us) / 1e6,
                    shared=owner == SHARED_SCOPE,
                )
        return pb.FindResponse()


def checked_models(models: Sequence[bytes]) -> list[bytes]:
    """
    Raises:
        InvalidInput: none, too many, or one that is no digest.
    """
    if not 1 <= len(models) <= MAX_MODELS:
        raise InvalidInput(f"{len(models)} names of a model: outside 1..{MAX_MODELS}")
    for model in models:
        if len(model) != DIGEST_BYTES:
            raise InvalidInput(f"the name of a model has {DIGEST_BYTES} bytes, not {len(model)}")
    return list(models)
