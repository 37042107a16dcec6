"""What makes the client part of an inference engine, a folder an engine.

Each is imported by its name alone, so that a node needs no engine but its own.
"""
