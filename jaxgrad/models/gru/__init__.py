"""makemore's recurrent model: forward by named nodes at each time step, backward through time by node and fused."""
