"""The seed notebook's model: forward in named nodes, backward by node and fused, statistics, and one kernel."""
