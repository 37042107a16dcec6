"""A rolling change under load: `python -m bench.rolling`, see `__main__.py`.

Node processes load and offload without a pause, through a name that a name server on loopback
resolves, while one server after another is replaced as a cluster does it.
"""
