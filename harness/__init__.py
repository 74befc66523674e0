"""Drives a real ComfyUI: used by the demo, the tests and the benchmarks, never by the nodes."""
