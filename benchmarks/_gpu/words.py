"""What the lines begin with that a part prints for ``benchmarks.gpu``; no imports, so that it starts at once."""

RESULT, MACHINE, PART = "RESULT", "MACHINE", "PART"
