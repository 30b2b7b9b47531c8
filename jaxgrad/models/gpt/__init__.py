"""GPT-2's transformer: forward by named nodes, backward by node and fused, sampling with a cache of keys and values."""
