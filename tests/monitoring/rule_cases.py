"""For each alert and severity: series that make it fire, and series that leave it silent.

Samples are a minute apart and begin at minute 0: `0+5x60` grows by 5 a minute for an hour, `_x20`
is nothing for 20 minutes, `stale` is a series that ends.
"""

from __future__ import annotations

from typing import Final

from tests.monitoring.pod_cases import PODS
from tests.monitoring.rule_case import Case

IN: Final = {"namespace": "a"}
AT: Final = {"instance": "i", "job": "j"}
W, C = "warning", "critical"


def calls(method: str, **growth: int) -> str:
    """Calls a minute by outcome, for three hours; `_` in an outcome is `-`."""
    lines = (
        f'lexico_calls_total{{namespace="a",method="{method}",outcome="{k.replace("_", "-")}"}} '
        f"0+{v}x180"
        for k, v in growth.items()
    )
    return "\n".join(lines)


def ours(part: str = "ingress", samples: str = "1x180", instance: str = "i") -> str:
    labels = f'namespace="a",job="j",instance="{instance}",part="{part}",version="1"'
    return f"lexico_build_info{{{labels}}} {samples}"


def of_process(name: str, samples: str, labels: str = "") -> str:
    return f'{name}{{{labels}job="j",instance="i"}} {samples}'


def of_tokens(hits: str) -> str:
    return (
        f'lexico_hit_tokens_total{{namespace="a"}} {hits}\n'
        'lexico_match_tokens_total{namespace="a"} 0+150000x120'
    )


PROCESSES: Final = (
    Case("LexicoMetricsAbsent", W, "others alone", "15m", 'up{job="web"} 1x60', ({},)),
    Case("LexicoMetricsAbsent", W, "one of ours", "15m", ours()),
    Case(
        "LexicoScrapeFailing", W, "was there, is down", "30m",
        f"{of_process('up', '1x20 0x40')}\n{ours(samples='1x20 stale')}", (AT,),
    ),
    Case("LexicoScrapeFailing", W, "another's target", "30m", of_process("up", "1x20 0x40")),
    Case(
        "LexicoScrapeFailing", W, "three minutes", "24m",
        f"{of_process('up', '1x20 0x3 1x40')}\n{ours(samples='1x20 _x3 1x40')}",
    ),
    Case(
        "LexicoPartGone", C, "the last reload server", "30m",
        f"{ours()}\n{ours('reload-server', '1x20 stale', 'r')}",
        ({**IN, "part": "reload-server"},),
    ),
    Case(
        "LexicoPartGone", C, "one of two", "30m",
        f"{ours('reload-server')}\n{ours('reload-server', '1x20 stale', 'r')}",
    ),
    Case(
        "LexicoRestarting", W, "three starts", "20m",
        f"{of_process('process_start_time_seconds', '1x5 2x5 3x5 4x90')}\n{ours()}", (AT,),
    ),
    Case(
        "LexicoRestarting", W, "one start", "20m",
        f"{of_process('process_start_time_seconds', '1x10 2x90')}\n{ours()}",
    ),
    Case(
        "LexicoRestarting", W, "another's process", "20m",
        of_process("process_start_time_seconds", "1x5 2x5 3x5 4x90"),
    ),
)  # fmt: skip

_END: Final = "lexico_certificate_end_timestamp_seconds"
_READS: Final = "lexico_file_reads_total"
_REFUSED: Final = 'outcome="refused",'

