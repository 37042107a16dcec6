"""A small report of `lexico eval`, made up: what `studies.shipped_table` reads of one."""

from __future__ import annotations

from typing import Any


def mean(value: float) -> dict[str, float]:
    return {"mean": value, "low": value, "high": value}


def right(name: str, mode: str, kind: str, questions: int, share: float) -> dict[str, Any]:
    return {
        "name": name,
        "mode": mode,
        "kind": kind,
        "questions": questions,
        "right": mean(share),
    }


def turn(name: str, number: int, kl: float, once: float) -> dict[str, Any]:
    return {"name": name, "turn": number, "kl": mean(kl), "kl_once": mean(once)}


DOCUMENT: dict[str, Any] = {
    "settings": {"turns": 2},
    "ways": [{"name": "near", "ours": True}, {"name": "KIVI", "ours": False}],
    "times": [{"name": "near", "source": "a.txt", "encode": mean(0.25), "decode": mean(0.071)}],
    "sources": [
        {
            "name": "a.txt",
            "texts": 3,
            "fidelity": [
                {"name": "near", "fraction": mean(0.0456), "kl": mean(0.00512)},
                {"name": "KIVI", "fraction": mean(0.251), "kl": mean(1e-9)},
            ],
            "turns": [
                turn("near", 1, 0.004, 0.004),
                turn("near", 2, 0.006, 0.005),
                turn("KIVI", 1, 0.01, 0.01),
                turn("KIVI", 2, 0.02, 0.03),
            ],
            "retrieval": [
                right("exact cache", "requests", "needle", 3, 1.0),
                right("exact cache", "requests", "key-value", 24, 0.75),
                right("near", "requests", "needle", 3, 1 / 3),
                right("near", "requests", "key-value", 24, 0.5),
                right("near", "turns", "key-value", 24, 1.0),
            ],
        }
    ],
}
