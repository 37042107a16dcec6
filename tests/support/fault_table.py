"""What holds each failure of docs/failures.md: rows of the fault matrix, other tests."""

from __future__ import annotations

from typing import Final

Held = dict[str, tuple[str, ...]]

HEADING: Final = "## What the node sees"

_CLIENT: Final = "tests/integration/test_client_faults.py::"
_LOAD: Final = "tests/unit/test_client_load.py::"
_NETWORKS: Final = "tests/contract/test_store_networks.py::"
_FAILOVER: Final = "tests/contract/test_store_failover.py::"
_REFUSALS: Final = "tests/integration/test_put_refusals.py::"
_BOUNDS: Final = "tests/integration/test_put_bounds.py::"
_TLS: Final = "tests/integration/test_tls.py::"
_LIFECYCLE: Final = "tests/integration/test_serve_lifecycle.py::"
_START: Final = "tests/integration/test_serve_lacking.py::"
_BAD_UPLOAD: Final = _REFUSALS + "test_bad_upload_is_refused_with_its_own_error"

HELD: Final[Held] = {
    "a page was never stored, expired or was evicted": (
        "redis killed",
        "tests/integration/test_reload.py::test_a_missing_page_ends_the_prefix",
    ),
    "a page disappears between match and read": (
        "frame lost",
        "tests/integration/test_reload.py::test_a_page_that_goes_meanwhile_ends_the_prefix",
    ),
    "damaged frame in the store, or another page's": (
        "frame truncated",
        "frame emptied",
        "bit turned",
        "another page's frames",
    ),
    "newer version of a frame in the store": ("newer version of a frame",),
    "frame of a codec that the node does not know": ("newer codec of a frame",),
    "frame damaged between the reload server and the node": (
        _LOAD + "test_a_damaged_frame_ends_the_prefix",
    ),
    "sound frame of another geometry, codec or set": (
        _LOAD + "test_frames_of_another_geometry_are_refused",
    ),
    "server not there, connection lost, or a call that a draining server drops or cuts off": (
        "servers gone",
        "servers swallowed",
        "connections to servers reset",
        "tests/integration/test_client_strangers.py::test_nobody_there",
        _CLIENT + "test_a_peer_that_goes_away_in_the_middle",
    ),
    "server that was silent for a whole deadline, and is not back": (
        "tests/integration/test_client_circuit.py::test_a_server_that_hangs_costs_one_slow_call",
    ),
    "store not there, died, loading, read-only, too slow": (
        "redis killed",
        "redis stopped",
        "connections forgotten",
        "connections reset",
        "network swallows",
        "port refused",
        "100 ms an answer",
        "read-only replica",
        "replica without its primary",
        _NETWORKS + "test_a_loading_server_is_unavailable_and_then_well",
        _FAILOVER + "test_a_failover_that_lasts_longer_than_a_call",
    ),
    "store refuses our password or rights, or is of another kind than its URL says": (
        "names revoked",
        "writes revoked",
        "password changed",
        "tests/contract/test_store_cluster.py::test_one_node_named_as_a_server_is_refused",
    ),
    "store full and nothing may be evicted": ("out of memory",),
    "the tenant has what it may have": ("quota of bytes", "quota of calls"),
    "a page was forgotten on its way in": (
        "tests/unit/test_page_encoder.py::test_forgotten_on_its_way",
        "tests/contract/sequence_suite.py"
        "::test_forgotten_pages_are_refused_to_those_that_set_out_before",
    ),
    "a bound is reached": (
        _BOUNDS + "test_budget_refuses_at_once_and_is_given_back",
        "tests/integration/test_reload.py::test_streams_are_bounded",
    ),
    "an encoder dies with a page": (
        "tests/integration/test_serve.py"
        "::test_an_encoder_killed_in_the_middle_of_a_page_costs_only_time",
    ),
    "two encoders die with a page": ("encoders lost",),
    "the deadline passes, or a reload stalls": (
        "deadline over",
        "no encoder",
        _CLIENT + "test_a_service_that_stalls_costs_the_idle_limit_and_no_whole_load",
    ),
    "an upload stalls": (_BOUNDS + "test_an_upload_that_stalls_is_given_up",),
    "NaN or infinity in a cache": (_REFUSALS + "test_nan_and_infinity_are_refused",),
    "a cache that was loaded before weights or adapters changed": (
        "tests/unit/test_hf_weights.py::test_a_loaded_cache_stays_with_its_weights",
    ),
    "wrong shape, token count, page key": (
        _BAD_UPLOAD,
        "tests/unit/test_client_offload.py::test_a_tensor_that_does_not_fit_the_spec",
    ),
    "an upload ends early, within a page": (_BAD_UPLOAD,),
    "an upload has too many bytes": (_BAD_UPLOAD,),
    "a page was altered on its way in": (_BAD_UPLOAD,),
    "message over the limit": (_REFUSALS + "test_message_over_the_limit",),
    "gRPC channels open when the process was forked": (
        "tests/integration/test_client_fork.py"
        "::test_channels_of_the_parent_are_refused_at_once_and_stay_the_parents",
    ),
    "an `AsyncClient` on two event loops at a time": (
        "tests/integration/test_client_loops.py::test_a_second_loop_beside_the_first_is_refused",
    ),
    "the loop of a `Client` is stuck or has ended": (
        "tests/unit/test_client_runner.py::test_a_loop_that_is_stuck_is_left_behind",
        "tests/unit/test_client_runner.py::test_a_load_of_a_stuck_client_is_a_miss",
    ),
    "unknown codec": (_BAD_UPLOAD,),
    "dictionary set not registered": (_REFUSALS + "test_unknown_dictionary",),
    "no set for a model with a preset": (
        "tests/unit/test_coding.py::test_lossless_until_a_set_is_published",
        "tests/unit/test_coding_refusals.py::test_who_wants_no_lossless_pages_gets_the_error",
    ),
    "a published set that does not fit, or is damaged": (
        "tests/integration/test_set_takeover.py::test_a_set_for_another_model_is_refused",
        "tests/unit/test_coding_refusals.py::test_bytes_of_another_set_are_none_of_it",
    ),
    "set of another geometry, or not the spec's": (
        "tests/unit/test_page_encoder.py::test_a_set_for_another_model_is_refused",
    ),
    "no token, an unknown one, or one that has ended": (
        "wrong token",
        "tests/integration/test_roles.py::test_a_token_that_leaked_is_taken_out",
    ),
    "a caller without the role that a call needs": ("role lacking",),
    "no TLS connection, see [TLS](tenants.md#tls)": (
        "no TLS there",
        _TLS + "test_an_authority_that_did_not_make_it",
        _TLS + "test_plaintext_to_a_tls_port",
    ),
    "a defect of the service": (_CLIENT + "test_a_handler_that_crashes",),
}
"""Failure, as docs/failures.md has it → what holds it."""