DOORS: Final = (
    Case("LexicoCertificateEnding", C, "22 hours", "2h", of_process(_END, "86400x180"), (AT,)),
    Case("LexicoCertificateEnding", C, "six days", "2h", of_process(_END, "525600x180")),
    Case("LexicoCertificateEnding", W, "six days", "2h", of_process(_END, "525600x180"), (AT,)),
    Case("LexicoCertificateEnding", W, "30 days", "2h", of_process(_END, "2592000x180")),
    Case(
        "LexicoFilesRefused", W, "the first of a process", "35m",
        of_process(_READS, "_x30 1x60", _REFUSED), ({**AT, "outcome": "refused"},),
    ),
    Case(
        "LexicoFilesRefused", W, "one more", "35m",
        of_process(_READS, "1x30 2x60", _REFUSED), ({**AT, "outcome": "refused"},),
    ),
    Case("LexicoFilesRefused", W, "long ago", "3h", of_process(_READS, "1x200", _REFUSED)),
    Case("LexicoFilesRefused", W, "taken", "1h", of_process(_READS, "0+1x90", 'outcome="taken",')),
    Case("LexicoCallersRefused", W, "half", "1h", calls("match", ok=5, unauthenticated=5), (IN,)),
    Case("LexicoCallersRefused", W, "2 %", "1h", calls("match", ok=98, unauthenticated=2)),
    Case("LexicoCallersRefused", W, "few calls", "1h", calls("match", ok=1, permission_denied=1)),
)  # fmt: skip

_BUCKET: Final = 'lexico_call_seconds_bucket{namespace="a",method="match",le='
_SLOW: Final = (
    f'{_BUCKET}"0.5"}} 0+%dx180\n{_BUCKET}"1"}} 0+20x180\n{_BUCKET}"+Inf"}} 0+20x180\n'
    'lexico_call_seconds_count{namespace="a",method="match"} 0+20x180'
)
_ENDED: Final = (
    'lexico_calls_total{namespace="a",method="get",outcome="internal"} 0+20x60 1200x120\n'
    'lexico_calls_total{namespace="a",method="get",outcome="ok"} 0+80x180'
)
_LOADS: Final = (
    'lexico_client_misses_total{namespace="a",reason="%s"} 0+2x180\n'
    'lexico_client_seconds_count{namespace="a",operation="load"} 0+10x180'
)
_DAMAGED: Final = "lexico_checksum_failures_total"
_WHERE: Final = 'where="store",'


def _budget(alert: str, method: str) -> tuple[Case, ...]:
    return (
        Case(alert, C, "a fifth", "70m", calls(method, ok=80, store_unavailable=20), (IN,)),
        Case(alert, C, "a tenth", "70m", calls(method, ok=90, store_unavailable=10)),
        Case(alert, C, "callers' faults", "70m", calls(method, ok=50, invalid_input=50)),
        Case(alert, W, "a tenth", "2h", calls(method, ok=90, deadline_expired=10), (IN,)),
        Case(alert, W, "a hundredth", "2h", calls(method, ok=99, internal=1)),
    )


CALLS: Final = (
    *_budget("LexicoReloadErrorBudgetBurn", "match"),
    Case("LexicoReloadErrorBudgetBurn", C, "it is over", "75m", _ENDED),
    Case(
        "LexicoReloadErrorBudgetBurn", C, "five calls", "70m",
        'lexico_calls_total{namespace="a",method="get",outcome="internal"} 0x60 5x60',
    ),
    *_budget("LexicoOffloadErrorBudgetBurn", "put"),
    Case(
        "LexicoRefusingCalls", W, "a tenth", "1h", calls("put", ok=90, busy=10),
        ({**IN, "method": "put"},),
    ),
    Case("LexicoRefusingCalls", W, "a hundredth", "1h", calls("put", ok=99, busy=1)),
    Case("LexicoMatchSlow", W, "half of them", "1h", _SLOW % 10, (IN,)),
    Case("LexicoMatchSlow", W, "quick", "1h", _SLOW % 20),
    Case(
        "LexicoReloadNearlyFull", W, "streams", "30m",
        f"{of_process('lexico_streams', '62x60')}\n{of_process('lexico_streams_limit', '64x60')}",
        (AT,),
    ),
    Case(
        "LexicoReloadNearlyFull", W, "buffers", "30m",
        of_process("lexico_buffered_bytes", "500x60")
        + "\n" + of_process("lexico_buffered_limit_bytes", "512x60"),
        (AT,),
    ),
    Case(
        "LexicoReloadNearlyFull", W, "a moment", "30m",
        f"{of_process('lexico_streams', '9x28 64x2 9x30')}\n"
        + of_process("lexico_streams_limit", "64x60"),
    ),
    Case(
        "LexicoHitRateFell", W, "from 80 to 10 %", "27h",
        of_tokens("0+120000x100 12000000+15000x20"), (IN,), "15m",
    ),
    Case("LexicoHitRateFell", W, "as ever", "27h", of_tokens("0+120000x120"), step="15m"),
    Case(
        "LexicoHitRateFell", W, "never high", "27h", of_tokens("0+7500x100 750000+1500x20"),
        step="15m",
    ),
    Case(
        "LexicoNewerFrames", W, "each minute", "70m",
        'lexico_misses_total{namespace="a",reason="newer"} 0+1x90', (IN,),
    ),
    Case(
        "LexicoNewerFrames", W, "evicted", "70m",
        'lexico_misses_total{namespace="a",reason="absent"} 0+1x90',
    ),
    Case("LexicoLoadsFail", W, "a fifth", "1h", _LOADS % "unavailable", (IN,)),
    Case("LexicoLoadsFail", W, "nothing stored", "1h", _LOADS % "absent"),
    Case(
        "LexicoChecksumFailures", W, "the first", "35m",
        of_process(_DAMAGED, "_x30 1x60", _WHERE), ({**AT, "where": "store"},),
    ),
    Case("LexicoChecksumFailures", W, "none", "1h", of_process(_DAMAGED, "0x90", _WHERE)),
)  # fmt: skip

