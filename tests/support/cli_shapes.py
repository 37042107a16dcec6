"""The shape of each document that `lexico ... --json` prints: what programs may rely on.

A field is never renamed or removed, and new ones may come. A text says what a value is, and begins
with its type; `?` behind that stands for null. A list of one thing is a list of such things.
"""

from __future__ import annotations

from typing import Any, Final

TENANT: Final = {
    "tenant": "string: its name",
    "received_bytes": "integer: raw bytes of whole pages that came in",
    "stored_bytes": "integer: bytes of frames that were stored of them",
    "sent_bytes": "integer: bytes of frames that were sent",
    "matches": "integer: Matches of callers that want to load",
    "match_tokens": "integer: tokens that these asked for",
    "hit_tokens": "integer: of these, leading tokens that were there",
    "per_s": "object?: rate of each counter here, by its name, as numbers a second",
}
INGRESS: Final = {
    "pages_stored": "integer: pages that this server had encoded and stored",
    "pages_present": "integer: that were stored already",
    "pages_in_progress": "integer: that another call was encoding",
    "pages_failed": "integer",
    "pages_cancelled": "integer: whose caller went away",
    "received_bytes": "integer: raw bytes of whole pages",
    "stored_bytes": "integer: bytes of frames",
    "encoder_retries": "integer: pages given to a second encoder, because the first one died",
    "inflight_bytes": "integer: raw page bytes that there is room held for, now",
    "inflight_limit_bytes": "integer: most of them",
    "pages_encoding": "integer: pages with encoders or in their queues, now",
    "pages_waiting": "integer: pages that wait for their tenant's turn, now",
    "encoders": "integer?: that run, now",
    "per_s": "object?: as above",
}
RELOAD: Final = {
    "matches_all": "integer: Matches of which all pages were there",
    "matches_some": "integer: of which some were",
    "matches_none": "integer: of which none was",
    "match_tokens": "integer",
    "hit_tokens": "integer",
    "sent_pages": "integer: pages written to callers, to their last frame",
    "sent_bytes": "integer",
    "misses_absent": "integer: frames that were gone",
    "misses_damaged": "integer: that were damaged",
    "misses_newer": "integer: that a newer release wrote",
    "streams": "integer: being served, now",
    "streams_limit": "integer",
    "store_calls": "integer: that wait for the store, now",
    "buffered_bytes": "integer: held for streams, now",
    "buffered_limit_bytes": "integer",
    "sets_found": "integer: times that a node asked for its model's set, and one was published",
    "sets_missing": "integer: that none was: nodes that run lossless ask about once a minute",
    "store": {
        "up": "boolean: it answered the last question about itself",
        "numbers": {
            "used_bytes": "integer: memory of its servers",
            "max_bytes": "integer: their maxmemory; 0 where one has none",
            "evictions": "integer: keys let go for want of room",
            "expiries": "integer: keys whose time was over",
            "connections": "integer",
            "per_s": "object?: as above",
        },
    },
    "per_s": "object?: as above",
}
STATUS: Final = {
    "at": "number: when, in seconds since 1970",
    "servers": [
        {
            "address": "string: as it was given",
            "reachable": "boolean: whether it answered",
            "error": "string?: why not",
            "reason": "string?: the same as a word, see failures.md",
            "release": "string?",
            "part": "string?: ingress or reload-server",
            "running_s": "number?: seconds since it began",
            "counting": "boolean?: false where metrics.count is off: all numbers are 0 then",
            "over_s": "number?: seconds that the rates are of; null without rates",
            "own": TENANT,
            "ingress": INGRESS,
            "reload": RELOAD,
            "tenants": [TENANT],
        }
    ],
}
NULL_OBJECTS: Final = frozenset({"own", "ingress", "reload", "tenants", "store", "numbers"})
"""Objects and lists that may be null."""

FORMATS: Final = {
    "address": "string?: of the server",
    "release": "string?: null where the package is not installed as one",
    "frames": ["integer: version of frames that is read; the highest is written"],
    "sets": ["integer: format of dictionary sets that is read"],
    "codecs": ["string: that are read and written"],
    "dtypes": [
        "string: element types of caches that are read and written; none from an old server"
    ],
}

SERVERS: Final = (
    "object: HOST:PORT of each server that listens, by its name, as --address-file has it; on one "
    "line, once all of them do"
)

