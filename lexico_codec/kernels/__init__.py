"""Kernels, a folder for each kind of work, with the plain PyTorch twin beside every backend.

`pursuit` codes vectors over dictionaries and reconstructs them, `entropy` codes integers, `layout`
brings a cache's memory into rows and back, and `attend` works on codes as they are. `memory` is
what is read and written, `dispatch` says which kernel serves a call.
"""