_PAGES: Final = "lexico_pages_total"
_ERRORS: Final = 'lexico_relative_error_ratio_bucket{namespace="a",codec="lexico",le='


def pages(failed: int, stored: int) -> str:
    return (
        f'{_PAGES}{{namespace="a",outcome="failed"}} 0+{failed}x180\n'
        f'{_PAGES}{{namespace="a",outcome="stored"}} 0+{stored}x180'
    )


def of_leases(held: int, taken: int) -> str:
    return (
        f'lexico_leases_total{{namespace="a",outcome="held"}} 0+{held}x180\n'
        f'lexico_leases_total{{namespace="a",outcome="taken"}} 0+{taken}x180'
    )


def of_errors(below_half: int) -> str:
    return (
        f'{_ERRORS}"0.5"}} 0+{below_half}x500\n{_ERRORS}"0.75"}} 0+10x500\n'
        f'{_ERRORS}"+Inf"}} 0+10x500\n'
        'lexico_relative_error_ratio_count{namespace="a",codec="lexico"} 0+10x500'
    )


def of_room(used: str) -> str:
    limit = of_process("lexico_inflight_limit_bytes", "100x180")
    return f"{of_process('lexico_inflight_bytes', used)}\n{limit}"


def of_encoders(encoding: str, ended: str) -> str:
    outcomes = of_process(_PAGES, ended, 'outcome="stored",')
    return f"{of_process('lexico_pages_encoding', encoding)}\n{outcomes}"


ENCODERS: Final = (
    Case("LexicoIngressNearlyFull", W, "95 %", "30m", of_room("95x60"), (AT,)),
    Case("LexicoIngressNearlyFull", W, "a moment", "30m", of_room("20x28 99x2 20x60")),
    Case(
        "LexicoEncodersBehind", W, "always some", "30m",
        of_process("lexico_pages_waiting", "3x60"), (AT,),
    ),
    Case(
        "LexicoEncodersBehind", W, "now and then", "30m",
        of_process("lexico_pages_waiting", "9x25 0x1 9x30"),
    ),
    Case(
        "LexicoEncodersStalled", C, "four pages", "40m", of_encoders("4x60", "0+3x20 60x60"),
        (AT,),
    ),
    Case("LexicoEncodersStalled", C, "they go on", "40m", of_encoders("4x60", "0+3x60")),
    Case("LexicoEncodersStalled", C, "nothing to do", "40m", of_encoders("0x60", "60x60")),
    Case(
        "LexicoEncodersDying", W, "one a minute", "40m",
        of_process("lexico_encoder_retries_total", "0+1x60"), (AT,),
    ),
    Case(
        "LexicoEncodersDying", W, "an upgrade", "40m",
        of_process("lexico_encoder_retries_total", "0x30 2x60"),
    ),
    Case("LexicoPagesFailing", W, "a tenth", "1h", pages(1, 9), (IN,)),
    Case("LexicoPagesFailing", W, "a hundredth", "1h", pages(1, 99)),
    Case(
        "LexicoSetsRefused", W, "one of a wrong shape", "35m",
        of_process("lexico_sets_refused_total", "_x30 1x60", 'reason="dictionary-mismatch",'),
        ({**AT, "reason": "dictionary-mismatch"},),
    ),
    Case(
        "LexicoSetsRefused", W, "not registered yet", "35m",
        of_process("lexico_sets_refused_total", "_x30 1x60", 'reason="unknown-dictionary",'),
    ),
    Case("LexicoLeasesStuck", W, "held alone", "1h", of_leases(1, 0), (IN,)),
    Case("LexicoLeasesStuck", W, "two nodes, one prompt", "1h", of_leases(5, 5)),
    Case("LexicoCodesPoor", W, "most above half", "7h", of_errors(1), ({**IN, "codec": "lexico"},)),
    Case("LexicoCodesPoor", W, "most below half", "7h", of_errors(9)),
)  # fmt: skip


