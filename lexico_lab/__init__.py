"""Training of dictionary sets, and evaluation of codecs: nothing here is imported by a node."""
