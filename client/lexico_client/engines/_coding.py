"""What an engine's pages are coded with, as the settings of its adapter have it."""

from __future__ import annotations

from lexico_client._coding import Coding, checked_without_set
from lexico_client._settings import Timeouts
from lexico_client.engines._service import Service
from lexico_client.engines._settings import EngineSettings
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import ConfigurationError, LexicoError


def coding_of(
    service: Service,
    settings: EngineSettings,
    base: CacheSpec,
    model: str,
    *,
    known_positions: bool,
) -> Coding:
    """What pages are coded with from an engine's start on. Where there is no set at hand the
    service is asked, and the caller held up meanwhile, for `match_seconds` and a call's deadline at
    most; where it has none either, that is logged.

    Args:
        service: will be asked again from then on, while there is no set.
        settings: of the adapter.
        base: what pages belong to while they are lossless, without a set.
        model: its folder or its name, for messages.
        known_positions: whether the engine tells where in a prompt a page lies.

    Raises:
        ConfigurationError: a codec or set that cannot code the model's pages, naming the setting.
    """

    async def made() -> Coding:
        return await service.client.coding(
            base,
            settings.codec,
            codec_config=settings.codec_config,
            dictionary=settings.dictionary_given(),
            without_set=checked_without_set(settings.without_set),
            known_positions=known_positions,
            model=model,
        )

    try:
        return service.wait(made(), settings.match_seconds + Timeouts.dictionaries)
    except LexicoError as error:
        raise ConfigurationError(f"{settings.where}: codec: {error.message}") from error
