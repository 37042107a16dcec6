"""The whole service over a long time: `python -m bench.endurance`, see `__main__.py`.

Eight node processes load and offload against a real `lexico serve` over a real Redis. Chaos breaks
one thing after another meanwhile; soak breaks nothing and watches what grows. Every page that a
load gives is compared with what it must be.
"""
