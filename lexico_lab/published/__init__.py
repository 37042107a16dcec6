"""Other people's ways to store a KV cache, after their papers, every stored byte counted."""
