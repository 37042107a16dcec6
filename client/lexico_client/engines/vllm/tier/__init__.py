"""What vLLM's tiering spec loads as a secondary tier, and the connector that tells it of the
engine. Both are imported by their names in `lexico_client.engines.vllm`.
"""
