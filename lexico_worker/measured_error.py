"""How far codes are from what was coded: looked at now and then, after a page was stored."""

from __future__ import annotations

import itertools
import logging

import torch
from torch import Tensor

from lexico_codec.pages import decode_group
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import RELATIVE_ERROR, Metrics, codec_label

_log = logging.getLogger(__name__)


class ErrorSamples:
    """Decodes one layer group of one page in many and observes its relative error, the root of the
    squares of what differs over the root of the squares of what there was.
    """

    def __init__(self, every: int, metrics: Metrics) -> None:
        """
        Args:
            every: pages of lossy codecs from one that is measured to the next; 0 for none.
            metrics: where errors are observed.
        """
        self._every = every
        self._metrics = metrics
        self._pages = itertools.count()  # next() is atomic: any thread may ask

    def group_of_next(self, spec: CacheSpec) -> int | None:
        """The layer group of a page that was just stored which is to be measured, if any."""
        if not self._every or spec.codec.lossless:
            return None
        turn, rest = divmod(next(self._pages), self._every)
        return None if rest else turn % spec.groups

    def measure(
        self,
        spec: CacheSpec,
        page_key: bytes,
        page: int,
        group: int,
        source: Tensor,
        frame: bytes,
        dictionary: DictionarySet | None,
    ) -> None:
        """Observes the error of one frame. The page is stored: nothing that happens here matters
        to it.

        Args:
            source: what the frame was made of, `spec.group_shape(group)`.
            spec, page_key, page, group, frame, dictionary: as for `decode_group`.
        """
        try:
            decoded = torch.empty_like(source)
            decode_group(spec, page_key, page, group, frame, decoded, dictionary)
            exact = source.double()
            norm = float(exact.norm())
            error = float((decoded.double() - exact).norm()) / norm if norm else 0.0
        except Exception:  # noqa: BLE001 - the page is stored
            _log.exception("error not measured page=%d group=%d", page, group)
            return
        self._metrics.histogram(RELATIVE_ERROR, codec_label(spec.codec.name)).observe(error)