SHAPES: Final[dict[str, Any]] = {
    "serve": SERVERS,
    "offload-server": SERVERS,
    "reload-server": SERVERS,
    "train": {
        "sets": [
            {
                "codec": "string: that it is for",
                "out": "string: the file",
                "digest": "string: in hexadecimal digits",
                "bytes": "integer: of its file",
                "seconds": "number: of this call; what a former one did is not among it",
                "held_out": [
                    {
                        "key": "number: relative error of held-out text, a layer each; none of "
                        "lexico-residual",
                        "value": "number",
                    }
                ],
                "steps": "object: of lexico-residual, by the quality",
            }
        ],
        "registered": [
            {
                "digest": "string: with --register; fewer than sets where one was refused",
                "added": "boolean: it was not there before",
                "codecs": ["string: that nodes of the model code with it"],
            }
        ],
    },
    "eval": {
        "report": "string: the page",
        "data": "string: all that was measured, as JSON",
        "seconds": "number",
        "sources": [
            {
                "name": "string: of the text",
                "ways": [
                    {
                        "name": "string: codec or published method",
                        "bytes_fraction": "number: bytes stored / bytes of the cache",
                        "kl": "number: nats a token",
                    }
                ],
            }
        ],
        "not_run": [{"name": "string", "sources": ["string: texts"], "reason": "string: why not"}],
    },
    "status": STATUS,
    "inspect": {
        "namespace": "string: in hexadecimal digits",
        "about": "string?: what its pages are of, for people; with --namespace",
        "codec": "string?",
        "page_tokens": "integer?",
        "raw_page_bytes": "integer?: bytes of a page before it is encoded",
        "page_ttl_s": "number: seconds that a page lives after it is stored or last used",
        "stored_pages": "integer: of the pages asked for; with --namespace of all",
        "leading_pages": "integer: from the first page on, up to the first that is absent",
        "bytes": "integer: of the stored pages",
        "pages": [
            {
                "page": "integer: from 0",
                "page_key": "string: in hexadecimal digits",
                "present": "boolean",
                "groups": "integer: frames",
                "bytes": "integer: of its frames",
                "pinned": "boolean",
                "left_s": "number?: seconds until it expires",
                "unused_s": "number?: seconds since it was stored or last used",
            }
        ],
    },
    "explain": {
        "namespace": "string: in hexadecimal digits",
        "identity": "object: what the namespace is made of, text by part",
        "prompt_tokens": "integer",
        "loadable_tokens": "integer: leading tokens that are stored",
        "pages": [{"page": "integer", "page_key": "string", "present": "boolean"}],
        "pages_with_inputs": ["integer: page that more than token ids reached the model in"],
        "first_absent": "integer?: page",
        "absence": "string?: present, no-trace, left or forgotten",
        "forgotten_s": "number?: when, in seconds since 1970",
        "differs": ["string: part in which --against differs"],
        "namespaces": "integer?: that pages are stored of",
        "nearest": [
            {
                "differences": [{"part": "string", "ours": "string", "theirs": "string"}],
                "tokens": "integer?: leading tokens of the prompt that are stored there",
                "stored_s": "number: when its newest page set out, in seconds since 1970",
            }
        ],
        "tokens_without_inputs": "integer?: that are stored of the same tokens without --inputs",
        "untold": "string?: why the server did not say all of it",
        "waits_for_set": "boolean: --codec has no set, and nodes of --model run lossless",
    },
    "put": {
        "namespace": "string: in hexadecimal digits",
        "codec": "string",
        "tokens": "integer: that the pages cover",
        "pages": "integer",
        "outcomes": "object: how many pages are stored, present, in-progress",
        "bytes_sent": "integer: raw bytes over the wire",
        "bytes_stored": "integer: bytes of what was stored of them",
        "seconds": "number",
    },
    "get": {
        "namespace": "string: in hexadecimal digits",
        "codec": "string",
        "out": "string?: the file; null where nothing was stored and none was written",
        "tokens": "integer: in the file",
        "pages": "integer: in the file",
        "pages_asked": "integer: full pages of the prompt",
        "reason": "string?: what made it fewer than were matched",
        "bytes_received": "integer: of frames",
        "seconds": "number",
    },
    "dictionaries list": {
        "dictionaries": [
            {
                "digest": "string: in hexadecimal digits",
                "bytes": "integer: of its file",
                "model": "string: that it was trained on",
                "layers": "integer",
                "kv_heads": "integer",
                "head_dim": "integer",
                "shared": "boolean: every tenant has it",
            }
        ]
    },
    "dictionaries fetch": {"digest": "string", "bytes": "integer", "out": "string: the file"},
    "dictionaries register": {
        "digest": "string",
        "added": "boolean: it was not there before",
        "codecs": ["string: that nodes of --for code with it"],
    },
    "dictionaries take-back": {"codecs": ["string: that nodes have no set for any more"]},
    "tenants": {
        "tenants": [
            {
                "tenant": "string",
                "stored_bytes": "integer: about",
                "max_stored_bytes": "integer?: null for no bound",
                "pins": "integer",
                "pinned_bytes": "integer",
                "max_pinned_bytes": "integer",
                "max_inflight_bytes": "integer?",
                "max_calls_per_s": "number?",
                "page_ttl_s": "number",
            }
        ],
        "more": "boolean: there are more than are listed",
    },
    "quota": {
        "stored_bytes": "integer",
        "max_stored_bytes": "integer?: null for no bound",
        "pinned_bytes": "integer",
        "max_pinned_bytes": "integer",
        "max_inflight_bytes": "integer?",
        "max_calls_per_s": "number?",
        "page_ttl_s": "number",
        "eviction": "string: what a full store lets go first",
        "namespaces": [
            {
                "namespace": "string: in hexadecimal digits",
                "about": "string: what its pages are of",
                "pages": "integer",
                "bytes": "integer",
                "pages_gone": "integer: since they were last counted",
            }
        ],
        "pins": [
            {
                "pin": "string: in hexadecimal digits",
                "namespace": "string",
                "label": "string",
                "pages": "integer",
                "bytes": "integer",
            }
        ],
    },
    "pin": {"pin": "string: in hexadecimal digits", "pages": "integer", "bytes": "integer"},
    "unpin": {"pages": "integer: that expire from now on"},
    "forget": {"pages": "integer: that were removed at once"},
    "version": {
        "here": FORMATS,
        "reload": FORMATS,
        "offload": FORMATS,
        "python": "string",
    },
    "doctor": [
        {
            "name": "string",
            "state": "string: ok, warn or fail",
            "text": "string: what was found",
            "mend": "string: how to mend it",
        }
    ],
    "config": "object: each setting by its key, with its value and its source",
    "size": {
        "bytes_per_token": "integer: of the cache, as the model has it",
        "store_bytes": "number: of maxmemory, in which nothing is evicted before its time",
        "offload_bytes_per_s": "number: from nodes to ingresses",
        "reload_bytes_per_s": "number: from reload servers to nodes",
        "encoder_cores": "number",
        "decoder_cores": "number: over all nodes",
        "reload_servers": "number: have two at least",
        "saved_tokens_per_s": "number: that nobody prefills",
        "saved_gpus": "number?: null without --prefill-rate",
    },
}
"""By command. With `--watch` each look is a document on a line of its own. Servers of `version` are
there with `--servers`."""

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
}


def misfits(document: Any, shape: Any, path: str = "") -> list[str]:
    """Where a document is not of a shape; every field must be there, and no other."""
    name = path.rpartition(".")[2].removesuffix("[]")
    if document is None and name in NULL_OBJECTS:
        return []
    if isinstance(shape, list):
        if not isinstance(document, list):
            return [f"{path}: no list"]
        return [each for one in document for each in misfits(one, shape[0], f"{path}[]")]
    if isinstance(shape, dict):
        if not isinstance(document, dict):
            return [f"{path}: no object"]
        found = [f"{path}.{key}" for key in document.keys() ^ shape.keys()]
        for key in document.keys() & shape.keys():
            found += misfits(document[key], shape[key], f"{path}.{key}")
        return found
    kind = shape.partition(":")[0]
    if document is None:
        return [] if kind.endswith("?") else [f"{path}: null"]
    wanted = _TYPES[kind.removesuffix("?")]
    odd = isinstance(document, bool) and bool not in wanted
    return [] if isinstance(document, wanted) and not odd else [f"{path}: {document!r:.40}"]
