"""The NumPy definition of each op: readable, slow, complete. Every other backend is tested against these."""
