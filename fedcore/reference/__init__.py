"""The NumPy definition of each op: readable, slow, complete. Every other backend is tested against these.

They run in the caller's floating-point mode: only the compiled backends set their own.
"""
