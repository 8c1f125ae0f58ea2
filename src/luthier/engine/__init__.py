"""How to step. The engine knows no method and no adapter: only tensors, losses and protocols."""