def of_store(bytes_in_use: str, evictions: str, stored: str) -> str:
    return (
        f'lexico_store_bytes{{namespace="a",instance="1"}} {bytes_in_use}\n'
        f'lexico_store_bytes{{namespace="a",instance="2"}} {bytes_in_use}\n'
        f'lexico_store_evictions_total{{namespace="a",instance="1"}} {evictions}\n'
        f'lexico_stored_bytes_total{{namespace="a"}} {stored}'
    )


def of_full(used: int, limit: int) -> str:
    return (
        'lexico_page_failures_total{namespace="a",reason="busy"} 0+1x90\n'
        f'lexico_store_bytes{{namespace="a"}} {used}x90\n'
        f'lexico_store_limit_bytes{{namespace="a"}} {limit}x90'
    )


def of_up(first: str, second: str) -> str:
    return (
        f'lexico_store_up{{namespace="a",instance="1"}} {first}\n'
        f'lexico_store_up{{namespace="a",instance="2"}} {second}'
    )


STORE: Final = (
    Case("LexicoStoreUnreachable", C, "for nobody", "20m", of_up("1x10 0x50", "0x60"), (IN,)),
    Case("LexicoStoreUnreachable", C, "for one", "20m", of_up("1x60", "0x60")),
    Case(
        "LexicoStoreUnreachable", W, "for one", "20m", of_up("1x60", "0x60"),
        ({**IN, "instance": "2"},),
    ),
    Case("LexicoStoreUnreachable", W, "for nobody", "20m", of_up("0x60", "0x60")),
    Case(
        "LexicoStoreTooSmall", W, "50 minutes", "100m",
        of_store("6000000000x180", "0+10x180", "0+120000000x180"), (IN,),
    ),
    Case(
        "LexicoStoreTooSmall", W, "full, and slowly", "100m",
        of_store("6000000000x180", "0+10x180", "0+1000000x180"),
    ),
    Case(
        "LexicoStoreTooSmall", W, "filling up", "100m",
        of_store("6000000000x180", "0x180", "0+120000000x180"),
    ),
    Case("LexicoStoreRefusing", W, "full", "30m", of_full(99, 100), (IN,)),
    Case("LexicoStoreRefusing", W, "a full queue", "30m", of_full(50, 100)),
    Case("LexicoStoreRefusing", W, "no maxmemory", "30m", of_full(50, 0)),
    Case(
        "LexicoStoreRetries", W, "ten a minute", "1h",
        'lexico_store_retries_total{namespace="a"} 0+10x90', (IN,),
    ),
    Case(
        "LexicoStoreRetries", W, "a failover", "1h",
        'lexico_store_retries_total{namespace="a"} 0x50 20x90',
    ),
)  # fmt: skip

CASES: Final = (*PROCESSES, *DOORS, *CALLS, *ENCODERS, *STORE, *PODS)
"""All of them."""