ELSEWHERE: Final[Held] = {
    "failover": (
        _FAILOVER + "test_failover_by_sentinels",
        _FAILOVER + "test_failover_in_a_cluster",
    ),
    "slots on the move, MOVED, ASK": (_FAILOVER + "test_slots_that_move_under_load",),
    "store over TLS that is not trusted": (
        "tests/contract/test_store_tls.py::test_what_is_not_trusted_is_not_spoken_to",
    ),
    "cancelled half-way": (
        "cancelled half-way",
        _BOUNDS + "test_a_caller_that_cancels_frees_everything",
    ),
    "SIGTERM at any moment": (_LIFECYCLE + "test_sigterm_during_the_start_ends_in_order",),
    "SIGKILL of any process": (
        _LIFECYCLE + "test_the_loss_of_ray_ends_all",
        _LIFECYCLE + "test_the_loss_of_the_supervisor_ends_all_in_order",
        _LIFECYCLE
        + "test_a_closed_terminal_harms_nothing_and_a_service_that_is_killed_leaves_nothing",
        _LIFECYCLE + "test_rays_session_is_private_and_the_loss_of_the_store_ends_all",
        "tests/integration/test_serve.py::test_the_parts_run_apart_and_survive_the_loss_of_redis",
    ),
    "full disk": (
        _START + "test_a_full_disk_is_one_line",
        _START + "test_a_folder_of_the_store_without_room_is_one_line",
    ),
    "no IPv6": (_START + "test_without_ipv6_the_service_is_up",),
    "a poor container": (
        "tests/unit/test_doctor.py::test_a_poor_container_is_described_in_a_line_each",
    ),
}
"""Faults that take more than one Redis, or a whole `lexico serve`."""


def failures_of(document: str) -> list[str]:
    """The first column of the table of failures.

    Raises:
        ValueError: there is no such table.
    """
    _, heading, after = document.partition(f"{HEADING}\n")
    rows = [line for line in after.split("\n## ")[0].splitlines() if line.startswith("|")]
    if not heading or len(rows) < 3:
        raise ValueError(f"no table below {HEADING!r}")
    return [row.split("|")[1].strip() for row in rows[2:]]
